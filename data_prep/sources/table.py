"""The table of raw sources: a new one is a file beside this and a line in `SOURCES`.

Each reader has the form `read_posts(path, settings, *, source) -> Iterator[Post | Drop]` and reads one file, so that
the files of a source can be read side by side.
"""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from data_prep.sources import (
    csv_table,
    figures,
    image_folder,
    instagram,
    instagram_mobile,
    instaloader,
    ipath,
    laion,
    openpath_csv,
    reddit,
    x_v1,
    x_v2,
)
from data_prep.sources.post import Drop, Post

Reader = Callable[..., Iterator[Post | Drop]]
"""What reads a source: yields its posts, and a `Drop` for what is none."""

_PACKINGS = ("", ".gz", ".xz", ".zst", ".bz2")
JSON_FILES = tuple(f"*.{name}{packing}" for name in ("json", "jsonl", "ndjson") for packing in _PACKINGS)
TABLE_FILES = ("*.csv", "*.tsv", "*.tab")


class SourceError(ValueError):
    """A source is not known, or has no files; the message says what there is."""


@dataclasses.dataclass(frozen=True)
class Source:
    """How a kind of source is read.

    Attributes:
        read: `read_posts(path, settings, *, source)` of its file.
        settings: Its dataclass of settings.
        platform: Under which its authors are hashed, so that one person has one hash in all formats of a platform;
            empty where it names no authors.
        patterns: Of the names of its files in a folder, in lower case; none where a folder is read as a whole.
        has_versions: An id is the platform's, so that two posts of one id are versions or copies of one. Elsewhere they
            may be different things in two files (see `data_prep.curation.conversations.tell_apart`).
    """

    read: Reader
    settings: type[Any]
    platform: str
    patterns: tuple[str, ...]
    has_versions: bool = False


SOURCES: dict[str, Source] = {
    "x_v2": Source(x_v2.read_posts, x_v2.XV2Settings, "x", JSON_FILES, has_versions=True),
    "x_v1": Source(x_v1.read_posts, x_v1.XV1Settings, "x", JSON_FILES, has_versions=True),
    "openpath_csv": Source(openpath_csv.read_posts, openpath_csv.OpenPathSettings, "x", TABLE_FILES),
    "instagram": Source(instagram.read_posts, instagram.InstagramSettings, "instagram", JSON_FILES, has_versions=True),
    "instaloader": Source(
        instaloader.read_posts, instaloader.InstaloaderSettings, "instagram", JSON_FILES, has_versions=True
    ),
    "instagram_mobile": Source(
        instagram_mobile.read_posts,
        instagram_mobile.InstagramMobileSettings,
        "instagram",
        JSON_FILES,
        has_versions=True,
    ),
    # Pushshift's monthly files have no ending of JSON: RS_2019-01.zst
    "reddit": Source(
        reddit.read_posts, reddit.RedditSettings, "reddit", (*JSON_FILES, "rs_*", "*.zst"), has_versions=True
    ),
    "laion": Source(laion.read_posts, laion.LaionSettings, "", ("*.parquet", *TABLE_FILES)),
    "figures": Source(
        figures.read_posts, figures.FigureSettings, "", (*TABLE_FILES, "*.xlsx", "*.parquet", *JSON_FILES)
    ),
    "csv": Source(functools.partial(csv_table.read_posts, strict=False), csv_table.Columns, "", TABLE_FILES),
    "folder": Source(image_folder.read_posts, image_folder.FolderSettings, "", ()),
    "ipath": Source(ipath.read_posts, ipath.IpathSettings, "", (*TABLE_FILES, "*.xlsx", "*.parquet", *JSON_FILES)),
}
"""``kind`` in the recipe of a curation -> source. Another one is a file and a line here."""


def find_source(kind: str) -> Source:
    """Return how a kind of source is read.

    Raises:
        SourceError: There is no such kind.
    """
    if kind not in SOURCES:
        near = difflib.get_close_matches(kind, SOURCES, n=1, cutoff=0.4)
        hint = f" (nearest: {near[0]!r})" if near else ""
        raise SourceError(f"no source {kind!r}{hint}; known are {', '.join(SOURCES)}")
    return SOURCES[kind]


def input_files(kind: str, path: Path) -> list[Path]:
    """Return the files that a source reads, in the order of their paths in the folder.

    Args:
        kind: Name in `SOURCES`.
        path: A file, which is taken whatever its name; or a folder, in which and below which files are taken by name.
            Hidden ones are not.

    Raises:
        SourceError: No such kind, no such path, or a folder without a file of the kind.
    """
    source = find_source(kind)
    if not path.exists():
        raise SourceError(f"{path}: expected the files of a source {kind!r}, found nothing there")
    if path.is_file() or not source.patterns:
        return [path]
    found = [file for file in path.rglob("*") if file.is_file() and _matches(file.relative_to(path), source.patterns)]
    if not found:
        raise SourceError(f"{path}: no file of a source {kind!r} in it; expected {', '.join(source.patterns)}")
    return sorted(found, key=lambda file: file.relative_to(path).as_posix())


def _matches(relative: Path, patterns: tuple[str, ...]) -> bool:
    hidden = any(part.startswith(".") for part in relative.parts)
    return not hidden and any(fnmatchcase(relative.name.lower(), pattern) for pattern in patterns)
