"""Skin tiles of 12 tissues and four tumours (Kriegsmann et al. 2022, Frontiers in Oncology 12:1022967).

Tiles are named by ``tiles-v2.csv`` with class, split and ``malignicy`` (so spelt). Classes are strings: published
loaders number them differently. The split is the authors', by case as the paper says; where the table has a column of
cases it becomes the patient and is held against that.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from data_prep.tfds.base import About, EvaluationSet, Item, SetError, find_files, warn
from data_prep.tfds.tables import read_table
from plip_jax.data.split_manifest import Part, SplitScheme

TUMOURS = (
    "tumor_skin_epithelial_bcc",
    "tumor_skin_epithelial_sqcc",
    "tumor_skin_melanoma_melanoma",
    "tumor_skin_naevus_naevus",
)
CLASSES = (
    "nontumor_skin_chondraltissue_chondraltissue",
    "nontumor_skin_dermis_dermis",
    "nontumor_skin_elastosis_elastosis",
    "nontumor_skin_epidermis_epidermis",
    "nontumor_skin_hairfollicle_hairfollicle",
    "nontumor_skin_muscle_skeletal",
    "nontumor_skin_necrosis_necrosis",
    "nontumor_skin_nerves_nerves",
    "nontumor_skin_sebaceousglands_sebaceousglands",
    "nontumor_skin_subcutis_subcutis",
    "nontumor_skin_sweatglands_sweatglands",
    "nontumor_skin_vessel_vessel",
    *TUMOURS,
)
_PARTS = {"train": "train", "validation": "val", "test": "test"}
_CASES = 386
# What a column of cases or slides may be called, without blanks, dots and underscores; the paper does not say.
_CASE_COLUMNS = ("case", "caseid", "casenumber", "caseno", "patient", "patientid")
_SLIDE_COLUMNS = ("slide", "slideid", "slidename", "wsi")


class SkinCancer(EvaluationSet, skip_registration=True):
    """The tiles of tiles-v2.csv."""

    about = About(
        title="Skin tiles: H&E patches of 12 tissues and four tumours of the skin",
        homepage="https://doi.org/10.11588/data/7QCR8S",
        licence="not known: read the terms on its page",
        citation="Kriegsmann et al., Frontiers in Oncology 12: 1022967, 2022, doi:10.3389/fonc.2022.1022967",
        layout="data/ with tiles-v2.csv and the tiles, unpacked from data.zip",
        classes=CLASSES,
        verified_counts={"": {"": 129_364}},
        texts=("malignancy",),
    )

    def find_items(self) -> Sequence[Item]:
        """Each row of the table whose tile is there."""
        table = self._find_table()
        items, missing, torn = [], [], []
        for row in read_table(table, ("file", "class", "set")):
            path = find_tile(table, row["file"])
            if path is None:
                missing.append(row["file"])
                continue
            part = _PARTS.get(row["set"].lower())
            if part is None:
                raise SetError(f"{table}: {row['file']}: expected a set of Train, Validation, Test, got {row['set']!r}")
            malignancy = row["class"].partition("_")[0]
            if row.get("malignicy", malignancy) != malignancy:
                torn.append(row["file"])
            items.append(
                Item(
                    row["file"],
                    path.read_bytes,
                    part=part,
                    label=row["class"],
                    patient_id=_first(row, _CASE_COLUMNS),
                    slide_id=_first(row, _SLIDE_COLUMNS),
                    texts={"malignancy": malignancy},
                )
            )
        if missing:
            warn(f"{len(missing):,} tiles of {table.name} are not there, first {missing[0]}")
        if torn:
            warn(f"{len(torn):,} tiles whose malignicy is not that of their class, first {torn[0]}: the class counts")
        self.notes += check_cases(items)
        return items

    def make_schemes(self, items: Sequence[Item]) -> Sequence[SplitScheme]:
        """The authors' split with all classes, the tumours alone, and tumour against the rest."""
        tumours = [item for item in items if item.label in TUMOURS]
        return [
            SplitScheme("as_published", "the authors' split, 16 classes", _split(items), is_default=True),
            SplitScheme("tumour_only", "the authors' split, the four tumours alone", _split(tumours)),
            SplitScheme(
                "malignancy",
                "the authors' split, nontumor against tumor, naevus among them as published",
                {
                    name: Part(part.filenames, tuple(i.texts["malignancy"] for i in items if i.part == name))
                    for name, part in _split(items).items()
                },
            ),
        ]

    def _find_table(self) -> Path:
        tables = find_files(self.manual_dir, "tiles-v2.csv")
        if len(tables) != 1:
            found = ", ".join(map(str, tables)) or "none"
            raise SetError(f"{self.manual_dir}: expected one tiles-v2.csv, found {found}; see {self.about.homepage}")
        return tables[0]


def find_tile(table: Path, file: str) -> Path | None:
    """The tile that a row names, ``data/…``: beside the table, or from the folder above, where the table is in data.

    Raises:
        SetError: the row points out of the archive.
    """
    place = PurePosixPath(file)
    if place.is_absolute() or ".." in place.parts:
        raise SetError(f"{table}: expected a path below the archive, got {file!r}")
    for path in (table.parent.parent / place, table.parent / place):
        if path.is_file():
            return path
    return None


def _first(row: Mapping[str, str], columns: Sequence[str]) -> str:
    plain = {re.sub(r"[\s._-]", "", name).lower(): value for name, value in row.items()}
    return next((plain[column] for column in columns if plain.get(column)), "")


def check_cases(items: Sequence[Item]) -> list[str]:
    """What is to be said of the cases: none known, another number than the paper's, some in several parts."""
    parts_of: dict[str, set[str]] = {}
    for item in items:
        parts_of.setdefault(item.patient_id, set()).add(item.part)
    parts_of.pop("", None)
    if not parts_of:
        return ["the table has no column of cases: no patient is known"]
    notes = []
    if len(parts_of) != _CASES:
        notes.append(f"expected {_CASES} cases, as the paper has it, got {len(parts_of)}")
    shared = [case for case, parts in parts_of.items() if len(parts) > 1]
    if shared:
        notes.append(f"{len(shared)} cases are in more than one part of the authors' split, first {shared[0]}")
    return notes


def _split(items: Sequence[Item]) -> dict[str, Part]:
    parts = {name: tuple(i.filename for i in items if i.part == name) for name in _PARTS.values()}
    return {name: Part(filenames) for name, filenames in parts.items() if filenames}
