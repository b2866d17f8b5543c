"""ARCH: figures of pathology books and of PubMed articles with their captions (Gamper and Rajpoot 2021, CVPR).

Two retrieval sets. A figure can have several images, an image several captions, and figures can share a caption. What
belongs together is told by ``group_id``: the figure, or, where the archive names no figures (PubMed), the caption.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from data_prep.tfds.base import About, EvaluationSet, Item, SetError, find_files, find_folder
from data_prep.tfds.tables import read_table
from plip_jax.data.split_manifest import Part, SplitScheme

_SUFFIXES = (".png", ".jpg", ".jpeg")
_HOMEPAGE = "https://warwick.ac.uk/fac/cross_fac/tia/data/arch"
_CITATION = "Gamper and Rajpoot, Multiple Instance Captioning, CVPR 2021, arXiv:2103.05121"
_LICENCE = "CC BY-NC-SA 4.0, for research only"


class _Arch(EvaluationSet, skip_registration=True):
    """What both sets share."""

    folder: ClassVar[str]
    list_prefix: ClassVar[str]  # of names in the de-duplicated list

    def find_items(self) -> Sequence[Item]:
        """Each image with its captions, in the order of the rows of ``captions.json``."""
        root = find_folder(self.manual_dir, self.folder)
        images = {path.stem: path for path in find_files(root, "*") if path.suffix.lower() in _SUFFIXES}
        captions: dict[str, list[str]] = {}
        first: dict[str, dict[str, Any]] = {}
        missing = empty = 0
        for row in _read_rows(root):
            uuid, caption = str(row["uuid"]), " ".join(str(row["caption"] or "").split())
            if uuid not in images:
                missing += 1
            elif not caption:
                empty += 1
            else:
                first.setdefault(uuid, row)
                found = captions.setdefault(uuid, [])
                if caption not in found:
                    found.append(caption)
        without = len(images) - len(captions)
        for count, what in (
            (missing, "captions have no image"),
            (empty, "captions are empty"),
            (without, "images have no caption"),
        ):
            if count:
                self.notes.append(f"{count:,} {what}: left out")
        return [
            Item(
                images[uuid].name,
                images[uuid].read_bytes,
                captions=tuple(captions[uuid]),
                group_id=_group(row, captions[uuid][0]),
                texts={"letter": str(row.get("letter") or "")},
            )
            for uuid, row in first.items()
        ]

    def make_schemes(self, items: Sequence[Item]) -> Sequence[SplitScheme]:
        """All of them to test; and those of a de-duplicated list where one lies beside the archive."""
        everything = Part(tuple(item.filename for item in items))
        schemes = [SplitScheme("all", "every captioned image to test", {"test": everything}, is_default=True)]
        listed = self._read_list({Path(item.filename).stem: item.filename for item in items})
        if listed:
            description = "the images of the de-duplicated list (of KEP) that lies beside the archive, to test"
            schemes.append(SplitScheme("deduplicated", description, {"test": Part(tuple(listed))}))
        return schemes

    def _read_list(self, filename_of: dict[str, str]) -> list[str]:
        """File names of the tab-separated list whose names begin with our prefix; empty where there is none."""
        for pattern in ("*.tsv", "*.csv", "*.txt"):
            for path in find_files(self.manual_dir, pattern):
                with path.open(encoding="utf-8-sig", errors="replace") as file:
                    is_list = file.readline().strip().split("\t") == ["image_name", "caption"]
                if not is_list:
                    continue
                names = [row["image_name"] for row in read_table(path, ["image_name", "caption"], delimiter="\t")]
                if not all(name.startswith(self.list_prefix) for name in names):
                    continue  # the other set's
                uuids = list(dict.fromkeys(Path(name.removeprefix(self.list_prefix)).stem for name in names))
                unknown = [uuid for uuid in uuids if uuid not in filename_of]
                if unknown:
                    raise SetError(f"{path}: {len(unknown)} images are not in {self.folder}, first {unknown[0]!r}")
                return [filename_of[uuid] for uuid in uuids]
        return []


class ArchBooks(_Arch, skip_registration=True):
    """``books_set``."""

    name = "arch_books"
    folder = "books_set"
    list_prefix = "arch_book_"
    about = About(
        title="ARCH, books: figures of pathology textbooks with their captions",
        homepage=_HOMEPAGE,
        licence=_LICENCE,
        citation=_CITATION,
        layout="books_set/captions.json and books_set/images/UUID.png",
        classes=(),
        unverified_counts={"": {"": 4_270}},  # counted in the archive by GeorgeBatch/arch-pre-training
        verified_schemes={"deduplicated": {"": 1_306}},
        texts=("letter",),
    )


class ArchPubmed(_Arch, skip_registration=True):
    """``pubmed_set``."""

    name = "arch_pubmed"
    folder = "pubmed_set"
    list_prefix = "arch_pubmed_"
    about = About(
        title="ARCH, PubMed: figures of articles with their captions",
        homepage=_HOMEPAGE,
        licence=_LICENCE,
        citation=_CITATION,
        layout="pubmed_set/captions.json and pubmed_set/images/UUID.jpg (some .png)",
        classes=(),
        unverified_counts={"": {"": 3_309}},  # the same
        verified_schemes={"deduplicated": {"": 1_923}},
        texts=("letter",),
    )


def _group(row: dict[str, Any], caption: str) -> str:
    figure = row.get("figure_id")
    return str(figure) if figure not in (None, "") else f"caption-{hashlib.sha256(caption.encode()).hexdigest()[:16]}"


def _read_rows(root: Path) -> Iterator[dict[str, Any]]:
    """Rows of ``captions.json``: an object of rows by index (as published), or a list of rows."""
    path = root / "captions.json"
    if not path.is_file():
        raise SetError(f"{root}: expected captions.json beside images/; unpack the archive again")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SetError(f"{path} is not JSON ({error}): unpack the archive again") from error
    rows = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and {"uuid", "caption"} <= row.keys() for row in rows
    ):
        raise SetError(f"{path}: expected rows with uuid and caption (and figure_id, letter), by index")
    yield from rows
