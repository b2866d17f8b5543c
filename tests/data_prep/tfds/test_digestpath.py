"""The DigestPath builder on images that the test writes in the published layout, with its faults planted."""

import collections
import io

import numpy as np
import pytest
from PIL import Image

from data_prep.tfds import digestpath
from data_prep.tfds.base import SetError
from data_prep.tfds.build import build
from data_prep.tfds.digestpath import open_jpeg
from plip_jax.data.examples import open_examples

TISSUE = (150, 90, 160)
ROOT = "Colonoscopy_tissue_segment_dataset"


def write_image(folder, name, width, height, *, white_columns=0, tumour=None):
    """A JPEG of tissue; ``tumour`` (width, height) from the corner gives it a mask, whose empty part is not quite 0."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.full((height, width, 3), TISSUE, np.uint8)
    pixels[:, :white_columns] = 235
    Image.fromarray(pixels).save(folder / f"{name}.jpg", quality=95)
    if tumour is not None:
        mask = np.full((height, width), 6, np.uint8)  # as JPEG leaves it; tumour is above 10
        mask[: tumour[1], : tumour[0]] = 255
        Image.fromarray(mask).save(folder / f"{name}_mask.jpg", quality=95)


def write_archive(root):
    negative = root / ROOT / "tissue-train-neg" / "tissue-train-neg"
    write_image(negative, "n1", 1000, 700)  # two crops at 1/2
    write_image(negative, "n2", 1000, 700, white_columns=500)  # one: the other is background
    write_image(negative, "n3", 448, 448)  # none: 224 x 224 at 1/2, and a crop must end before the edge
    write_image(negative, "n4", 2000, 1000)  # 4 x 2 at 1/2, 2 x 1 at 1/4
    positive = root / ROOT / "tissue-train-pos-v1"
    write_image(positive, "p1", 1000, 1000, tumour=(176, 448))  # shares 88/224, then 0, less than 0.3, 0
    write_image(positive, "p2", 1000, 1000, tumour=(448, 448))  # 1, then three below 0.3
    debris = root / "__MACOSX" / ROOT / "tissue-train-neg"
    debris.mkdir(parents=True)
    (debris / "._n1.jpg").write_bytes(b"not an image")
    (negative / "Thumbs.db").write_bytes(b"not an image")
    return root


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write_archive(tmp_path_factory.mktemp("digestpath"))


@pytest.fixture(scope="module")
def built(archive, tmp_path_factory):
    return build("digestpath", archive, tmp_path_factory.mktemp("built"), allow_counts=True)


def both(built, scheme):
    return [e for part in ("train", "test") for e in open_examples(built, f"{scheme}/{part}")]


def test_crops_follow_the_published_rule(built):
    found = {e.id: (e.label, e.slide_id, e.attributes["scale"]) for e in both(built, "by_image_0.3")}
    negative = {
        "n1": ["x2_0_0", "x2_201_0"],
        "n2": ["x2_201_0"],
        "n4": [f"x2_{left}_{top}" for left in (0, 201, 403, 604) for top in (0, 201)] + ["x4_0_0", "x4_201_0"],
        "p1": ["x2_201_0", "x2_201_201"],
    }
    benign = {f"{stem}/{crop}.png": ("benign", stem, crop[1]) for stem, crops in negative.items() for crop in crops}
    malignant = {f"{stem}/x2_0_0.png": ("malignant", stem, "2") for stem in ("p1", "p2")}
    assert found == benign | malignant


def test_both_thresholds_are_there_by_name(built):
    def count(scheme):
        return collections.Counter(e.label for e in both(built, scheme))

    assert count("as_published_0.3") == count("by_image_0.3") == {"benign": 15, "malignant": 2}
    assert count("as_published_0.5") == count("by_image_0.5") == {"benign": 15, "malignant": 1}
    shares = {e.id: float(e.attributes["tumour_share"]) for e in both(built, "by_image_0.3") if e.label == "malignant"}
    assert shares == {"p1/x2_0_0.png": pytest.approx(88 / 224, abs=1e-6), "p2/x2_0_0.png": 1}


def test_the_published_split_mixes_images_and_ours_does_not(built):
    train, test = (open_examples(built, f"as_published_0.3/{part}") for part in ("train", "test"))
    assert (len(train), len(test)) == (11, 6)  # int(0.7 * 17)
    assert {e.slide_id for e in train} & {e.slide_id for e in test}
    train, test = (open_examples(built, part) for part in ("train", "test"))  # the default: 0.3 is nearer to 6,690
    assert {e.slide_id for e in train} & {e.slide_id for e in test} == set()
    assert {e.slide_id for e in train} | {e.slide_id for e in test} == {"n1", "n2", "n4", "p1", "p2"}


def test_a_crop_is_cut_from_the_reduced_image(archive, built):
    source = archive / ROOT / "tissue-train-neg" / "tissue-train-neg" / "n2.jpg"
    with Image.open(source) as image:
        expected = image.resize((500, 350), Image.Resampling.BICUBIC).crop((201, 0, 425, 224))
    example = next(e for e in both(built, "by_image_0.5") if e.slide_id == "n2")
    with Image.open(io.BytesIO(example.image)) as crop:
        assert np.array_equal(np.asarray(crop), np.asarray(expected))


def test_an_image_is_decoded_once_to_look_and_once_to_cut(archive, tmp_path, monkeypatch):
    opened = collections.Counter()

    def count(path, *args):
        opened[path.name] += 1
        return open_jpeg(path, *args)

    monkeypatch.setattr(digestpath, "open_jpeg", count)
    build("digestpath", archive, tmp_path, allow_counts=True)
    assert opened == {"n1.jpg": 2, "n2.jpg": 2, "n3.jpg": 1, "n4.jpg": 2, "p1.jpg": 2, "p2.jpg": 2} | {
        "p1_mask.jpg": 1,
        "p2_mask.jpg": 1,
    }


def test_large_images_open_below_an_explicit_limit(archive, monkeypatch):
    path = archive / ROOT / "tissue-train-pos-v1" / "p1.jpg"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400_000)  # Pillow refuses more than twice as many
    with path.open("rb") as file, pytest.raises(Image.DecompressionBombError):
        Image.open(file)
    with open_jpeg(path) as image:
        assert image.getpixel((500, 500)) == pytest.approx(TISSUE, abs=2)  # JPEG's own error
    with pytest.raises(SetError, match="expected at most 999,999 pixels, got 1000 x 1000"):
        open_jpeg(path, max_pixels=999_999)


def test_the_build_says_what_each_threshold_gives_and_fails_where_neither_fits(archive, tmp_path, capsys):
    build("digestpath", archive, tmp_path / "out", allow_counts=True)
    said = capsys.readouterr().out
    assert "threshold 0.3: 2 malignant and 15 benign crops, published are 6,690 and 56,023; the nearer one" in said
    assert "threshold 0.5: 1 malignant and 15 benign crops" in said
    assert "split by source image" in said
    with pytest.raises(
        SetError, match=r"images malignant: expected 250, got 2 \(-248\).*benign: expected 56,023, got 15"
    ):
        build("digestpath", archive, tmp_path / "strict")


def test_the_case_is_the_unit_where_every_name_tells_it(tmp_path):
    stems = ["18-00530A_2019-05-07 22_56_22-lv1-17048-21057-4079-5052", "18-00530B_2019-05-08 10_00_00-lv1-1-2-3-4"]
    for stem in stems:
        write_image(tmp_path / "tissue-train-neg", stem, 700, 700)
    write_image(
        tmp_path / "tissue-train-pos-v1", "18-00731A_2019-05-08 10_00_00-lv1-1-2-3-4", 700, 700, tumour=(700, 700)
    )
    built = build("digestpath", tmp_path, tmp_path / "out", allow_counts=True)
    found = open_examples(built, "by_image_0.5/train")  # a class of one case is not split
    assert {(e.slide_id, e.patient_id) for e in found if e.label == "benign"} == {(stem, "18-00530") for stem in stems}
    assert {e.patient_id for e in found if e.label == "malignant"} == {"18-00731"}


def test_a_missing_or_foreign_mask_is_named(tmp_path):
    write_archive(tmp_path)
    mask = tmp_path / ROOT / "tissue-train-pos-v1" / "p1_mask.jpg"
    Image.new("L", (10, 10)).save(mask)
    with pytest.raises(SetError, match=r"p1_mask.jpg: expected the size of its image, got \(10, 10\)"):
        build("digestpath", tmp_path, tmp_path / "out", allow_counts=True)
    mask.write_bytes(mask.read_bytes()[:100])
    with pytest.raises(SetError, match=r"p1_mask.jpg"):
        build("digestpath", tmp_path, tmp_path / "out", allow_counts=True)
    mask.unlink()
    with pytest.raises(SetError, match=r"tissue-train-pos-v1: 1 masks are missing, first p1_mask.jpg"):
        build("digestpath", tmp_path, tmp_path / "out", allow_counts=True)
