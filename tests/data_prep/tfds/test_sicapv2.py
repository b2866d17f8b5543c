"""The SICAPv2 builder on an archive that the test writes in the published layout: nested, one folder too deep."""

import sys
from pathlib import Path

import numpy as np
import openpyxl
import pytest
from PIL import Image

from data_prep.tfds.base import SetError
from data_prep.tfds.build import build
from data_prep.tfds.sicapv2 import CLASSES
from plip_jax.data.examples import open_examples

COLUMNS = ["image_name", "NC", "G3", "G4", "G5", "G4C"]
# slide, then NC, G3, G4, G5, G4C
TRAIN = [
    ("16B0001851", 1, 0, 0, 0, 0),
    ("16B0001851", 0, 1, 1, 0, 0),  # two flags: single drops it
    ("16B0003388", 0, 0, 1, 0, 1),  # cribriform: still one flag
    ("17B0032600", 0, 0, 0, 1, 0),
    ("17B0032600", 0, 0, 0, 0, 1),  # G4C alone: G4 to multi, nothing to the others
]
TEST = [("18B0005478J", 0, 0, 0, 1, 0), ("18B0005478J", 0, 1, 0, 0, 0)]
PATIENTS = {"16B0001851": 1, "16B0003388": 1, "17B0032600": 2, "18B0005478J": 3}


def name_of(number: int, slide: str) -> str:
    return f"{slide}_Block_Region_1_0_{number}_xini_6803_yini_59786.jpg"


def write_sheet(path: Path, columns: list[str], rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    workbook = openpyxl.Workbook()
    for row in (columns, *rows):
        workbook.active.append(row)
    workbook.save(path)


def write_archive(folder: Path) -> Path:
    root = folder / "SICAPv2" / "SICAPv2"
    train = [[name_of(n, row[0]), *row[1:]] for n, row in enumerate(TRAIN)]
    test = [[name_of(100 + n, row[0]), *row[1:]] for n, row in enumerate(TEST)]
    write_sheet(root / "partition" / "Test" / "Train.xlsx", COLUMNS, train)
    write_sheet(root / "partition" / "Test" / "Test.xlsx", COLUMNS, test)
    for fold in range(1, 5):
        held = [row for n, row in enumerate(train) if n % 4 == fold - 1]
        write_sheet(root / "partition" / "Validation" / f"Val{fold}" / "Test.xlsx", COLUMNS, held)
        rest = [row for row in train if row not in held]
        write_sheet(root / "partition" / "Validation" / f"Val{fold}" / "Train.xlsx", COLUMNS, rest)
    write_sheet(
        root / "wsi_labels.xlsx", ["slide_id", "patient_id", "Gleason_primary"], [[*p, 3] for p in PATIENTS.items()]
    )
    listed = [row[0] for row in (*train, *test)]
    for number, name in enumerate((*listed, name_of(999, "19B0000000"))):  # the last one is in no sheet
        for path in (root / "images" / name, root / "masks" / name):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (number, 0, 0)).save(path)
    debris = folder / "__MACOSX" / "SICAPv2" / "images"
    debris.mkdir(parents=True)
    (debris / f"._{listed[0]}").write_bytes(b"not an image")
    return folder


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    return write_archive(tmp_path_factory.mktemp("sicapv2"))


@pytest.fixture(scope="module")
def built(archive, tmp_path_factory) -> Path:
    return build("sicapv2", archive, tmp_path_factory.mktemp("out"), allow_counts=True)


def test_the_default_keeps_patches_with_one_flag_and_knows_slide_and_patient(built):
    train, test = open_examples(built, "train")[:], open_examples(built, "test")[:]
    assert [example.label for example in train] == ["NC", "G4", "G5"]
    assert [example.label for example in test] == ["G5", "G3"]
    assert train[1].id == name_of(2, "16B0003388")
    assert [(e.slide_id, e.patient_id) for e in train] == [
        ("16B0001851", "1"), ("16B0003388", "1"), ("17B0032600", "2")]  # fmt: skip
    assert np.array_equal(test[0].image[:2], b"\xff\xd8")  # the JPEG as published
    assert CLASSES == ("NC", "G3", "G4", "G5")


def test_the_other_rules_keep_more(built):
    assert [e.label for e in open_examples(built, "first/train")] == ["NC", "G3", "G4", "G5"]
    multi = open_examples(built, "multi/train")[:]
    assert [e.label_set for e in multi] == [("NC",), ("G3", "G4"), ("G4",), ("G5",), ("G4",)]
    assert multi[4].attributes["flags"] == "G4C"


def test_each_published_fold_is_a_scheme_with_a_val_part(built):
    assert [e.id for e in open_examples(built, "single_val1/val")] == [name_of(0, "16B0001851")]
    assert [e.label for e in open_examples(built, "single_val1/train")] == ["G4", "G5"]
    assert [e.label for e in open_examples(built, "multi_val1/val")] == ["NC", ""]
    assert len(open_examples(built, "first_val4/test")) == 2


def test_the_description_says_how_many_patches_a_rule_drops(archive, tmp_path, capsys):
    build("sicapv2", archive, tmp_path, allow_counts=True)
    said = capsys.readouterr().out
    assert "licence: CC BY 4.0" in said
    assert "G4C not read; dropped: 2 of train, 0 of test" in said
    assert "G4C counted as G4; dropped: 0 of train, 0 of test" in said


def test_a_count_that_is_off_fails_and_says_which_class_by_how_many(archive, tmp_path):
    with pytest.raises(SetError, match=r"train in all: expected 9,959, got 5 \(-9,954\)") as error:
        build("sicapv2", archive, tmp_path)
    assert "test slides: expected 31, got 1 (-30); NC: expected 4,417, got 1 (-4,416)" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_sheet_without_its_columns_names_them(tmp_path):
    archive = write_archive(tmp_path / "in")
    write_sheet(archive / "SICAPv2/SICAPv2/partition/Test/Test.xlsx", ["image_name", "NC"], [])
    with pytest.raises(
        SetError, match=r"Test.xlsx: expected the columns image_name, NC, G3, G4, G5, G4C, got image_name, NC"
    ):
        build("sicapv2", archive, tmp_path / "out", allow_counts=True)


def test_without_openpyxl_the_error_names_the_package(archive, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(SetError, match="pip install openpyxl"):
        build("sicapv2", archive, tmp_path, allow_counts=True)
