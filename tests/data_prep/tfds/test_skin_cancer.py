"""The skin tiles' builder on archives that the test writes in the published layout, table inside data/ or beside."""

from pathlib import Path

import pytest
from PIL import Image

from data_prep.tfds.base import SetError
from data_prep.tfds.build import build
from data_prep.tfds.skin_cancer import CLASSES, TUMOURS
from plip_jax.data.examples import open_examples

SETS = ("Train", "Validation", "Test")


def write_archive(folder: Path, table: str = "data/tiles-v2.csv", extra=("case_id", "c")) -> Path:
    """Each class once in each part; ``extra`` is a column's name and the beginning of its values."""
    lines = [f",file,class,set,malignicy,{extra[0]}"]
    for place, label in enumerate(CLASSES):
        for number, part in enumerate(SETS):
            file = f"data/tiles/{label}/{label}_ws_{place}_{number}.jpg"
            path = folder / "skin" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (place, number, 0)).save(path)
            lines.append(f"{place},{file},{label},{part},{label.split('_')[0]},{extra[1]}{number}")
    (folder / "skin" / table).write_text("\n".join(lines) + "\n")
    (folder / "skin" / "data" / "tiles" / CLASSES[0] / "Thumbs.db").write_bytes(b"not an image")
    (folder / "__MACOSX" / "data").mkdir(parents=True)
    (folder / "__MACOSX" / "data" / "._tiles-v2.csv").write_bytes(b"not a table")
    return folder


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    return write_archive(tmp_path_factory.mktemp("skin"))


@pytest.fixture(scope="module")
def built(archive, tmp_path_factory) -> Path:
    return build("skin_cancer", archive, tmp_path_factory.mktemp("out"), allow_counts=True)


def test_the_authors_split_and_class_strings_are_kept(built):
    for part, case in (("train", "c0"), ("val", "c1"), ("test", "c2")):
        examples = open_examples(built, part)[:]
        assert [e.label for e in examples] == list(CLASSES)
        assert {e.patient_id for e in examples} == {case}
    assert examples[5].id == (
        "data/tiles/nontumor_skin_muscle_skeletal/nontumor_skin_muscle_skeletal_ws_5_2.jpg"
    )  # fmt: skip


def test_tumours_alone_and_tumour_against_the_rest(built):
    assert [e.label for e in open_examples(built, "tumour_only/test")] == list(TUMOURS)
    assert [e.label for e in open_examples(built, "malignancy/val")] == ["nontumor"] * 12 + ["tumor"] * 4


def test_a_table_beside_data_and_without_cases_is_read(tmp_path, capsys):
    built = build(
        "skin_cancer", write_archive(tmp_path / "in", "tiles-v2.csv", ("x", "")), tmp_path / "out", allow_counts=True
    )
    assert len(open_examples(built, "test")) == 16
    assert open_examples(built, "test")[0].patient_id == ""
    assert "note: the table has no column of cases" in capsys.readouterr().out


def test_a_case_in_two_parts_is_told(tmp_path, capsys):
    archive = write_archive(tmp_path / "in")
    table = next((archive / "skin").rglob("tiles-v2.csv"))
    table.write_text(table.read_text().replace(",c2", ",c1").replace("Train,tumor", "Train,nontumor"))
    build("skin_cancer", archive, tmp_path / "out", allow_counts=True)
    said = capsys.readouterr()
    assert "note: expected 386 cases, as the paper has it, got 2" in said.out
    assert "note: 1 cases are in more than one part of the authors' split, first c1" in said.out
    assert "4 tiles whose malignicy is not that of their class" in said.err


def test_a_count_that_is_off_fails_and_missing_tiles_are_counted(tmp_path, capsys):
    archive = write_archive(tmp_path / "in")
    next(archive.rglob("*_ws_3_1.jpg")).unlink()
    with pytest.raises(SetError, match=r"in all: expected 129,364, got 47 \(-129,317\)"):
        build("skin_cancer", archive, tmp_path / "out")
    assert "1 tiles of tiles-v2.csv are not there, first data/tiles/nontumor_skin_epi" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Validation", "Holdout", "expected a set of Train, Validation, Test, got 'Holdout'"),
        ("data/tiles/", "data/../../tiles/", "expected a path below the archive"),
        ("epithelial_bcc,", "epithelial_scc,", "classes tumor_skin_epithelial_scc: expected nontumor_skin"),
        (",class,", ",klass,", r"expected the columns file, class, set, got , file, klass"),
    ],
)
def test_a_table_that_is_wrong_is_named(tmp_path, old, new, message):
    archive = write_archive(tmp_path / "in")
    table = next((archive / "skin").rglob("tiles-v2.csv"))
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(SetError, match=message):
        build("skin_cancer", archive, tmp_path / "out", allow_counts=True)


def test_a_missing_table_says_where_to_get_it(tmp_path):
    (tmp_path / "in" / "data").mkdir(parents=True)
    with pytest.raises(SetError, match=r"expected one tiles-v2.csv, found none; see https://doi.org/10.11588"):
        build("skin_cancer", tmp_path / "in", tmp_path / "out")
