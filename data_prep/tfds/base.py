"""What every evaluation set's builder shares: items, features, counts that are checked, metadata, split manifests.

A set is a class with an `about` (names, licence, counts) and two methods: `find_items` lists what the archive holds
without decoding it, `make_schemes` says how it is split. The images are stored once, in the TFDS split ``images``, as
ArrayRecord and without TensorFlow; the splits are manifests of file names (`plip_jax.data.split_manifest`).
"""

import abc
import collections
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from data_prep.shards import upright_rgb
from plip_jax.data.split_manifest import SplitScheme

STORED_SPLIT = "images"
# What archivers and file managers leave behind.
_DEBRIS = ("__MACOSX", "Thumbs.db", ".DS_Store")
_PRINTED_FAULTS = 20


class SetError(ValueError):
    """An archive is not what its authors publish; the message says what was found, what was expected, what to do."""


@dataclasses.dataclass(frozen=True)
class About:
    """What is known of a set before it is opened.

    Attributes:
        title: in words.
        homepage: where to get it.
        licence: as far as it is known.
        citation: of the paper.
        layout: what ``manual_dir`` must hold.
        classes: in class order; empty for a retrieval set.
        verified_counts: class -> examples, per part of the archive, read in published lists or papers: a build that is
            off fails. "" as the class is the sum, "patients" and "slides" are how many of these there are; "" as the
            part is the whole set.
        unverified_counts: the same from memory: a build that is off warns.
        verified_schemes: class -> examples of ``SCHEME/PART``, or of all parts of ``SCHEME``, as published; checked
            where the scheme is there.
        texts: names of features beside the common ones, each a text.
    """

    title: str
    homepage: str
    licence: str
    citation: str
    layout: str
    classes: tuple[str, ...]
    verified_counts: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    unverified_counts: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    verified_schemes: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    texts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Item:
    """One image of the archive, not read yet.

    Attributes:
        filename: unique in the set; what manifests and reports call it.
        read: its encoded file, or an encoded crop.
        part: of the archive that counts are given for.
        label: one of the classes; "" for none.
        label_set: every class that a multi-label set sees in it.
        captions: of a retrieval set.
        patient_id: its patient; "" where it is not known.
        slide_id: its slide, likewise.
        group_id: any other thing that makes items alike, likewise.
        texts: values of `About.texts`.
    """

    filename: str
    read: Callable[[], bytes]
    part: str = ""
    label: str = ""
    label_set: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    patient_id: str = ""
    slide_id: str = ""
    group_id: str = ""
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)


class EvaluationSet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder of one evaluation set; see the module.

    Sets are not registered with TFDS by name: two of them share their name with TFDS's own, which need TensorFlow.

    Attributes:
        notes: what `find_items` and `make_schemes` have to say of the archive; the build prints them.
        more_counts: what `find_items` counted beyond its items (source images, clusters), checked as their counts are.
    """

    VERSION = tfds.core.Version("1.0.0")
    about: ClassVar[About]

    def __init__(self, *, data_dir: str | Path, manual_dir: str | Path, allow_counts: bool = False) -> None:
        """Open the archive's folder; nothing is read yet.

        Args:
            data_dir: where the set is built, below its name.
            manual_dir: what was unpacked there.
            allow_counts: build although verified counts are off (a part of the archive); it warns.

        Raises:
            SetError: no such folder.
        """
        self.manual_dir = Path(manual_dir)
        if not self.manual_dir.is_dir():
            raise SetError(
                f"{manual_dir}: expected a folder with {self.about.layout}; get it from {self.about.homepage}"
            )
        self.allow_counts = allow_counts
        self.notes: list[str] = []
        self.more_counts: dict[str, dict[str, int]] = {}
        self._items: list[Item] | None = None
        self._schemes: list[SplitScheme] | None = None
        super().__init__(data_dir=data_dir, file_format="array_record")

    @abc.abstractmethod
    def find_items(self) -> Sequence[Item]:
        """List the archive's images in a fixed order.

        Raises:
            SetError: the layout is not the published one.
        """

    @abc.abstractmethod
    def make_schemes(self, items: Sequence[Item]) -> Sequence[SplitScheme]:
        """The published split and, where that leaks, a corrected one; one of them is the default."""

    @property
    def items(self) -> list[Item]:
        """What `find_items` lists, checked: no name twice, known labels, the counts.

        Raises:
            SetError: a check failed.
        """
        if self._items is None:
            items = list(self.find_items())
            if not items:
                raise SetError(f"{self.manual_dir} holds no images; expected {self.about.layout}")
            names = collections.Counter(item.filename for item in items)
            twice = [name for name, count in names.items() if count > 1]
            if twice:
                raise SetError(f"{len(twice)} file names are there twice, first {twice[0]!r}: unpack the archive once")
            unknown = sorted(
                {label for i in items for label in (i.label, *i.label_set) if label} - {*self.about.classes}
            )
            if unknown:
                raise SetError(f"classes {', '.join(unknown)}: expected {', '.join(self.about.classes)}")
            self._check_counts(items)
            self._items = items
        return self._items

    @property
    def schemes(self) -> list[SplitScheme]:
        """What `make_schemes` makes of the items, checked: file names, one default, the published counts.

        Raises:
            SetError: a check failed.
        """
        if self._schemes is None:
            schemes = list(self.make_schemes(self.items))
            defaults = [scheme.name for scheme in schemes if scheme.is_default]
            if len(defaults) != 1:
                raise SetError(f"{self.name}: expected one default scheme, got {', '.join(defaults) or 'none'}")
            label_of = {item.filename: item.label for item in self.items}
            found: dict[str, collections.Counter[str]] = {}
            for scheme in schemes:
                found[scheme.name] = collections.Counter()
                for name, part in scheme.parts.items():
                    unknown = [filename for filename in part.filenames if filename not in label_of]
                    if unknown:
                        raise SetError(f"{scheme.name}/{name} names {len(unknown)} unknown files, first {unknown[0]!r}")
                    labels = part.labels or [label_of[filename] for filename in part.filenames]
                    found[f"{scheme.name}/{name}"] = collections.Counter(labels)
                    found[scheme.name].update(labels)
            for counts in found.values():
                counts[""] = sum(counts.values())
            names = {scheme.name for scheme in schemes}
            expected = {at: n for at, n in self.about.verified_schemes.items() if at.split("/")[0] in names}
            self._report(verified=count_faults(found, expected), unverified=[])
            self._schemes = schemes
        return self._schemes

    def _check_counts(self, items: Sequence[Item]) -> None:
        found: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        units: dict[tuple[str, str], set[str]] = collections.defaultdict(set)
        for item in items:
            for part in {item.part, ""}:
                found[part][item.label] += 1
                units[part, "patients"].add(item.patient_id)
                units[part, "slides"].add(item.slide_id)
        for counts in found.values():
            counts[""] = sum(counts.values())
        for (part, unit), names in units.items():
            found[part][unit] = len(names - {""})
        for part, more in self.more_counts.items():
            found[part] = collections.Counter({"": sum(more.values())} | dict(more))
        present = {part: counts for part, counts in self.about.unverified_counts.items() if part in found}
        self._report(verified=count_faults(found, self.about.verified_counts), unverified=count_faults(found, present))

    def _report(self, *, verified: Sequence[str], unverified: Sequence[str]) -> None:
        if unverified:
            warn(f"counts that were never verified differ: {'; '.join(unverified[:_PRINTED_FAULTS])}")
        if verified and not self.allow_counts:
            raise SetError(
                f"{self.manual_dir}: {'; '.join(verified[:_PRINTED_FAULTS])}. The archive is not whole, or is another "
                f"version: get it from {self.about.homepage}, or build what is there with --allow-counts"
            )
        if verified:
            warn(f"verified counts differ, built as asked: {'; '.join(verified[:_PRINTED_FAULTS])}")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        features: dict[str, Any] = {"image": tfds.features.Image(shape=(None, None, 3))}
        if self.about.classes:
            features |= {
                "label": tfds.features.ClassLabel(names=list(self.about.classes)),
                "label_set": tfds.features.Sequence(text()),
            }
        features |= {"captions": tfds.features.Sequence(text())}
        features |= {name: text() for name in ("filename", "patient_id", "slide_id", "group_id", *self.about.texts)}
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.about.title,
            homepage=self.about.homepage,
            citation=self.about.citation,
            license=self.about.licence,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(licence=self.about.licence, source=self.about.homepage),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        return {STORED_SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for item in self.items:
            example: dict[str, Any] = {
                "image": upright_rgb(item.read(), name=item.filename),
                "captions": list(item.captions),
                "filename": item.filename,
                "patient_id": item.patient_id,
                "slide_id": item.slide_id,
                "group_id": item.group_id,
                **{name: item.texts.get(name, "") for name in self.about.texts},
            }
            if self.about.classes:
                example |= {"label": item.label or -1, "label_set": list(item.label_set)}  # -1: TFDS's "no label"
            yield item.filename, example


def count_faults(found: Mapping[str, Mapping[str, int]], expected: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Say which class of which part is off, and by how many."""
    faults = []
    for part, counts in expected.items():
        for label, count in counts.items():
            got = found.get(part, {}).get(label, 0)
            if got != count:
                where = f"{part} {label or 'in all'}".strip()
                faults.append(f"{where}: expected {count:,}, got {got:,} ({got - count:+,})")
    return faults


def find_files(root: Path, pattern: str) -> list[Path]:
    """Files at any depth that match a glob, sorted, without what archivers leave behind."""
    return sorted(
        path
        for path in root.rglob(pattern)
        if path.is_file() and not any(part in _DEBRIS or part.startswith("._") for part in path.relative_to(root).parts)
    )


def find_folder(root: Path, name: str) -> Path:
    """The folder of this name at any depth: the root itself, or the deepest of nested ones (``X/X``).

    Raises:
        SetError: none, or several that are not nested in each other; what was found is listed.
    """
    found = [root] if root.name == name else []
    found += [path for path in sorted(root.rglob(name)) if path.is_dir() and "__MACOSX" not in path.parts]
    if not found:
        listed = ", ".join(sorted(entry.name for entry in root.iterdir())[:10]) or "nothing"
        raise SetError(f"{root}: expected a folder {name!r} at any depth, found {listed}")
    deepest = max(found, key=lambda path: len(path.parts))
    if any(path not in (deepest, *deepest.parents) for path in found):
        raise SetError(f"{root}: expected one folder {name!r}, found {', '.join(map(str, found))}: name the right one")
    return deepest


def warn(message: str) -> None:
    """Print a warning; the build goes on."""
    print(f"warning: {message}", file=sys.stderr)
