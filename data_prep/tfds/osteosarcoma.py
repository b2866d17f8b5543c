"""Osteosarcoma Tumor Assessment: viable and necrotic tumour (Leavey et al. 2019, The Cancer Imaging Archive).

Four patients only: Case 3, Case 4, Case 48 and P9, of whom P9 shows no tumour. The table names images with blanks,
``Case 48 - P5 C13-24121-14200``, the files with dashes, ``Case-48-P5-C13-24121-14200.jpg``. 53 images are of viable and
necrotic tumour at once: users of the set count them as viable or drop them, so both are schemes.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from data_prep.tfds.base import About, EvaluationSet, Item, SetError, find_files, warn
from data_prep.tfds.tables import read_table
from plip_jax.data.split_manifest import Part, SplitScheme

CLASSES = ("Non-Tumor", "Viable", "Non-Viable-Tumor")
_MIXED = "viable: non-viable"
_BY_SPELLING = {name.lower(): name for name in (*CLASSES, _MIXED)}
_TABLE = "ML_Features_1144.csv"
_NAME_COLUMNS = ("image.name", "image_name")
_SUFFIXES = (".jpg", ".jpeg", ".tif", ".tiff", ".png")
_PLACE = re.compile(r"(?P<slide>(?P<patient>Case-\d+|P\d+)(?:-[A-Z]\d+)+)-\d+-\d+")
# The only patient with scores of images of each class, so the only one whom a test can be made of alone.
_TEST_PATIENT = "Case 4"
_FEW = "four patients: an interval over images is far too narrow, one over patients has four units at most"


class Osteosarcoma(EvaluationSet, skip_registration=True):
    """Images of both training sets by the feature table; the features are not read."""

    about = About(
        title="Osteosarcoma Tumor Assessment: H&E patches of non-tumour, viable and necrotic tumour",
        homepage="https://doi.org/10.7937/tcia.2019.bvhjhdas",
        licence="CC BY 3.0",
        citation="Leavey et al., Osteosarcoma data from UT Southwestern/UT Dallas for Viable and Necrotic Tumor "
        "Assessment, The Cancer Imaging Archive, 2019, doi:10.7937/tcia.2019.bvhjhdas",
        layout=f"Training-Set-1/, Training-Set-2/ and {_TABLE}",
        classes=CLASSES,
        verified_counts={"": {"": 1144, "patients": 4}},
        unverified_counts={"": {"Non-Tumor": 536, "Viable": 292, "Non-Viable-Tumor": 263}},  # and 53 mixed, no label
        texts=("classification",),
    )

    def find_items(self) -> Sequence[Item]:
        """Each row of the table with its image."""
        files: dict[str, list[Path]] = {}
        for path in find_files(self.manual_dir, "*"):
            if path.suffix.lower() in _SUFFIXES:
                files.setdefault(with_dashes(path.stem), []).append(path)
        items, missing, nameless = [], [], []
        for name, classification in self._read_table():
            path = find_image(name, files)
            if path is None:
                missing.append(name)
                continue
            place = _PLACE.match(with_dashes(name))
            if place is None:
                nameless.append(name)
            items.append(
                Item(
                    path.name,
                    path.read_bytes,
                    label=classification if classification in CLASSES else "",
                    label_set=("Viable", "Non-Viable-Tumor") if classification == _MIXED else (classification,),
                    patient_id=place["patient"].replace("-", " ") if place else "",
                    slide_id=place["slide"] if place else "",
                    texts={"classification": classification},
                )
            )
        if missing:
            warn(f"{len(missing):,} images of the table are not there, first {missing[0]!r}")
        if nameless:
            warn(f"{len(nameless):,} names tell no patient, first {nameless[0]!r}: expected 'Case 3 A10-10547-25283'")
        return items

    def make_schemes(self, items: Sequence[Item]) -> Sequence[SplitScheme]:
        """Mixed images as viable or dropped; all to test, or one patient to test and the others to train."""
        self.notes.append(_FEW)
        rules = {
            "mixed_as_viable": ("images of viable and necrotic tumour count as viable", list(items)),
            "mixed_dropped": ("images of viable and necrotic tumour are dropped", [i for i in items if i.label]),
        }
        schemes = []
        for name, (rule, kept) in rules.items():
            description = f"{rule}: {len(kept):,} of {len(items):,} images, all to test; {_FEW}"
            whole = {"test": _part(kept)}
            schemes.append(SplitScheme(name, description, whole, is_default=name == "mixed_as_viable"))
            test = [item for item in kept if item.patient_id == _TEST_PATIENT]
            train = [item for item in kept if item.patient_id not in ("", _TEST_PATIENT)]
            if test and train:
                description = f"{rule}; {_TEST_PATIENT} to test, the other patients to train: one unit, so no interval"
                parts = {"train": _part(train), "test": _part(test)}
                schemes.append(SplitScheme(f"{name}_by_patient", description, parts))
        return schemes

    def _read_table(self) -> list[tuple[str, str]]:
        """Image name and classification of each row."""
        tables = find_files(self.manual_dir, _TABLE)
        if len(tables) != 1:
            found = ", ".join(map(str, tables)) or "none"
            raise SetError(
                f"{self.manual_dir}: expected one {_TABLE}, found {found}; get it from {self.about.homepage}"
            )
        rows = []
        for row in read_table(tables[0], ("classification",)):
            name = next((row[column] for column in _NAME_COLUMNS if row.get(column)), "")
            classification = _BY_SPELLING.get(row["classification"].lower())
            if not name or classification is None:
                raise SetError(
                    f"{tables[0]}: expected a name in the column {' or '.join(_NAME_COLUMNS)} and a classification of "
                    f"{', '.join(_BY_SPELLING.values())}, got {name!r} and {row['classification']!r}"
                )
            rows.append((name, classification))
        return rows


def with_dashes(name: str) -> str:
    """A name with every run of blanks and dashes as one dash: how the table's names become the files'."""
    return re.sub(r"[\s-]+", "-", name.strip())


def find_image(name: str, files: dict[str, list[Path]]) -> Path | None:
    """The file of a row: that of its name, or, for files with something after the name, the one that begins with it.

    Args:
        name: as the table has it.
        files: by stem, `with_dashes`.

    Raises:
        SetError: two files match.
    """
    wanted = with_dashes(name)
    found = files.get(wanted) or [
        path
        for stem, paths in files.items()
        if stem.startswith(wanted) and not stem[len(wanted)].isdigit()  # a longer number is another image
        for path in paths
    ]
    if len(found) > 1:
        raise SetError(f"{name!r} is the name of {len(found)} files: {', '.join(map(str, found))}; keep the right one")
    return found[0] if found else None


def _part(items: Sequence[Item]) -> Part:
    """The items, with mixed ones as viable."""
    return Part(tuple(item.filename for item in items), tuple(item.label or "Viable" for item in items))
