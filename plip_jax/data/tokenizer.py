"""CLIP's byte-pair tokenizer: captions to token ids.

Owns reading, learning and writing the vocabulary; the engine is Hugging Face's ``tokenizers``, the one inside
transformers' CLIPTokenizer, so ids equal transformers' for every string. They equal OpenAI's original code
(``simple_tokenizer.py``: Sennrich et al. 2016 on bytes) for every string that its cleaning leaves alone; here the
text is composed (NFC), white space is collapsed and letters are lowered, but mojibake and HTML entities are not
repaired and curly quotes are not straightened (OpenAI's code does so through ``ftfy`` and ``html.unescape``).

Padding follows Hugging Face: behind <|endoftext|> comes the pad token, by default <|endoftext|> again, where
OpenAI's code writes 0. The text tower is causal and pools at the first <|endoftext|>, so the choice changes nothing.

transformers itself is not imported: it takes a second, and ``CLIPTokenizerFast(vocab_file=…)`` of version 5
builds a vocabulary of two tokens without a word.
"""

import functools
import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from plip_jax.data.openai_vocabulary import VOCABULARY_FILE, is_openai_vocabulary, read_merges

BOT_TOKEN = "<|startoftext|>"
EOT_TOKEN = "<|endoftext|>"
DEFAULT_CONTEXT_LENGTH = 77

# What `save` writes; what a folder needs to be loaded: `has_tokenizer`.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")

# OpenAI's split: specials, English contractions, runs of letters, single digits, runs of anything else.
_WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
_END_OF_WORD = "</w>"

# transformers writes 1e30 for "no limit".
_UNLIMITED = 1_000_000

# Part of the fingerprint: two tokenizers with one vocabulary and different text cleaning give different ids here.
_PROBE = "H&E: Déjà-vu  of the 3 glands' MUCUS, it's 20\N{MULTIPLICATION SIGN} (腺癌) \N{MICROSCOPE}."


class TokenizerError(ValueError):
    """A tokenizer that cannot be read or learned. The message says expected, got, and what to do."""


class Tokenizer:
    """Captions to int32 ids of one fixed length.

    Immutable and picklable (data workers receive a copy). Make one with `load_tokenizer` or `train_tokenizer`.

    Attributes:
        context_length: ids in a row, <|startoftext|> and <|endoftext|> included.
        vocab_size: ids are below this.
        bot_token_id: opens every row.
        eot_token_id: closes every caption; the text tower pools there.
        pad_token_id: fills the row behind it.
        folder: where it was loaded from; None if learned or restored.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        context_length: int,
        pad_token: str = EOT_TOKEN,
        folder: Path | None = None,
    ):
        if context_length < 2:
            raise TokenizerError(f"context_length: expected 2 or more (start and end of text), got {context_length}")
        self.context_length = context_length
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        self.bot_token_id = _token_id(backend, BOT_TOKEN)
        self.eot_token_id = _token_id(backend, EOT_TOKEN)
        self.pad_token_id = _token_id(backend, pad_token)
        self.folder = folder
        self._pad_token = pad_token
        self._backend = backend
        # Room for both specials is kept when a caption is cut, so <|endoftext|> stays last.
        backend.enable_truncation(max_length=context_length)
        backend.enable_padding(length=context_length, pad_id=self.pad_token_id, pad_token=pad_token)
        empty = backend.encode("").ids
        if empty[:2] != [self.bot_token_id, self.eot_token_id]:
            raise TokenizerError(
                f"expected CLIP's tokenizer, which writes the empty caption as {BOT_TOKEN} {EOT_TOKEN}, got ids "
                f"{empty[:2]}; this vocabulary belongs to another kind of model"
            )

    def __call__(self, texts: str | Sequence[str]) -> np.ndarray:
        """Encode captions: int32 [len(texts), context_length]; one string is a batch of one.

        A caption that is too long is cut and keeps <|endoftext|> as its last id.
        """
        batch = [texts] if isinstance(texts, str) else list(texts)
        rows = [encoding.ids for encoding in self._backend.encode_batch(batch)]
        return np.asarray(rows, np.int32).reshape(len(batch), self.context_length)

    @functools.cached_property
    def files(self) -> dict[str, str]:
        """Name -> text of the files `save` writes: the layout that transformers 4.40, 4.57 and 5.x all load."""
        state = json.loads(self._backend.to_str())
        state["truncation"] = state["padding"] = None  # transformers sets both for each call
        merges = _merge_lines(state["model"])
        state["model"]["merges"] = merges  # pairs as lists are unreadable to tokenizers < 0.20
        vocab = dict(sorted(state["model"]["vocab"].items(), key=lambda item: item[1]))
        specials = {
            "bos_token": BOT_TOKEN,
            "eos_token": EOT_TOKEN,
            "unk_token": EOT_TOKEN,
            "pad_token": self._pad_token,
        }
        config = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": self.context_length,
            "add_prefix_space": False,
            "do_lower_case": True,
            "errors": "replace",
            **specials,
        }
        return {
            "tokenizer.json": json.dumps(state, ensure_ascii=False, indent=2) + "\n",
            "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
            "special_tokens_map.json": json.dumps(specials, indent=2) + "\n",
            "vocab.json": json.dumps(vocab, ensure_ascii=False) + "\n",
            "merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n",
        }

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the ids, independent of the version of ``tokenizers``."""
        content = [
            self.files["vocab.json"],
            self.files["merges.txt"],
            self.context_length,
            self.bot_token_id,
            self.eot_token_id,
            self.pad_token_id,
            sorted((index, token.content) for index, token in self._backend.get_added_tokens_decoder().items()),
            self(_PROBE)[0].tolist(),
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def is_clips_own(self) -> bool:
        """Whether the vocabulary is the one that OpenAI's CLIPs, and nearly all since, were trained with."""
        return is_openai_vocabulary(self.files["merges.txt"], self.vocab_size)

    def save(self, folder: str | Path) -> None:
        """Write `files` into `folder`, which is made if missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.files.items():
            (folder / name).write_text(text, encoding="utf-8")

    def __getstate__(self) -> dict[str, Any]:
        # The cached files are megabytes that a data worker can make again.
        return {key: value for key, value in self.__dict__.items() if key not in ("files", "fingerprint")}


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has files that `load_tokenizer` reads."""
    layouts = (("tokenizer.json",), ("vocab.json", "merges.txt"), (VOCABULARY_FILE,))
    return any(all((folder / name).is_file() for name in layout) for layout in layouts)


def load_tokenizer(source: str | Path, *, context_length: int | None = None) -> Tokenizer:
    """Load CLIP's tokenizer from a folder or a Hugging Face Hub id.

    Reads ``tokenizer.json`` as saved by transformers 4.x or 5.x, or else ``vocab.json`` with ``merges.txt``, or else
    OpenAI's ``bpe_simple_vocab_16e6.txt.gz``.

    Args:
        source: a folder, or an id such as ``vinid/plip``.
        context_length: overrides ``model_max_length`` of ``tokenizer_config.json`` (77 where neither is given).

    Raises:
        TokenizerError: nothing to read there, a damaged file, or not CLIP's kind of tokenizer.
    """
    folder = Path(source) if Path(source).is_dir() else _download(str(source))
    try:
        config = _read_json(folder / "tokenizer_config.json")
        specials = _read_json(folder / "special_tokens_map.json")
        if (folder / "tokenizer.json").is_file():
            backend = tokenizers.Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            backend = _build(_read_json(folder / "vocab.json"), _read_merges(folder / "merges.txt"))
        elif (folder / VOCABULARY_FILE).is_file():
            merges = read_merges(folder / VOCABULARY_FILE)
            words = [*_base_vocabulary(), *(left + right for left, right in merges)]
            backend = _build(_in_openais_order(words), merges)
        else:
            raise TokenizerError(
                f"{folder}: expected tokenizer.json, or vocab.json and merges.txt, "
                f"got {sorted(path.name for path in folder.iterdir())}; download the whole model folder "
                f"({VOCABULARY_FILE} of OpenAI's code will do, too)"
            )
    except TokenizerError:
        raise
    except Exception as error:  # the Rust parser raises bare Exception
        raise TokenizerError(
            f"{folder}: expected readable tokenizer files, got {error}; download them again"
        ) from error
    try:
        declared = _context_length(config.get("model_max_length"))
        pad_token = config.get("pad_token") or specials.get("pad_token") or EOT_TOKEN
        if isinstance(pad_token, dict):
            pad_token = pad_token.get("content")
        if not isinstance(pad_token, str):
            raise TokenizerError(f"pad_token: expected a token, got {pad_token!r:.80}")
        return Tokenizer(
            backend,
            context_length=declared if context_length is None else context_length,
            pad_token=pad_token,
            folder=folder,
        )
    except TokenizerError as error:
        raise TokenizerError(f"{folder}: {error}") from error


def restore_tokenizer(files: Mapping[str, str]) -> Tokenizer:
    """Make the tokenizer again whose `Tokenizer.files` these are; raises TokenizerError as `load_tokenizer` does."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        tokenizer = load_tokenizer(folder)
    tokenizer.folder = None
    return tokenizer


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, context_length: int) -> Tokenizer:
    """Learn a byte-pair vocabulary from captions, with CLIP's cleaning, words and id order.

    The ids are those of OpenAI's layout: 256 bytes, the same 256 closing a word, the merges in the order learned,
    <|startoftext|>, <|endoftext|> (so <|endoftext|> is the largest id). The result depends on `texts` only, not on
    hash seeds or threads.

    Args:
        texts: captions; read once.
        vocab_size: ids wanted, at least 514. Fewer come back (see ``Tokenizer.vocab_size``) when `texts` has no
            further pair to merge.
        context_length: ids in an encoded row.

    Raises:
        TokenizerError: a vocabulary below the least.
    """
    base = _base_vocabulary()
    if vocab_size < len(base) + 2:
        raise TokenizerError(
            f"vocab_size: expected at least {len(base) + 2} (every byte, every closing byte, two specials), "
            f"got {vocab_size}"
        )
    learner = _build({token: index for index, token in enumerate(base)} | {EOT_TOKEN: len(base)}, [])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        show_progress=False,
        end_of_word_suffix=_END_OF_WORD,
        # As "special" tokens the bytes get fixed ids. Left to the trainer, closing bytes are numbered in the order of
        # a hash map, and ties between pairs, which are broken by id, would differ from run to run.
        special_tokens=base,
    )
    learner.train_from_iterator(texts, trainer)
    model = json.loads(learner.to_str())["model"]
    words = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return Tokenizer(_build(_in_openais_order(words), _merge_pairs(model)), context_length=context_length)


def _in_openais_order(words: list[str]) -> dict[str, int]:
    """Token -> id: the words as they come, then the two specials."""
    return {token: index for index, token in enumerate([*words, BOT_TOKEN, EOT_TOKEN])}


def _build(vocab: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """CLIP's pipeline around a vocabulary, as transformers' CLIPTokenizer builds it."""
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix=_END_OF_WORD,
            fuse_unk=False,
            unk_token=EOT_TOKEN,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    if BOT_TOKEN in vocab:
        backend.add_special_tokens([BOT_TOKEN, EOT_TOKEN])
        backend.post_processor = processors.RobertaProcessing(
            (EOT_TOKEN, vocab[EOT_TOKEN]), (BOT_TOKEN, vocab[BOT_TOKEN]), trim_offsets=False, add_prefix_space=False
        )
    return backend


def _byte_letters() -> list[str]:
    """The printable letter of each byte, in OpenAI's order: printable bytes first, the others from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(code) for code in (*printable, *range(256, 256 + others))]


def _base_vocabulary() -> list[str]:
    """Every byte, and every byte that closes a word."""
    letters = _byte_letters()
    return [*letters, *(letter + _END_OF_WORD for letter in letters)]


def _merge_pairs(model: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges of a serialised model; tokenizers writes "a b" before version 0.20 and ["a", "b"] since."""
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    return [(left, right) for left, right in pairs]


def _merge_lines(model: dict[str, Any]) -> list[str]:
    return [f"{left} {right}" for left, right in _merge_pairs(model)]


def _read_merges(path: Path) -> list[tuple[str, str]]:
    lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: merges hold U+0085 and its like
    lines = [line.rstrip("\r") for line in lines if line and not line.startswith("#version")]
    return _merge_pairs({"merges": lines})


def _context_length(declared: Any) -> int:
    """What ``model_max_length`` says: CLIP's own length where it says nothing or "no limit"."""
    if declared is None or (type(declared) in (int, float) and declared >= _UNLIMITED):
        return DEFAULT_CONTEXT_LENGTH
    if type(declared) not in (int, float) or not declared >= 2:  # NaN neither
        raise TokenizerError(f"model_max_length: expected a number of at least 2, got {declared!r:.80}")
    return int(declared)


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; {} where there is none."""
    if not path.is_file():
        return {}
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise TokenizerError(
            f"{path}: expected a JSON object, got a {type(values).__name__}; download the tokenizer's files again"
        )
    return values


def _token_id(backend: tokenizers.Tokenizer, token: str) -> int:
    index = backend.token_to_id(token)
    if index is None:
        raise TokenizerError(
            f"expected the token {token} in the vocabulary, got {backend.get_vocab_size()} tokens without it; "
            "this vocabulary is not CLIP's"
        )
    return index


def _download(repo_id: str) -> Path:
    """Fetch the tokenizer's files of a hub id into the Hugging Face cache; offline, what is cached serves."""
    import huggingface_hub  # not at the top: half a second that reading a folder does not need

    try:
        return Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=list(TOKENIZER_FILES)))
    except Exception as error:  # network, authentication, unknown id: a dozen types of three libraries
        raise TokenizerError(
            f"{repo_id!r}: expected a folder or a Hugging Face Hub id that can be fetched, got {type(error).__name__}: "
            f"{error}; without the network, download https://huggingface.co/{repo_id} elsewhere and pass the "
            "folder's path"
        ) from error
