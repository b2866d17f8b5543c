"""The osteosarcoma builder on an archive that the test writes in the published layout, with blanks and a suffix."""

from pathlib import Path

import pytest
from PIL import Image

from data_prep.tfds.base import SetError
from data_prep.tfds.build import build
from plip_jax.data.examples import open_examples

# name in the table, classification, file
ROWS = [
    ("Case 3 - A10 - 10547 - 25283", "Non-Tumor", "Training-Set-2/set1/Case-3-A10-10547-25283.jpg"),
    ("Case 3 A7-1054-252", "Non-Viable-Tumor", "Training-Set-2/set1/Case-3-A7-1054-252_copy.jpg"),  # a suffix
    ("Case 3 A7-1054-2523", "Non-Viable-Tumor", "Training-Set-2/set2/Case-3-A7-1054-2523.jpg"),  # no suffix of it
    ("Case 4 C21-33952-4035", "Viable", "Training-Set-1/set3/Case 4 C21-33952-4035.jpg"),  # a file with blanks
    ("Case 4 C22-33952-4035", "viable: non-viable", "Training-Set-1/set3/Case-4-C22-33952-4035.jpg"),
    ("Case 48 - P5 C13-24121-14200", "viable", "Training-Set-1/set4/Case-48-P5-C13-24121-14200.jpg"),
    ("P9 B11-10159-22267", "Non-Tumor", "Training-Set-1/set4/P9-B11-10159-22267.jpg"),
]


def write_table(folder: Path, name_column: str = "image.name", rows=ROWS) -> None:
    lines = [f'"",{name_column},"nuclei count",classification']
    lines += [f'{number},"{name}",12,"{label}"' for number, (name, label, _) in enumerate(rows)]
    (folder / "ML_Features_1144.csv").write_text("\n".join(lines) + "\n")


def write_archive(folder: Path, name_column: str = "image.name") -> Path:
    for number, (_, _, file) in enumerate(ROWS):
        path = folder / "Osteosarcoma-UT" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 12), (number, 0, 0)).save(path)
    write_table(folder / "Osteosarcoma-UT", name_column)
    debris = folder / "__MACOSX" / "Osteosarcoma-UT"
    debris.mkdir(parents=True)
    (debris / "._ML_Features_1144.csv").write_bytes(b"not a table")
    return folder


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    return write_archive(tmp_path_factory.mktemp("osteosarcoma"))


@pytest.fixture(scope="module")
def built(archive, tmp_path_factory) -> Path:
    return build("osteosarcoma", archive, tmp_path_factory.mktemp("out"), allow_counts=True)


def test_rows_find_their_files_by_name_and_by_prefix(built):
    test = open_examples(built, "test")[:]
    assert [e.id for e in test] == [Path(file).name for _, _, file in ROWS]
    assert [e.label for e in test] == [
        "Non-Tumor", "Non-Viable-Tumor", "Non-Viable-Tumor", "Viable", "Viable", "Viable", "Non-Tumor"]  # fmt: skip
    assert [e.patient_id for e in test] == ["Case 3"] * 3 + ["Case 4"] * 2 + ["Case 48", "P9"]
    assert [test[0].slide_id, test[5].slide_id, test[6].slide_id] == ["Case-3-A10", "Case-48-P5-C13", "P9-B11"]
    assert test[4].attributes["classification"] == "viable: non-viable"
    assert test[4].label_set == ("Viable", "Non-Viable-Tumor")


def test_mixed_images_can_be_dropped(built):
    dropped = open_examples(built, "mixed_dropped/test")[:]
    assert len(dropped) == 6
    assert "Case-4-C22-33952-4035.jpg" not in {e.id for e in dropped}


def test_by_patient_case_4_is_tested_on(built):
    for scheme, images in (("mixed_as_viable_by_patient", 2), ("mixed_dropped_by_patient", 1)):
        train, test = (open_examples(built, f"{scheme}/{part}")[:] for part in ("train", "test"))
        assert {e.patient_id for e in test} == {"Case 4"}
        assert {e.patient_id for e in train} == {"Case 3", "Case 48", "P9"}
        assert (len(train), len(test)) == (5, images)


def test_the_build_says_that_there_are_four_patients(archive, tmp_path, capsys):
    build("osteosarcoma", archive, tmp_path, allow_counts=True)
    said = capsys.readouterr().out
    assert "note: four patients: an interval over images is far too narrow" in said
    assert "dropped: 6 of 7 images" in said


def test_the_other_spelling_of_the_name_column_is_read(tmp_path):
    built = build("osteosarcoma", write_archive(tmp_path / "in", "image_name"), tmp_path / "out", allow_counts=True)
    assert len(open_examples(built, "test")) == 7


def test_two_files_that_begin_with_one_name_are_refused(tmp_path):
    archive = write_archive(tmp_path / "in")
    folder = archive / "Osteosarcoma-UT" / "Training-Set-2" / "set1"
    Image.new("RGB", (12, 12)).save(folder / "Case-3-A7-1054-252-b.jpg")
    with pytest.raises(SetError, match=r"'Case 3 A7-1054-252' is the name of 2 files: .*252-b.jpg, .*252_copy.jpg"):
        build("osteosarcoma", archive, tmp_path / "out", allow_counts=True)


def test_a_missing_table_says_where_to_get_it(tmp_path):
    archive = write_archive(tmp_path / "in")
    next((archive / "Osteosarcoma-UT").glob("*.csv")).unlink()
    with pytest.raises(SetError, match=r"expected one ML_Features_1144.csv, found none; get it from https://doi.org"):
        build("osteosarcoma", archive, tmp_path / "out")


def test_an_unknown_classification_is_named(tmp_path):
    archive = write_archive(tmp_path / "in")
    write_table(archive / "Osteosarcoma-UT", rows=[("Case 3 A7-1-2", "Necrotic", "")])
    with pytest.raises(SetError, match=r"Non-Viable-Tumor, viable: non-viable, got 'Case 3 A7-1-2' and 'Necrotic'"):
        build("osteosarcoma", archive, tmp_path / "out")


def test_counts_that_are_off_fail_or_warn_and_missing_images_are_counted(tmp_path, capsys):
    archive = write_archive(tmp_path / "in")
    next(archive.rglob("P9-B11*")).unlink()
    message = r"in all: expected 1,144, got 6 \(-1,138\); patients: expected 4, got 3 \(-1\)"
    with pytest.raises(SetError, match=message):
        build("osteosarcoma", archive, tmp_path / "out")
    said = capsys.readouterr().err
    assert "1 images of the table are not there, first 'P9 B11-10159-22267'" in said
    assert "Viable: expected 292, got 2 (-290)" in said
