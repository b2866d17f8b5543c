"""The MHIST builder on an archive that the test writes in the published layout, with its faults planted."""

import hashlib
import shutil

import pytest
from PIL import Image

from data_prep.tfds.base import SetError
from data_prep.tfds.build import build
from plip_jax.data.examples import open_examples

HEADER = "Image Name,Majority Vote Label,Number of Annotators who Selected SSA (Out of 7),Partition"
ROWS = ["MHIST_aaa.png,SSA,7,train", "MHIST_aab.png,HP,3,test", "MHIST_aac.png,SSA,4,test", "MHIST_aad.png,HP,0,train"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    root = tmp_path_factory.mktemp("mhist")
    (root / "images" / "images").mkdir(parents=True)
    for number, row in enumerate(ROWS):
        Image.new("RGB", (224, 224), (60 * number, 0, 0)).save(root / "images" / "images" / row.split(",")[0])
    (root / "annotations.csv").write_text("\n".join([HEADER, *ROWS]) + "\n")
    sums = {name: hashlib.md5((root / name).read_bytes()).hexdigest() for name in ("annotations.csv",)}
    lines = [f"{digest}  {name}" for name, digest in sums.items()] + [
        f"{'0' * 32}  images.zip"
    ]  # not there: passed over
    (root / "MD5SUMs.txt").write_text("\n".join(lines) + "\n")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "annotations.csv").write_bytes(b"not a table")
    return root


def test_names_votes_and_the_published_split(archive, tmp_path):
    built = build("mhist", archive, tmp_path, allow_counts=True)
    train, test = (
        [(e.id, e.label, e.attributes["votes"], e.attributes["agreement"]) for e in open_examples(built, part)]
        for part in ("train", "as_published/test")
    )
    assert train == [("MHIST_aaa.png", "SSA", "7", "7/7"), ("MHIST_aad.png", "HP", "0", "7/7")]
    assert test == [("MHIST_aab.png", "HP", "3", "4/7"), ("MHIST_aac.png", "SSA", "4", "4/7")]


def test_counts_that_are_off_fail_and_unverified_ones_warn(archive, tmp_path, capsys):
    with pytest.raises(
        SetError, match=r"train in all: expected 2,175, got 2 .*test in all: expected 977, got 2 \(-975\)"
    ):
        build("mhist", archive, tmp_path)
    assert "never verified differ: train HP: expected 1,545, got 1" in capsys.readouterr().err


def change(archive, folder, **replaced):
    """A copy of the archive with texts of its table replaced, and no checksums."""
    shutil.copytree(archive, folder)
    (folder / "MD5SUMs.txt").unlink()
    table = folder / "annotations.csv"
    text = table.read_text()
    for old, new in replaced.items():
        text = text.replace(old.replace("_", ","), new)
    table.write_text(text)
    return folder


def test_a_missing_table_and_a_missing_image_are_named(archive, tmp_path, capsys):
    folder = change(archive, tmp_path / "a")
    (folder / "images" / "images" / "MHIST_aab.png").unlink()
    with pytest.raises(SetError, match=r"1 of 4 images of .*annotations.csv are not there, first MHIST_aab.png"):
        build("mhist", folder, tmp_path / "out")
    assert len(open_examples(build("mhist", folder, tmp_path / "out", allow_counts=True), "test")) == 1
    (folder / "annotations.csv").unlink()
    with pytest.raises(SetError, match=r"expected one annotations.csv \(it comes apart from images.zip\), got none"):
        build("mhist", folder, tmp_path / "out2")


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"SSA_4": "SSA,3"}, "3 of 7 votes make it HP, the table says SSA"),
        ({"SSA_4": "SSA,8"}, "expected 0 to 7 votes, got '8'"),
        ({"SSA_4_test": "SSA,4,val"}, "MHIST_aac.png is in 'val'"),
        ({"SSA_4": "1,4"}, "the table says 1"),
        ({"Partition": "Split"}, "expected the columns Image Name, Majority Vote Label, Partition, got"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(archive, tmp_path, replaced, message):
    with pytest.raises(SetError, match=message):
        build("mhist", change(archive, tmp_path / "in", **replaced), tmp_path / "out", allow_counts=True)


def test_a_table_without_votes_is_built_and_said(archive, tmp_path, capsys):
    folder = change(archive, tmp_path / "in", **{"Number of Annotators who Selected SSA (Out of 7)": "Other"})
    test = open_examples(build("mhist", folder, tmp_path / "out", allow_counts=True), "test")
    assert [e.attributes["agreement"] for e in test] == ["", ""]
    assert "note: the table has no column" in capsys.readouterr().out


def test_files_are_held_against_the_publisher_s_checksums(archive, tmp_path):
    folder = tmp_path / "in"
    shutil.copytree(archive, folder)
    with (folder / "annotations.csv").open("a") as file:
        file.write("MHIST_aae.png,HP,0,train\n")
    with pytest.raises(SetError, match=r"annotations.csv: expected the MD5 [0-9a-f]{32}, got [0-9a-f]{32}"):
        build("mhist", folder, tmp_path / "out", allow_counts=True)
