"""OpenAI's own vocabulary file, ``bpe_simple_vocab_16e6.txt.gz``: reading it, finding it, knowing it again.

Owns the file's format (openai/CLIP, ``simple_tokenizer.py``) and where an installed ``open_clip`` or ``clip`` keeps its
copy; the tokenizer made of it is in `plip_jax.data.tokenizer`.
"""

import gzip
import hashlib
import importlib.util
import zlib
from pathlib import Path

VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
# 256 bytes, the same closing a word, 48,894 merges, and the two specials.
VOCAB_SIZE = 49_408
CONTEXT_LENGTH = 77

_NUM_MERGES = VOCAB_SIZE - 2 * 256 - 2
# The file holds 262,144 merges, of which CLIP uses the first; unpacked it has 3,194,984 bytes.
_MAX_BYTES = 16 << 20
# SHA-256 of merges.txt as Hugging Face's CLIPs have it: the header line and the merges, each line ended.
_MERGES_SHA256 = "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a"


def read_merges(path: Path) -> list[tuple[str, str]]:
    """Read the merges that CLIP uses, in their order.

    Raises:
        ValueError: no gzip file, too few merges, or more bytes than the file has.
    """
    try:
        with gzip.open(path) as file:
            data = file.read(_MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path.name}: expected OpenAI's gzip file, got {error}") from None
    if len(data) > _MAX_BYTES:
        raise ValueError(f"{path.name}: expected 3 MB when unpacked, got more than {_MAX_BYTES} bytes")
    lines = data.decode("utf-8").split("\n")[1 : _NUM_MERGES + 1]  # the first is a title; not splitlines: U+0085
    pairs = [tuple(line.split(" ")) for line in lines]
    if len(pairs) != _NUM_MERGES or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{path.name}: expected {_NUM_MERGES} merges of two parts each behind a title line")
    return [(left, right) for left, right in pairs]


def is_openai_vocabulary(merges_txt: str, vocab_size: int) -> bool:
    """Whether a tokenizer with this ``merges.txt`` and this many tokens is CLIP's own."""
    return vocab_size == VOCAB_SIZE and hashlib.sha256(merges_txt.encode()).hexdigest() == _MERGES_SHA256


def find_installed() -> Path | None:
    """The folder in which an installed ``open_clip`` or ``clip`` keeps the file; neither is imported."""
    for package in ("open_clip", "clip"):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if (Path(folder) / VOCABULARY_FILE).is_file():
                return Path(folder)
    return None
