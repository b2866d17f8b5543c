"""The PanNuke builder on arrays that the test writes in the published layout, with its faults planted."""

import collections
import io

import numpy as np
import pytest
from PIL import Image

from data_prep.tfds import pannuke
from data_prep.tfds.base import SetError
from data_prep.tfds.build import build
from data_prep.tfds.pannuke import label_as_published, label_by_nuclei
from plip_jax.data.examples import open_examples

# As they come, unpacked below the archive's name, and renamed.
FOLDERS = {1: ("Fold 1/{}/fold1",), 2: ("fold_2/Fold 2/{}/fold2",), 3: ("Fold3/{}",)}


def mask(neoplastic=(), inflammatory=(), epithelial=(), background=True):
    """Instance numbers as single pixels; the rest is background."""
    numbers = np.zeros((256, 256, 6))
    for channel, found in ((0, neoplastic), (1, inflammatory), (4, epithelial)):
        numbers[channel, : len(found), channel] = found
    numbers[..., 5] = 1
    if background:
        numbers[:5, :, 5] = 0
    return numbers


MALIGNANT = mask(neoplastic=range(1, 13), inflammatory=range(13, 20))  # 12 of 19
BENIGN = mask(epithelial=range(1, 6))
FEW = mask(neoplastic=range(1, 10))  # 9 only
NO_CELLS = mask()
# Instance numbers 251 to 262: the last seven wrap to 0 to 6 in uint8. As published 256 vanishes; 11 nuclei remain.
WRAPPED = mask(neoplastic=range(251, 263), inflammatory=range(1, 19))
# 10 numbers, two of which are the same in uint8 (1 and 257): malignant, but 9 as published.
MERGED = mask(neoplastic=[*range(1, 10), 257])


def write_fold(root, number, masks, types):
    for kind, arrays in (("images", None), ("masks", masks)):
        folder = root / FOLDERS[number][0].format(kind)
        folder.mkdir(parents=True)
        if arrays is None:
            rows = [np.full((256, 256, 3), 10.0 * number + row) for row in range(len(masks))]
            np.save(folder / "images.npy", np.stack(rows))
            np.save(folder / "types.npy", np.asarray(types))
        else:
            np.save(folder / "masks.npy", np.stack(arrays))


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    root = tmp_path_factory.mktemp("pannuke")
    write_fold(root, 1, [MALIGNANT, BENIGN, FEW, NO_CELLS, MERGED], ["Breast"] * 4 + ["Adrenal_gland"])
    write_fold(root, 2, [BENIGN, BENIGN, WRAPPED], ["Bile-duct", "Bile-duct", "HeadNeck"])
    write_fold(root, 3, [MALIGNANT, BENIGN, BENIGN, BENIGN], ["Breast", "Breast", "Breast", "Colon"])
    (root / "__MACOSX" / "Fold 1" / "images").mkdir(parents=True)
    (root / "__MACOSX" / "Fold 1" / "images" / "images.npy").write_bytes(b"not an array")
    return root


@pytest.fixture(scope="module")
def built(archive, tmp_path_factory):
    return build("pannuke", archive, tmp_path_factory.mktemp("built"), allow_counts=True)


def test_the_rule_as_it_should_be_and_as_published():
    for numbers, right, published in (
        (MALIGNANT, "malignant", "malignant"),
        (BENIGN, "benign", "benign"),
        (FEW, "", ""),
        (MERGED, "malignant", ""),  # 10 nuclei; 9 distinct values above 0 once 257 is 1
        (mask(neoplastic=[256], inflammatory=[1]), "", "benign"),  # the only one vanishes
        # 10 of 33 is 0.303; with the background as a cell 10 of 34 is 0.294
        (mask(neoplastic=range(1, 11), inflammatory=range(1, 24)), "malignant", ""),
        # a background without a 0 counts nothing: 10 of 33 again
        (mask(neoplastic=range(1, 11), inflammatory=range(1, 24), background=False), "malignant", "malignant"),
    ):
        assert (label_by_nuclei(numbers.astype(int)), label_as_published(numbers.astype(int))) == (right, published)


def test_a_channel_without_a_zero_counts_one_short_as_published_only():
    numbers = np.zeros((256, 256, 6), int)
    numbers[..., 0] = 1 + np.arange(256) % 10  # ten nuclei that fill the image
    assert (label_by_nuclei(numbers), label_as_published(numbers)) == ("malignant", "")


def test_the_folds_are_the_default_with_nuclei_as_they_are(built):
    train, val, test = (open_examples(built, split) for split in ("train", "val", "by_fold/test"))
    assert [(e.id, e.label, e.attributes["organ"]) for e in train] == [
        ("fold1_0000.png", "malignant", "breast"),
        ("fold1_0001.png", "benign", "breast"),
        ("fold1_0004.png", "malignant", "adrenal gland"),
    ]
    assert [(e.label, e.attributes["organ"]) for e in val] == [
        ("benign", "bile duct"),
        ("benign", "bile duct"),
        ("malignant", "headneck"),
    ]
    assert [e.id for e in test] == [f"fold3_000{row}.png" for row in range(4)]
    with Image.open(io.BytesIO(test[2].image)) as image:
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), np.full((256, 256, 3), 32, np.uint8))


def test_plips_split_repeats_its_wrapped_numbers_and_ours_does_not(built):
    def count(scheme):
        return collections.Counter(
            (part, e.attributes["organ"], e.label)
            for part in ("train", "test")
            for e in open_examples(built, f"{scheme}/{part}")
        )

    # 4 benign of breast and bile duct: int(0.7 * 2) to train of each; single ones to test
    published = count("as_published")
    assert published == {
        ("train", "breast", "malignant"): 1,
        ("test", "breast", "malignant"): 1,
        ("train", "breast", "benign"): 2,
        ("test", "breast", "benign"): 1,
        ("train", "bile duct", "benign"): 1,
        ("test", "bile duct", "benign"): 1,
        ("test", "colon", "benign"): 1,
        ("test", "headneck", "malignant"): 1,
    }
    assert count("corrected") == {**published, ("test", "adrenal gland", "malignant"): 1}


def test_the_published_order_draws_the_members(built):
    # Malignant, then benign: [breast of fold 1, head and neck, breast of fold 3 | b1 of fold 1, two of the bile duct,
    # b3 and c3 of fold 3, colon]. RandomState(1) takes nine in the order 8 2 6 7 1 0 4 3 5, so the benign of breast
    # come as b3 (6), c3 (7), b1 (3); and three in the order 0 2 1: b3 and b1 to train.
    train, test = ({e.id for e in open_examples(built, f"as_published/{part}")} for part in ("train", "test"))
    assert {"fold3_0001.png", "fold1_0001.png"} < train
    assert "fold3_0002.png" in test


def test_arrays_stay_on_the_disk(archive):
    found = pannuke.PanNuke(data_dir=archive / "out", manual_dir=archive)._open_folds()
    assert [type(array) for fold in found for array in (fold.images, fold.masks)] == [np.memmap] * 6


def test_counts_that_are_off_fail(archive, tmp_path):
    with pytest.raises(
        SetError,
        match=r"fold 1 images in all: expected 2,656, got 5 .*images with cells in all: expected 7,558, got 11",
    ):
        build("pannuke", archive, tmp_path)
    assert not list(tmp_path.iterdir())


def test_published_counts_of_the_scheme_are_checked(archive, tmp_path, capsys):
    build("pannuke", archive, tmp_path, allow_counts=True)
    said = capsys.readouterr()
    assert "as_published/test benign: expected 1,019, got 3 (-1,016)" in said.err
    assert "note: 1 of 11 images with cells have another label as published" in said.out


def test_pickled_types_are_refused(tmp_path):
    write_fold(tmp_path, 1, [BENIGN], np.asarray(["Breast"], object))
    with pytest.raises(SetError, match=r"types.npy cannot be mapped .*fixed-width text"):
        build("pannuke", tmp_path, tmp_path / "out", allow_counts=True)


def test_what_is_missing_or_there_twice_is_named(tmp_path):
    write_fold(tmp_path, 1, [BENIGN], ["Breast"])
    masks = tmp_path / "Fold 1" / "masks"
    masks.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "fold1" / "masks.npy").unlink()
    with pytest.raises(SetError, match=r"fold 1: expected masks.npy beside .*images.npy"):
        build("pannuke", tmp_path, tmp_path / "out", allow_counts=True)
    write_fold(tmp_path / "again", 1, [BENIGN], ["Breast"])
    with pytest.raises(SetError, match="fold 1 is there twice"):
        build("pannuke", tmp_path, tmp_path / "out", allow_counts=True)


def test_an_unknown_tissue_and_other_pixels_are_refused(tmp_path, monkeypatch):
    write_fold(tmp_path, 1, [BENIGN], ["Liver-ish"])
    with pytest.raises(SetError, match="unknown tissues liver ish"):
        build("pannuke", tmp_path, tmp_path / "out", allow_counts=True)
    with pytest.raises(SetError, match=r"expected pixels of 0 to 255, got 0.0 to 1.0"):
        pannuke._read_png(np.linspace(0, 1, 12).reshape(1, 2, 2, 3), 0)
