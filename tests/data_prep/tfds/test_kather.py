"""The Kather builder on archives that the test writes in the published layout, and on the real tiles."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.tfds.base import SetError
from data_prep.tfds.build import build
from data_prep.tfds.kather import CLASSES
from plip_jax.data.examples import open_examples


def write_tile(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "TIFF")


def write_archive(folder: Path) -> Path:
    for number, label in enumerate(CLASSES):
        code = f"ABCDEFG{chr(65 + number)}"
        write_tile(folder / "NCT-CRC-HE-100K" / "NCT-CRC-HE-100K" / label / f"{label}-{code}.tif", number)
        write_tile(folder / "CRC-VAL-HE-7K" / label / f"{label}-TCGA-{code}.tif", 100 + number)
    write_tile(folder / "NCT-CRC-HE-100K-NONORM" / "ADI" / "ADI-ABCDEFGA.tif", 200)  # the name of a normalised one
    debris = folder / "__MACOSX" / "CRC-VAL-HE-7K" / "ADI" / "._ADI-TCGA-ABCDEFGH.tif"
    debris.parent.mkdir(parents=True)
    debris.write_bytes(b"not an image")
    return folder


def test_both_archives_become_one_set_with_the_published_split(tmp_path, capsys):
    built = build("kather", write_archive(tmp_path / "in"), tmp_path / "out", allow_counts=True)
    said = capsys.readouterr().out
    assert "licence: CC BY 4.0" in said
    assert "zenodo.org/records/1214456" in said
    train, test = (open_examples(built, split) for split in ("as_published/train", "test"))
    assert [example.label for example in test] == list(CLASSES) == [example.label for example in train]
    (nonorm,) = open_examples(built, "nonorm/train")
    assert (nonorm.id, nonorm.label) == ("nonorm/ADI-ABCDEFGA.tif", "ADI")
    assert [example.id for example in open_examples(built, "nonorm/test")] == [example.id for example in test]
    assert test[0].id == "test/ADI-TCGA-ABCDEFGA.tif"
    with Image.open(io.BytesIO(test[3].image)) as image:
        expected = np.random.default_rng(103).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        assert np.array_equal(np.asarray(image), expected)


def test_a_count_that_is_off_fails_and_says_which_class_by_how_many(tmp_path):
    archive = write_archive(tmp_path / "in")
    with pytest.raises(SetError, match=r"test ADI: expected 1,338, got 1 \(-1,337\).*--allow-counts"):
        build("kather", archive, tmp_path / "out")
    assert not (tmp_path / "out" / "kather").exists()


def test_a_tile_in_the_wrong_folder_is_named(tmp_path):
    archive = write_archive(tmp_path / "in")
    (archive / "CRC-VAL-HE-7K" / "ADI" / "ADI-TCGA-ABCDEFGA.tif").rename(
        archive / "CRC-VAL-HE-7K" / "TUM" / "ADI-TCGA-ABCDEFGA.tif"
    )
    with pytest.raises(SetError, match="the name says ADI, the folder TUM"):
        build("kather", archive, tmp_path / "out", allow_counts=True)


@pytest.mark.realdata
def test_real_tiles_of_the_7k_set_keep_their_pixels(realdata, tmp_path):
    folder = realdata / "crc_val_he_7k_32"
    built = build("kather", folder, tmp_path / "out", allow_counts=True)
    test = open_examples(built, "test")
    files = {path.name: path for path in folder.rglob("*.png")}
    assert len(test) == len(files) == 33
    for example in test:
        path = files[Path(example.id).name]
        assert example.label == path.parent.name
        with Image.open(io.BytesIO(example.image)) as ours, Image.open(path) as theirs:
            assert np.array_equal(np.asarray(ours), np.asarray(theirs.convert("RGB")))
