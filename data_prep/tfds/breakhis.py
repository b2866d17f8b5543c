"""BreaKHis: eight tumour types of the breast at four magnifications (Spanhol et al. 2016, IEEE TBME 63:1455).

Class, type, patient and magnification are read from the name, ``SOB_B_TA-14-3411F-40-001.png``: procedure, benign or
malignant, type, year, patient, magnification, number. Images of one patient are alike, so every split is by patient.
"""

import hashlib
import re
from collections.abc import Sequence

from data_prep.tfds.base import About, EvaluationSet, Item, SetError, find_files, warn
from plip_jax.data.split_manifest import Part, SplitScheme

CLASSES = ("benign", "malignant")
MAGNIFICATIONS = ("40X", "100X", "200X", "400X")
TYPES = {
    "A": "adenosis",
    "F": "fibroadenoma",
    "PT": "phyllodes_tumor",
    "TA": "tubular_adenoma",
    "DC": "ductal_carcinoma",
    "LC": "lobular_carcinoma",
    "MC": "mucinous_carcinoma",
    "PC": "papillary_carcinoma",
}
_NAME = re.compile(
    rf"(?P<slide>SOB_(?P<side>[BM])_(?P<type>{'|'.join(TYPES)})-\d+-(?P<patient>[0-9A-Z]+))-(?P<mag>40|100|200|400)-\d+\.png"
)
# eva's benchmark, THUNDER's too: these types at 40X, with these patients held out; 1,132 and 339 images.
_EVA_TYPES = ("tubular_adenoma", "mucinous_carcinoma", "fibroadenoma", "ductal_carcinoma")
_EVA_TEST = frozenset(
    (
        "18842D",
        "19979",
        "15275",
        "15792",
        "16875",
        "3909",
        "5287",
        "16716",
        "2773",
        "5695",
        "16184CD",
        "23060CD",
        "21998CD",
        "21998EF",
    )
)
_SEED = 0
_TEST_SHARE = 0.3


class Breakhis(EvaluationSet, skip_registration=True):
    """All magnifications; a part of the set is a magnification."""

    about = About(
        title="BreaKHis: H&E images of benign and malignant breast tumours at four magnifications",
        homepage="https://web.inf.ufpr.br/vri/databases/breast-cancer-histopathological-database-breakhis/",
        licence="CC BY 4.0 (as kaiko's eva states it)",
        citation="Spanhol et al., IEEE Transactions on Biomedical Engineering 63(7): 1455-1462, 2016, "
        "doi:10.1109/TBME.2015.2496264",
        layout="BreaKHis_v1/, unpacked from BreaKHis_v1.tar.gz",
        classes=CLASSES,
        # The 82 patients of the paper are its 82 folders: one id, 13412, has a folder as DC and one as LC.
        verified_counts={"40X": {"": 1995}, "": {"slides": 82}},
        unverified_counts={
            "40X": {"benign": 625, "malignant": 1370},
            "100X": {"benign": 644, "malignant": 1437},
            "200X": {"benign": 623, "malignant": 1390},
            "400X": {"benign": 588, "malignant": 1232},
            "": {"": 7909, "patients": 81},
        },
        verified_schemes={"eva/train": {"": 1132}, "eva/test": {"": 339}},
        texts=("magnification", "type"),
    )

    def find_items(self) -> Sequence[Item]:
        """Each image by its name, at any depth."""
        items, displaced = [], []
        for path in find_files(self.manual_dir, "*.png"):
            name = _NAME.fullmatch(path.name)
            if name is None:
                if path.parent.name in MAGNIFICATIONS:
                    raise SetError(f"{path}: expected a name like SOB_B_TA-14-3411F-40-001.png")
                continue
            magnification = f"{name['mag']}X"
            if path.parent.name != magnification:
                displaced.append(path)
            items.append(
                Item(
                    path.name,
                    path.read_bytes,
                    part=magnification,
                    label="benign" if name["side"] == "B" else "malignant",
                    patient_id=name["patient"],
                    slide_id=name["slide"],
                    texts={"magnification": magnification, "type": TYPES[name["type"]]},
                )
            )
        if displaced:
            warn(f"{len(displaced)} images lie in another magnification's folder than they name, first {displaced[0]}")
        return items

    def make_schemes(self, items: Sequence[Item]) -> Sequence[SplitScheme]:
        """By patient, in all and at each magnification; eva's subset with its four types as classes."""
        held_out = choose_test_patients(items)
        description = (
            "by patient: the test patients of eva for its four types, for the others 30 % of each type's patients in "
            f"the order of their hash (seed {_SEED})"
        )
        schemes = [SplitScheme("by_patient", description, _split(items, held_out), is_default=True)]
        for magnification in MAGNIFICATIONS:
            mine = [item for item in items if item.part == magnification]
            if mine:
                parts = _split(mine, held_out)
                schemes.append(SplitScheme(f"by_patient_{magnification}", f"{description}; {magnification}", parts))
        subset = [item for item in items if item.part == "40X" and item.texts["type"] in _EVA_TYPES]
        if subset:
            schemes.append(_make_eva_scheme(subset))
        return schemes


def _make_eva_scheme(items: Sequence[Item]) -> SplitScheme:
    type_of = {item.filename: item.texts["type"] for item in items}
    parts = {
        name: Part(part.filenames, tuple(type_of[filename] for filename in part.filenames))
        for name, part in _split(items, _EVA_TEST).items()
    }
    description = "eva's: 40X, four types that are the classes, its test patients (which it calls validation)"
    return SplitScheme("eva", description, parts)


def choose_test_patients(items: Sequence[Item]) -> frozenset[str]:
    """The patients to test on: eva's among those with one of its types, a seeded share of each other type's.

    The order is that of a hash, so that it is the same on every machine and version.
    """
    types: dict[str, set[str]] = {}
    for item in items:
        types.setdefault(item.patient_id, set()).add(item.texts["type"])
    test = {patient for patient in types if patient in _EVA_TEST}
    others = {patient: found for patient, found in types.items() if not found & set(_EVA_TYPES)}
    for type_name in TYPES.values():
        # A patient of two types counts with the first by name.
        mine = [patient for patient, found in others.items() if min(found) == type_name]
        mine.sort(key=lambda patient: hashlib.sha256(f"{_SEED}:{patient}".encode()).hexdigest())
        test.update(mine[: round(_TEST_SHARE * len(mine))])
    return frozenset(test)


def _split(items: Sequence[Item], held_out: frozenset[str]) -> dict[str, Part]:
    parts = {
        "train": [item.filename for item in items if item.patient_id not in held_out],
        "test": [item.filename for item in items if item.patient_id in held_out],
    }
    return {name: Part(tuple(filenames)) for name, filenames in parts.items() if filenames}
