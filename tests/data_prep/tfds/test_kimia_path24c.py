"""The KIMIA Path24C builder on patches that the test writes in the published layout, with its faults planted."""

import pytest
from PIL import Image

from data_prep.tfds.base import SetError
from data_prep.tfds.build import build
from data_prep.tfds.kimia_path24c import CLASSES
from plip_jax.data.examples import open_examples


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    root = tmp_path_factory.mktemp("kimia")
    test = root / "KIMIA_Path24C" / "Test-patches" / "Test-patches"
    for place in ("s10/a.jpg", "s2/b.jpg", "s2/deeper/b.jpg", "s0/c.jpg", "s23/d.jpg"):
        path = test / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (200, 100, 150)).save(path)
    training = root / "KIMIA_Path24C" / "Training-patches" / "s0"
    training.mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(training / "x.jpg")
    (test / "s0" / "Thumbs.db").write_bytes(b"not an image")
    debris = root / "__MACOSX" / "KIMIA_Path24C" / "Test-patches" / "s0"
    debris.mkdir(parents=True)
    (debris / "._c.jpg").write_bytes(b"not an image")
    return root


def test_slides_are_classes_in_the_order_of_their_numbers(archive, tmp_path):
    test = open_examples(build("kimia_path24c", archive, tmp_path, allow_counts=True), "test")
    assert [(e.id, e.label, e.slide_id) for e in test] == [
        ("s0/c.jpg", "s0", "s0"),
        ("s2/b.jpg", "s2", "s2"),
        ("s2/deeper/b.jpg", "s2", "s2"),
        ("s10/a.jpg", "s10", "s10"),
        ("s23/d.jpg", "s23", "s23"),
    ]
    assert CLASSES[:3] + CLASSES[-1:] == ("s0", "s1", "s2", "s23")


def test_counts_that_are_off_fail(archive, tmp_path):
    with pytest.raises(SetError, match=r"in all: expected 1,325, got 5 \(-1,320\)"):
        build("kimia_path24c", archive, tmp_path)


@pytest.mark.parametrize(("place", "message"), [("slide_7/a.jpg", "got slide_7"), ("s24/a.jpg", "classes s24")])
def test_another_folder_is_refused(tmp_path, place, message):
    path = tmp_path / "Test-patches" / place
    path.parent.mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(path)
    with pytest.raises(SetError, match=message):
        build("kimia_path24c", tmp_path, tmp_path / "out", allow_counts=True)
