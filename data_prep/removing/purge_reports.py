"""Purges what is made from rows for people: pages and tables; and the leftovers of killed runs."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from data_prep.removing.tombstones import TOMBSTONES_NAME, Tombstones

_TEMPORARY = re.compile(r"\..+\.\d+-[0-9a-f]{8}")  # of rows.write_atomically
_DIGEST = re.compile(r"[0-9a-f]{64}")
_REPORT_SUFFIXES = (".html", ".md", ".csv", ".tsv", ".txt", ".json")


def remove_temporary_files(folder: Path) -> int:
    """Remove what killed runs left half written, which may hold rows that nothing lists; return how many there were."""
    found = [path for path in sorted(folder.rglob(".*")) if _TEMPORARY.fullmatch(path.name)]
    found += sorted(folder.glob("store/*/.incoming/*"))  # of data_prep.fetching.store
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return len(found)


def remove_stale_reports(folder: Path, tombstones: Tombstones) -> int:
    """Remove the pages and tables in a folder that name a removed image or pair: their programs make them again.

    A contact sheet goes with the table that says what is on it.
    """
    removed = 0
    for path in files_beside_stages(folder, _REPORT_SUFFIXES):
        if path.is_relative_to(folder / "vectors") or not _names_removed(path, tombstones):
            continue
        siblings = [*sorted(path.parent.glob(f"{path.stem}.*")), *sorted(path.parent.glob(f"{path.stem}-*.png"))]
        # The file that names it goes last: were this killed before, the others would not be found again.
        for part in [*(part for part in siblings if part != path), path]:
            if part.suffix in (*_REPORT_SUFFIXES, ".png", ".jpg"):
                part.unlink()
                removed += 1
    return removed


def _names_removed(path: Path, tombstones: Tombstones) -> bool:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:  # it went with another one
        return False
    words = set(re.split(r"[\s\"'<>,;|()]+", text))
    return any(tombstones.has(kind, word) for word in words for kind in ("pair", "image", "url")) or any(
        tombstones.has("image", digest) for digest in set(_DIGEST.findall(text))
    )


def files_beside_stages(work: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Yield the files of some kinds in a folder, but for rows, stored images and what a takedown keeps."""
    for path in sorted(work.rglob("*")):
        inside = path.relative_to(work).parts
        ours = inside[0] in ("stages", "store", "fingerprints") or path.name == TOMBSTONES_NAME
        if path.suffix in suffixes and path.is_file() and not ours:
            yield path
