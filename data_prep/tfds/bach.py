"""BACH, the microscopy part: four classes of breast tissue (Aresta et al. 2019, Medical Image Analysis 56).

The archive names no patient; a sheet that was published beside it does, for part of the images. The split of kaiko's
eva, by place in the sorted list of all 400, keeps those patients apart.
"""

from collections.abc import Sequence

from data_prep.tfds.base import About, EvaluationSet, Item, find_files, find_folder, warn
from data_prep.tfds.spreadsheets import read_spreadsheet
from plip_jax.data.split_manifest import Part, SplitScheme

CLASSES = ("Benign", "InSitu", "Invasive", "Normal")
_IMAGES_A_CLASS = 100
_SHEET = "ICIAR2018_BACH_dataset_micro_patient.xlsx"
# eva's test part: places [first, last) in the 400 images, sorted by class folder, then name.
_EVA_TEST = ((41, 59), (60, 90), (139, 169), (240, 258), (260, 273), (345, 368))


class Bach(EvaluationSet, skip_registration=True):
    """The labelled images of the challenge; its test set was published without labels."""

    about = About(
        title="BACH: H&E microscopy images of breast tissue, normal to invasive",
        homepage="https://zenodo.org/records/3632035",
        licence="CC BY-NC-ND 4.0: no commercial use, no altered copies may be shared",
        citation="Aresta et al., Medical Image Analysis 56: 122-139, 2019, doi:10.1016/j.media.2019.05.010",
        layout="ICIAR2018_BACH_Challenge/Photos/{Benign,InSitu,Invasive,Normal}, and the sheet of patients "
        f"{_SHEET} where you have it",
        classes=CLASSES,
        # One loader asserts 400, another's page says 408, one list has 399.
        unverified_counts={"": dict.fromkeys(CLASSES, _IMAGES_A_CLASS)},
    )

    def find_items(self) -> Sequence[Item]:
        """Each image below Photos, by class folder, then name."""
        photos = find_folder(self.manual_dir, "Photos")
        patients = self._read_patients()
        return [
            Item(f"{label}/{path.name}", path.read_bytes, label=label, patient_id=patients.get(path.name.lower(), ""))
            for label in CLASSES
            for path in find_files(find_folder(photos, label), "*.tif")
        ]

    def make_schemes(self, items: Sequence[Item]) -> Sequence[SplitScheme]:
        """The split of eva, where all 400 images are there; else one part, ``test``."""
        whole = SplitScheme("all", "every image to test, for zero-shot", {"test": Part(_names(items))})
        if any(sum(item.label == label for item in items) != _IMAGES_A_CLASS for label in CLASSES):
            self.notes.append(
                f"eva's split goes by place in {_IMAGES_A_CLASS} images a class: there are others, so it is left out"
            )
            return [SplitScheme(whole.name, whole.description, whole.parts, is_default=True)]
        test = [item for first, last in _EVA_TEST for item in items[first:last]]
        tested = set(_names(test))
        train = [item for item in items if item.filename not in tested]
        shared = {item.patient_id for item in train} & {item.patient_id for item in test} - {""}
        if shared:
            warn(f"eva's split has patients on both sides: {', '.join(sorted(shared))}")
        known = sum(bool(item.patient_id) for item in items)
        description = (
            "eva's, disjoint by patient: 268 to train, 132 to test by place in the sorted list; the patient of "
            f"{known} of 400 images is known here"
        )
        parts = {"train": Part(_names(train)), "test": Part(_names(test))}
        return [SplitScheme("eva", description, parts, is_default=True), whole]

    def _read_patients(self) -> dict[str, str]:
        """File name -> patient, for the images that the sheet lists; none without the sheet."""
        sheets = find_files(self.manual_dir, _SHEET)
        if not sheets:
            self.notes.append(f"{_SHEET} is not there: no patient is known")
            return {}
        rows = read_spreadsheet(sheets[0], ("Histology", "Patient"))
        return {row["Histology"].lower(): row["Patient"] for row in rows}


def _names(items: Sequence[Item]) -> tuple[str, ...]:
    return tuple(item.filename for item in items)
