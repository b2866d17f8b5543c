"""The builder of Kather's textures of 2016 on archives in the published layout, and on the real tiles."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data_prep.tfds.base import SetError
from data_prep.tfds.build import build
from data_prep.tfds.colorectal_histology import CLASSES
from plip_jax.data.examples import open_examples

TILES = "Kather_texture_2016_image_tiles_5000"
# How sources are spelt: plain, with a letter, and without a second number.
SOURCES = ("CRC-Prim-HE-01_007", "CRC-Prim-HE-01_007b", "CRC-Prim-HE-02_009", "CRC-Prim-HE-10c")


def write_archive(root: Path) -> Path:
    for number, label in enumerate(CLASSES):
        folder = root / TILES / TILES / f"{number + 1:02d}_{label.upper()}"
        folder.mkdir(parents=True)
        for index, source in enumerate(SOURCES):
            pixels = np.full((150, 150, 3), 20 * number + index, np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}A{index}_{source}.tif_Row_1_Col_151.tif")
        (folder / "Thumbs.db").write_bytes(b"not an image")
    larger = root / "Kather_texture_2016_larger_images_10"
    larger.mkdir()
    Image.new("RGB", (300, 300)).save(larger / "CRC-Prim-HE-01_APPLICATION.tif")
    debris = root / "__MACOSX" / TILES / "01_TUMOR"
    debris.mkdir(parents=True)
    (debris / "._x.tif").write_bytes(b"not an image")
    return root


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write_archive(tmp_path_factory.mktemp("colorectal"))


@pytest.fixture(scope="module")
def built(archive, tmp_path_factory):
    return build("colorectal_histology", archive, tmp_path_factory.mktemp("built"), allow_counts=True)


def test_features_hold_those_of_tfds_own_set(built):
    builder = tfds.builder_from_directory(built)
    assert tuple(builder.info.features["label"].names) == CLASSES
    rows = {row["filename"]: row for row in builder.as_data_source("images")}
    row = rows[b"3A2_CRC-Prim-HE-02_009.tif_Row_1_Col_151.tif"]
    assert (row["label"], row["image"].shape, row["slide_id"]) == (3, (150, 150, 3), b"CRC-Prim-HE-02")
    assert (row["image"] == 62).all()
    assert len(rows) == 32


def test_the_source_is_the_slide_and_stays_whole(built):
    train, test = (open_examples(built, part) for part in ("train", "by_slide/test"))
    slides = [{e.slide_id for e in part} for part in (train, test)]
    assert not slides[0] & slides[1]
    assert slides[0] | slides[1] == {"CRC-Prim-HE-01", "CRC-Prim-HE-02", "CRC-Prim-HE-10"}
    assert {e.label for e in test} == {e.label for e in train} == set(CLASSES)
    assert [e.label for e in open_examples(built, "all/test")] == [label for label in CLASSES for _ in SOURCES]


def test_counts_that_are_off_fail_and_unverified_ones_warn(archive, tmp_path, capsys):
    with pytest.raises(SetError, match=r"in all: expected 5,000, got 32 \(-4,968\)"):
        build("colorectal_histology", archive, tmp_path)
    assert "never verified differ: tumor: expected 625, got 4 (-621)" in capsys.readouterr().err


def test_an_archive_unpacked_twice_is_refused(archive, tmp_path):
    twice = tmp_path / "twice"
    write_archive(twice / "a")
    write_archive(twice / "b")
    with pytest.raises(SetError, match="32 file names are there twice"):
        build("colorectal_histology", twice, tmp_path / "out", allow_counts=True)


def test_other_folders_are_refused(tmp_path):
    (tmp_path / "tumor").mkdir()
    Image.new("RGB", (5, 5)).save(tmp_path / "tumor" / "a.tif")
    with pytest.raises(SetError, match=r"holds no tile below 01_TUMOR, 02_STROMA"):
        build("colorectal_histology", tmp_path, tmp_path / "out")


@pytest.mark.realdata
def test_real_tiles_keep_their_pixels_and_have_no_slides(realdata, tmp_path, capsys):
    folder = realdata / "kather2016_100"
    test = open_examples(build("colorectal_histology", folder, tmp_path, allow_counts=True), "test")
    assert "no split by slide" in capsys.readouterr().out
    with (folder / "labels.csv").open() as file:
        labels = {Path(row["image"]).name: row["label"] for row in csv.DictReader(file)}
    assert len(test) == len(labels) == 100
    for example in test:
        assert labels[example.id] == f"{CLASSES.index(example.label) + 1:02d}_{example.label.upper()}"
        path = folder / labels[example.id] / example.id
        with Image.open(io.BytesIO(example.image)) as ours, Image.open(path) as theirs:
            assert np.array_equal(np.asarray(ours), np.asarray(theirs.convert("RGB")))
