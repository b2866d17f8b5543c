"""SICAPv2: Gleason grades of prostate biopsies (Silva-Rodriguez et al. 2020), split by patient by its authors.

The sheets flag each patch with NC, G3, G4, G5 and, beside G4, G4C (cribriform). Published users turn flags into a
label by different rules, so each rule is a scheme. The images that no sheet lists (6,702 of 18,783 in version 2) are
left out. The label that is stored is the first flag in the order of the grades.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from data_prep.tfds.base import About, EvaluationSet, Item, SetError, find_files, find_folder, warn
from data_prep.tfds.spreadsheets import read_spreadsheet
from plip_jax.data.split_manifest import Part, SplitScheme

CLASSES = ("NC", "G3", "G4", "G5")  # graded: quadratic kappa depends on this order
_CRIBRIFORM = "G4C"
_FLAGS = (*CLASSES, _CRIBRIFORM)
_FOLDS = ("Val1", "Val2", "Val3", "Val4")


@dataclasses.dataclass(frozen=True)
class _Rule:
    """How flags become labels: which rows it keeps, and what it says of itself."""

    keeps: Callable[[Item], bool]
    description: str


def _primary(item: Item) -> list[str]:
    return [flag for flag in item.texts["flags"].split() if flag != _CRIBRIFORM]


RULES: Mapping[str, _Rule] = {
    "single": _Rule(lambda item: len(_primary(item)) == 1, "patches with exactly one of NC, G3, G4, G5; G4C not read"),
    "first": _Rule(lambda item: bool(item.label), "the first flag of NC, G3, G4, G5; G4C not read"),
    "multi": _Rule(lambda item: bool(item.label_set), "every flag (label_set), G4C counted as G4"),
}


class Sicapv2(EvaluationSet, skip_registration=True):
    """Train and test of partition/Test; the folds Val1 to Val4 split its train part."""

    about = About(
        title="SICAPv2: H&E patches of prostate biopsies with Gleason grades",
        homepage="https://data.mendeley.com/datasets/9xxm58dvs3/2",
        licence="CC BY 4.0 (as others note it of Mendeley Data)",
        citation="Silva-Rodriguez et al., Computer Methods and Programs in Biomedicine 195: 105637, 2020, "
        "doi:10.1016/j.cmpb.2020.105637",
        layout="SICAPv2/ with images/, partition/ and wsi_labels.xlsx, unpacked from SICAPv2.zip",
        classes=CLASSES,
        verified_counts={
            "train": {"": 9959, "slides": 124},
            "test": {"": 2122, "slides": 31},
            "": {"NC": 4417, "G3": 2222, "G4": 4494, "G5": 948, "": 12_081, "slides": 155},
        },
        texts=("flags",),
    )

    @cached_property
    def partition(self) -> Path:
        """The folder of the sheets."""
        return find_folder(self.manual_dir, "partition")

    def find_items(self) -> Sequence[Item]:
        """Each image that Test/Train.xlsx or Test/Test.xlsx lists."""
        images = {path.name: path for path in find_files(find_folder(self.partition.parent, "images"), "*.jpg")}
        patients = self._read_patients()
        items, missing = [], []
        for part in ("train", "test"):
            for name, flags in self._read_sheet("Test", f"{part.capitalize()}.xlsx").items():
                if name not in images:
                    missing.append(name)
                    continue
                slide = name.split("_")[0]
                primary = [flag for flag in flags if flag != _CRIBRIFORM]
                items.append(
                    Item(
                        name,
                        images[name].read_bytes,
                        part=part,
                        label=primary[0] if primary else "",
                        label_set=tuple(c for c in CLASSES if c in flags or (c == "G4" and _CRIBRIFORM in flags)),
                        patient_id=patients.get(slide, ""),
                        slide_id=slide,
                        texts={"flags": " ".join(flags)},
                    )
                )
        if missing:
            warn(f"{len(missing):,} images that the sheets list are not in images/, first {missing[0]}")
        return items

    def make_schemes(self, items: Sequence[Item]) -> Sequence[SplitScheme]:
        """The published split by each rule; the published folds by each rule, with the same test part."""
        by_name = {item.filename: item for item in items}
        test = [item for item in items if item.part == "test"]
        splits = {"": {"train": [item for item in items if item.part == "train"], "test": test}}
        for fold in _FOLDS:
            if not (self.partition / "Validation" / fold).is_dir():
                self.notes.append(f"partition/Validation/{fold} is not there: its schemes are left out")
                continue
            sheets = {part: self._read_sheet("Validation", fold, f"{sheet}.xlsx") for part, sheet in _FOLD_SHEETS}
            listed = {part: [by_name[name] for name in names if name in by_name] for part, names in sheets.items()}
            splits[f"_{fold.lower()}"] = {**listed, "test": test}
        return [
            _make_scheme(f"{name}{suffix}", rule, parts, is_default=name == "single" and not suffix)
            for suffix, parts in splits.items()
            for name, rule in RULES.items()
        ]

    def _read_sheet(self, *place: str) -> dict[str, tuple[str, ...]]:
        """Image name -> its flags."""
        path = self.partition.joinpath(*place)
        sheet = {}
        for row in read_spreadsheet(path, ("image_name", *_FLAGS)):
            odd = [f"{flag} {row[flag]!r}" for flag in _FLAGS if row[flag] not in ("0", "1")]
            if odd:
                raise SetError(f"{path}: {row['image_name']}: expected 0 or 1, got {', '.join(odd)}")
            sheet[row["image_name"]] = tuple(flag for flag in _FLAGS if row[flag] == "1")
        return sheet

    def _read_patients(self) -> dict[str, str]:
        """Slide -> patient."""
        path = self.partition.parent / "wsi_labels.xlsx"
        if not path.is_file():
            self.notes.append(f"{path} is not there: the slide is the highest unit that is known")
            return {}
        return {row["slide_id"]: row["patient_id"] for row in read_spreadsheet(path, ("slide_id", "patient_id"))}


_FOLD_SHEETS = (("train", "Train"), ("val", "Test"))


def _make_scheme(name: str, rule: _Rule, parts: Mapping[str, Sequence[Item]], *, is_default: bool) -> SplitScheme:
    kept = {part: Part(tuple(item.filename for item in items if rule.keeps(item))) for part, items in parts.items()}
    dropped = ", ".join(f"{len(items) - len(kept[part].filenames):,} of {part}" for part, items in parts.items())
    description = f"as published, by patient; {rule.description}; dropped: {dropped}"
    return SplitScheme(name, description, {part: p for part, p in kept.items() if p.filenames}, is_default=is_default)
