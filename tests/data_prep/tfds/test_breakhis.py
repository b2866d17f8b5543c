"""The BreaKHis builder on an archive that the test writes in the published layout, one folder deeper in places."""

from pathlib import Path

import pytest
from PIL import Image

from data_prep.tfds.base import SetError
from data_prep.tfds.breakhis import Breakhis
from data_prep.tfds.build import build
from plip_jax.data.examples import open_examples

FOLDERS = {"B": "benign", "M": "malignant"}
# side, type's folder, type, patient; 13412 is under two types; eva tests on 15275 and 18842D.
SLIDES = [
    ("B", "tubular_adenoma", "TA", "3411F"),
    ("B", "tubular_adenoma", "TA", "15275"),
    ("B", "adenosis", "A", "22549AB"),
    ("B", "adenosis", "A", "22549CD"),
    ("B", "adenosis", "A", "22549G"),
    ("M", "ductal_carcinoma", "DC", "13412"),
    ("M", "ductal_carcinoma", "DC", "18842D"),
    ("M", "lobular_carcinoma", "LC", "13412"),
]


def write_archive(folder: Path) -> Path:
    root = folder / "BreaKHis_v1" / "histology_slides" / "breast"
    for place, (side, type_folder, type_name, patient) in enumerate(SLIDES):
        slide = root / FOLDERS[side] / "SOB" / type_folder / f"SOB_{side}_{type_name}_14-{patient}"
        if place == 1:
            slide = slide / slide.name  # unpacked one level deeper
        for magnification in (40, 400):
            path = slide / f"{magnification}X" / f"SOB_{side}_{type_name}-14-{patient}-{magnification}-001.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (14, 9), (place, magnification % 256, 0)).save(path)
    Image.new("RGB", (4, 4)).save(root / "count.png")
    debris = folder / "__MACOSX" / "40X" / "._SOB_B_TA-14-3411F-40-001.png"
    debris.parent.mkdir(parents=True)
    debris.write_bytes(b"not an image")
    return folder


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    return write_archive(tmp_path_factory.mktemp("breakhis"))


@pytest.fixture(scope="module")
def built(archive, tmp_path_factory) -> Path:
    return build("breakhis", archive, tmp_path_factory.mktemp("out"), allow_counts=True)


def test_everything_is_read_from_the_name(built):
    examples = {e.id: e for part in ("train", "test") for e in open_examples(built, part)}
    assert len(examples) == 16
    example = examples["SOB_B_TA-14-3411F-40-001.png"]
    assert (example.label, example.patient_id, example.slide_id) == ("benign", "3411F", "SOB_B_TA-14-3411F")
    assert example.attributes == {"magnification": "40X", "type": "tubular_adenoma"}
    both = [examples[f"SOB_M_{name}-14-13412-400-001.png"] for name in ("DC", "LC")]
    assert [(e.label, e.patient_id) for e in both] == [("malignant", "13412")] * 2
    assert both[0].slide_id != both[1].slide_id


def test_no_patient_is_on_both_sides_and_eva_patients_are_tested_on(built):
    for scheme in ("by_patient", "by_patient_40X", "by_patient_400X"):
        train, test = (open_examples(built, f"{scheme}/{part}")[:] for part in ("train", "test"))
        patients = {e.patient_id for e in test}
        assert not patients & {e.patient_id for e in train}
        assert patients >= {"15275", "18842D"}
        assert len([p for p in patients if p.startswith("22549")]) == 1  # 30 % of three patients of adenosis
        assert len(patients) == 3
    assert {e.attributes["magnification"] for e in (*train, *test)} == {"400X"}
    assert len(train) + len(test) == 8


def test_evas_subset_is_four_types_at_40x(built):
    train, test = open_examples(built, "eva/train")[:], open_examples(built, "eva/test")[:]
    assert [(e.id, e.label) for e in train] == [
        ("SOB_B_TA-14-3411F-40-001.png", "tubular_adenoma"), ("SOB_M_DC-14-13412-40-001.png", "ductal_carcinoma")
    ]  # fmt: skip
    assert [(e.patient_id, e.label) for e in test] == [("15275", "tubular_adenoma"), ("18842D", "ductal_carcinoma")]


def test_a_count_that_is_off_fails_and_says_which_by_how_many(archive, tmp_path, capsys):
    with pytest.raises(SetError, match=r"40X in all: expected 1,995, got 8 \(-1,987\); slides: expected 82, got 8"):
        build("breakhis", archive, tmp_path)
    said = capsys.readouterr().err
    assert "40X benign: expected 625, got 5 (-620)" in said
    assert "100X" not in said  # it is not there at all
    assert list(tmp_path.iterdir()) == []


def test_evas_counts_are_checked_too(archive, tmp_path):
    builder = Breakhis(data_dir=tmp_path, manual_dir=archive, allow_counts=True)
    assert len(builder.items) == 16
    builder.allow_counts = False
    with pytest.raises(
        SetError, match=r"eva/train in all: expected 1,132, got 2 .*eva/test in all: expected 339, got 2"
    ):
        _ = builder.schemes


def test_a_name_that_tells_nothing_is_named(tmp_path):
    archive = write_archive(tmp_path / "in")
    image = next(path for path in archive.rglob("SOB_M_LC*-40-*.png"))
    image.rename(image.with_name("image_1.png"))
    with pytest.raises(SetError, match=r"image_1.png: expected a name like SOB_B_TA-14-3411F-40-001.png"):
        build("breakhis", archive, tmp_path / "out", allow_counts=True)
