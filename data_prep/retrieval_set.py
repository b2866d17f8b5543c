"""Make a retrieval benchmark from a split of a records folder: held-out pairs without their duplicates.

    python -m data_prep.retrieval_set --records DIR --split test --out DIR

A pair is a duplicate where an earlier one shows the same image (perceptual hashes within ``--radius`` bits, flips and
turns included) and says all that its captions say; ``--duplicates image`` or ``caption`` asks for one of the two only.
The first pair stays. ``retrieval_set.json`` in the folder says what was dropped because of which pair, and how many
equal images and captions are left. Captions are compared as the tokenizer sees them: composed, lower case, white space
collapsed.
"""

import argparse
import dataclasses
import hashlib
import json
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_prep.shards import RecordsWriter
from plip_jax.data.image import decode_image
from plip_jax.data.perceptual_hash import close_pairs, hash_image
from plip_jax.data.records import RecordFolder, open_records

REPORT_NAME = "retrieval_set.json"
SPLIT = "test"
DUPLICATES = ("both", "image", "caption")
DEFAULT_RADIUS = 6
_MOST_LISTED = 1000


@dataclasses.dataclass(frozen=True)
class Duplicate:
    """A pair that is dropped.

    Attributes:
        row: of the pair.
        of: row of the earlier pair that stays.
    """

    row: int
    of: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="data_prep.retrieval_set", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", required=True, type=Path, help="records folder")
    parser.add_argument("--split", default="test", help="its split with the held-out pairs (default: test)")
    parser.add_argument("--out", required=True, type=Path, help=f"folder to make, with the one split {SPLIT!r}")
    parser.add_argument("--duplicates", choices=DUPLICATES, default="both", help="what duplicates have in common")
    parser.add_argument("--radius", type=int, default=DEFAULT_RADIUS, help="bits in which hashes of one image differ")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing records folder")
    flags = parser.parse_args(argv)
    try:
        report = make_retrieval_set(
            open_records(flags.records, flags.split),
            flags.out,
            duplicates=flags.duplicates,
            radius=flags.radius,
            overwrite=flags.overwrite,
        )
    except (ValueError, OSError) as error:
        print(f"data_prep.retrieval_set: {error}", file=sys.stderr)
        return 1
    print(
        f"{report['kept']:,} of {report['read']:,} pairs kept in {flags.out}, {report['dropped']:,} duplicates dropped"
    )
    return 0


def make_retrieval_set(
    records: RecordFolder, out: Path, *, duplicates: str = "both", radius: int = DEFAULT_RADIUS, overwrite: bool = False
) -> dict[str, Any]:
    """Write a records folder without duplicates, and return the report that is written with it.

    Args:
        records: the held-out pairs; read twice, an image at a time.
        out: the folder to make.
        duplicates: "both", "image" or "caption".
        radius: bits in which the hashes of one image may differ.
        overwrite: replace an existing records folder.

    Raises:
        FileExistsError: see `RecordsWriter`.
        ImageError: an image that cannot be read.
    """
    captions: list[frozenset[str]] = []
    hashes = np.empty((len(records), 8), np.uint64)
    contents: list[str] = []
    for row, record in enumerate(tqdm(records, desc="hashes", unit="", disable=None)):
        found = hash_image(decode_image(record.image, name=record.id))
        hashes[row] = found.bits
        # Blank images have no structure to compare, only bytes.
        contents.append(hashlib.sha256(record.image).hexdigest() if found.is_flat else "")
        captions.append(frozenset(compared(caption) for caption in record.captions))
    equal_images = find_equal_images(hashes, contents, radius)
    dropped = find_duplicates(equal_images, captions, duplicates)
    gone = {duplicate.row: duplicate.of for duplicate in dropped}
    kept = [row for row in range(len(records)) if row not in gone]
    said = [caption for row in kept for caption in captions[row]]
    ids: list[str] = []
    with RecordsWriter(out, overwrite=overwrite) as writer:
        for row, record in enumerate(tqdm(records, desc="records", unit="", disable=None)):
            ids.append(record.id)
            if row not in gone:
                writer.write(record, SPLIT)
        report = {
            "split": records.split,
            "fingerprint": records.fingerprint,
            "duplicates": duplicates,
            "radius": radius,
            "read": len(records),
            "kept": len(kept),
            "dropped": len(dropped),
            "left": {
                "pairs_with_the_image_of_an_earlier_one": sum(
                    any(other not in gone for other in equal_images.get(row, ())) for row in kept
                ),
                "captions_equal_to_an_earlier_one": len(said) - len(set(said)),
            },
            "listed": [{"id": ids[one.row], "of": ids[one.of]} for one in dropped[:_MOST_LISTED]],
        }
        writer.add_file(REPORT_NAME, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return report


def compared(caption: str) -> str:
    """The caption as the tokenizer's cleaning leaves it: composed, lower case, white space collapsed."""
    return " ".join(unicodedata.normalize("NFC", caption).split()).lower()


def find_equal_images(hashes: np.ndarray, contents: Sequence[str], radius: int) -> dict[int, list[int]]:
    """For each image the earlier ones that show the same, rising; images without any are left out.

    Args:
        hashes: uint64 [N, V].
        contents: of a blank image a hash of its bytes, by which alone it is compared; "" for others.
        radius: bits.
    """
    earlier: dict[int, list[int]] = {}
    usable = np.flatnonzero([not content for content in contents])
    pairs = close_pairs(np.ascontiguousarray(hashes[usable, 0]), hashes[usable], radius)
    # Either image's flips and turns may be the ones that are close: a pair is one in both orders.
    both = {tuple(sorted(pair)) for pair in zip(usable[pairs.left], usable[pairs.right], strict=True)}
    for first, second in sorted(both):
        if first != second:
            earlier.setdefault(int(second), []).append(int(first))
    seen: dict[str, list[int]] = {}
    for row, content in enumerate(contents):
        if content:
            same = seen.setdefault(content, [])
            if same:
                earlier[row] = list(same)
            same.append(row)
    return earlier


def find_duplicates(
    equal_images: dict[int, list[int]], captions: Sequence[frozenset[str]], duplicates: str
) -> list[Duplicate]:
    """Which pairs repeat an earlier one that stays.

    Args:
        equal_images: from `find_equal_images`.
        captions: of each pair, as `compared` gives them.
        duplicates: "both" (an equal image with all of these captions), "image", or "caption" (one of them is taken).
    """
    dropped: list[Duplicate] = []
    gone: set[int] = set()
    owner: dict[str, int] = {}
    for row, own in enumerate(captions):
        earlier = [other for other in equal_images.get(row, ()) if other not in gone]
        if duplicates == "both":
            earlier = [other for other in earlier if own <= captions[other]]
        elif duplicates == "caption":
            earlier = sorted(owner[caption] for caption in own if caption in owner)
        if earlier:
            gone.add(row)
            dropped.append(Duplicate(row, earlier[0]))
        else:
            for caption in own:
                owner.setdefault(caption, row)
    return dropped


if __name__ == "__main__":
    sys.exit(main())
