"""A vocabulary file in OpenAI's layout whose merges are all pairs of two bytes, the second closing a word."""

import gzip
import itertools
from pathlib import Path


def write_vocabulary(folder: Path, num_merges: int = 48_894) -> Path:
    """Write the file into a new folder; CLIP uses 48,894 of the merges in it."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(code) for code in (*printable, *range(256, 256 + 68))]
    merges = [f"{left} {right}</w>" for left, right in itertools.product(letters, letters)][:num_merges]
    folder.mkdir(parents=True)
    with gzip.open(folder / "bpe_simple_vocab_16e6.txt.gz", "wb", compresslevel=1) as file:
        file.write("\n".join(["a title", *merges]).encode())
    return folder
