"""The PatchCamelyon builder on arrays that the test writes in the published layout, gzipped and unpacked."""

import gzip
import hashlib
import io
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from data_prep.tfds import patch_camelyon
from data_prep.tfds.base import SetError
from data_prep.tfds.build import build
from data_prep.tfds.patch_camelyon import published_checksums
from plip_jax.data.examples import open_examples

LABELS = {"train": [0, 1, 1, 0, 1], "valid": [1, 0], "test": [0, 1, 0]}


def patches(part: str) -> np.ndarray:
    shape = (len(LABELS[part]), 96, 96, 3)
    return np.random.default_rng(len(LABELS[part])).integers(0, 256, shape, dtype=np.uint8)


def write_array(path: Path, key: str, values: np.ndarray) -> None:
    """Gzipped if the name says so."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset(key, data=values, chunks=(1, *values.shape[1:]))
    path.write_bytes(gzip.compress(buffer.getvalue(), 1) if path.suffix == ".gz" else buffer.getvalue())


def write_part(folder: Path, part: str, suffix: str) -> None:
    name = f"camelyonpatch_level_2_split_{part}"
    write_array(folder / f"{name}_x.{suffix}", "x", patches(part))
    write_array(folder / f"{name}_y.{suffix}", "y", np.reshape(LABELS[part], (-1, 1, 1, 1)).astype(np.uint8))


def write_slides(folder: Path, part: str, count: int) -> None:
    lines = [",coord_y,coord_x,tumor_patch,center_tumor_patch,wsi"]
    lines += [f"{n},1,2,False,False,camelyon16_{part}_normal_{n // 2:03d}" for n in range(count)]
    (folder / f"camelyonpatch_level_2_split_{part}_meta.csv").write_text("\n".join(lines) + "\n")


def write_archive(folder: Path) -> Path:
    nested = folder / "pcam" / "pcam"
    nested.mkdir(parents=True)
    for part, suffix in (("train", "h5.gz"), ("valid", "h5"), ("test", "h5.gz")):
        write_part(nested, part, suffix)
    write_slides(nested, "test", 3)
    (nested / "._camelyonpatch_level_2_split_valid_x.h5").write_bytes(b"not an array")
    return folder


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    return write_archive(tmp_path_factory.mktemp("pcam"))


def pixels(example) -> np.ndarray:
    with Image.open(io.BytesIO(example.image)) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_patches_keep_their_pixels_labels_and_slides_in_any_block_size(archive, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(patch_camelyon, "_BLOCK", 2)
    built = build("patch_camelyon", archive, tmp_path, allow_counts=True)
    for split, part in (("train", "train"), ("val", "valid"), ("test", "test")):
        examples = open_examples(built, split)[:]
        assert [e.label for e in examples] == [("normal", "tumor")[number] for number in LABELS[part]]
        assert np.array_equal([pixels(e) for e in examples], patches(part))
    assert examples[2].id == "test/000002.png"
    assert [e.slide_id for e in examples] == [f"camelyon16_test_normal_{n}" for n in ("000", "000", "001")]
    assert open_examples(built, "train")[0].slide_id == ""
    assert "note: train: camelyonpatch_level_2_split_train_meta.csv is not there" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["patch_camelyon"]  # what was unpacked is gone


def test_the_published_checksums_are_read_from_the_installed_package():
    published = published_checksums()
    assert len(published) == 6
    name = "camelyonpatch_level_2_split_test_y.h5.gz"  # golden: the file of Zenodo record 2546921
    assert published[name] == "0a522005fccc8bbd04c5a117bfaf81d8da2676f03a29d7499f71d0a0bd6068ef"


def test_a_gzipped_file_with_another_checksum_is_refused(archive, tmp_path):
    with pytest.raises(SetError, match=r"train_x.h5.gz: expected the sha256 d619e741\w+, got \w{64}: get it again"):
        build("patch_camelyon", archive, tmp_path)


def test_a_count_that_is_off_fails_and_says_which_part_by_how_many(archive, tmp_path, monkeypatch):
    gzipped = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in archive.rglob("*.gz")}
    assert len(gzipped) == 4
    monkeypatch.setattr(patch_camelyon, "published_checksums", lambda: gzipped)  # so that the counts are reached
    with pytest.raises(SetError, match=r"train in all: expected 262,144, got 5 \(-262,139\); valid in all: .* got 2"):
        build("patch_camelyon", archive, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unpacked_files_need_no_checksum(tmp_path):
    for part in LABELS:
        write_part(tmp_path, part, "h5")
    with pytest.raises(SetError, match=r"train in all: expected 262,144"):
        build("patch_camelyon", tmp_path, tmp_path / "out")


def test_labels_without_images_are_named(tmp_path):
    write_part(tmp_path, "test", "h5")
    (tmp_path / "camelyonpatch_level_2_split_test_x.h5").unlink()
    with pytest.raises(SetError, match=r"of test only .*_test_y.h5 is there: x and y are needed"):
        build("patch_camelyon", tmp_path, tmp_path / "out", allow_counts=True)


def test_fewer_images_than_labels_are_named(tmp_path):
    write_part(tmp_path, "test", "h5.gz")
    write_array(tmp_path / "camelyonpatch_level_2_split_test_x.h5.gz", "x", patches("valid"))
    with pytest.raises(
        SetError, match=r"_test_x.h5.gz: expected x, uint8 \(3, 96, 96, 3\).*got uint8 \(2, 96, 96, 3\)"
    ):
        build("patch_camelyon", tmp_path, tmp_path / "out", allow_counts=True)
    assert list((tmp_path / "out").rglob("*.h5")) == []


def test_labels_of_another_form_are_named(tmp_path):
    write_part(tmp_path, "test", "h5")
    write_array(tmp_path / "camelyonpatch_level_2_split_test_y.h5", "y", np.full((3, 1, 1, 1), 2, np.uint8))
    with pytest.raises(SetError, match=r"expected y, \[N, 1, 1, 1\] of 0 and 1, got uint8 \(3, 1, 1, 1\)"):
        build("patch_camelyon", tmp_path, tmp_path / "out", allow_counts=True)


def test_a_table_of_slides_with_another_number_of_rows_is_named(tmp_path):
    write_part(tmp_path, "test", "h5")
    write_slides(tmp_path, "test", 2)
    with pytest.raises(SetError, match=r"_test_meta.csv: expected a row for each of 3 patches, got 2"):
        build("patch_camelyon", tmp_path, tmp_path / "out", allow_counts=True)


def test_what_is_no_hdf5_file_is_named(tmp_path):
    write_part(tmp_path, "test", "h5")
    (tmp_path / "camelyonpatch_level_2_split_test_y.h5").write_bytes(b"<html>")
    with pytest.raises(SetError, match=r"_test_y.h5 is not an HDF5 file"):
        build("patch_camelyon", tmp_path, tmp_path / "out", allow_counts=True)


def test_without_h5py_the_error_names_the_package(archive, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(SetError, match="pip install h5py"):
        build("patch_camelyon", archive, tmp_path, allow_counts=True)
