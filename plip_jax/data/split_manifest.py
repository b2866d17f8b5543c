"""Split manifests: which examples of a built evaluation set make up each part of each way to split it.

An evaluation set stores each image once; a scheme names the parts (``train``, ``val``, ``test``) by the examples' file
names, so that the published split and a corrected one live beside each other. One JSON file a scheme, in the folder
``splits`` of the built set; its hash covers name, parts, file names and labels. The contract between `data_prep.tfds`
and everything that reads.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

SPLITS_FOLDER = "splits"
_NAME = re.compile(r"[A-Za-z0-9_.]+")


class SplitManifestError(ValueError):
    """A split manifest is missing or damaged, or names what is not there; the message says which and why."""


class MissingSplitError(SplitManifestError):
    """A whole set does not hold the part that is asked for."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of a scheme.

    Attributes:
        filenames: of its examples, in order, none twice.
        labels: where the scheme labels examples its own way, one a file name; else empty, and the set's labels hold.
    """

    filenames: tuple[str, ...]
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.filenames)) != len(self.filenames):
            raise SplitManifestError("a part names a file twice")
        if self.labels and len(self.labels) != len(self.filenames):
            raise SplitManifestError(f"expected {len(self.filenames)} labels, one a file, got {len(self.labels)}")


@dataclasses.dataclass(frozen=True)
class SplitScheme:
    """One way to split a set.

    Attributes:
        name: of the scheme, e.g. ``as_published``, ``by_patient``.
        description: what it does, whose it is, and what is wrong with it.
        parts: by name.
        is_default: the one that a plain ``test`` means.
    """

    name: str
    description: str
    parts: Mapping[str, Part]
    is_default: bool = False

    def __post_init__(self) -> None:
        for name in (self.name, *self.parts):
            if not _NAME.fullmatch(name):
                raise SplitManifestError(f"{name!r}: expected letters, digits, dots and underscores")

    @property
    def sha256(self) -> str:
        """Of its name, parts, file names and labels (hex)."""
        content = [self.name, {name: [list(p.filenames), list(p.labels)] for name, p in sorted(self.parts.items())}]
        return hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest()


def write_scheme(folder: Path, scheme: SplitScheme) -> Path:
    """Write ``splits/NAME.json`` below a built set's folder."""
    path = folder / SPLITS_FOLDER / f"{scheme.name}.json"
    path.parent.mkdir(exist_ok=True)
    content = {**dataclasses.asdict(scheme), "sha256": scheme.sha256}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read_schemes(folder: Path) -> dict[str, SplitScheme]:
    """Read every scheme of a built set, by name; none where it has no ``splits``.

    Raises:
        SplitManifestError: a file is damaged or was edited: its hash is not that of its content.
    """
    schemes: dict[str, SplitScheme] = {}
    for path in sorted((folder / SPLITS_FOLDER).glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            parts = {
                str(name): Part(tuple(map(str, part["filenames"])), tuple(map(str, part["labels"])))
                for name, part in content["parts"].items()
            }
            scheme = SplitScheme(content["name"], content["description"], parts, bool(content["is_default"]))
            expected = content["sha256"]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise SplitManifestError(f"{path} is not a split manifest: {error!r}; build the set again") from error
        if scheme.sha256 != expected:
            raise SplitManifestError(
                f"{path}: expected the hash {expected}, its content has {scheme.sha256}: it was edited"
            )
        schemes[scheme.name] = scheme
    return schemes


def find_part(schemes: Mapping[str, SplitScheme], split: str) -> tuple[SplitScheme, Part]:
    """The part that ``SCHEME/PART``, or ``PART`` of the default scheme, names.

    Raises:
        MissingSplitError: no such scheme or part; what there is is listed.
    """
    scheme_name, _, part = split.rpartition("/")
    chosen = [s for s in schemes.values() if (s.name == scheme_name if scheme_name else s.is_default)]
    if not chosen or part not in chosen[0].parts:
        known = ", ".join(f"{s.name}/{name}" for s in schemes.values() for name in s.parts)
        raise MissingSplitError(f"no split {split!r}; there are {known} (of the default scheme the part alone will do)")
    return chosen[0], chosen[0].parts[part]
