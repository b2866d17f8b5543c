"""Examples for evaluation, from records folders and from folders of class folders."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.shards import RecordsWriter
from plip_jax.data.examples import ClassFolders, ExamplesError, open_examples
from plip_jax.data.records import Record


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_images(root: Path, *names: str) -> None:
    for value, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(value))


def test_class_folders_are_sorted_and_their_names_are_the_labels(tmp_path):
    write_images(tmp_path, "TUM/b.png", "ADI/z.jpg", "TUM/a.png", "ADI/case 1/deep.PNG")
    examples = open_examples(tmp_path)
    assert isinstance(examples, ClassFolders)
    assert examples.class_names == ("ADI", "TUM")
    assert [e.id for e in examples] == ["ADI/case 1/deep.PNG", "ADI/z.jpg", "TUM/a.png", "TUM/b.png"]
    assert [e.label for e in examples] == ["ADI", "ADI", "TUM", "TUM"]
    assert examples[3].image == png(0)
    assert examples[-1] == examples[3]
    assert examples[1:3] == [examples[1], examples[2]]


def test_what_file_managers_leave_behind_is_passed_over(tmp_path):
    write_images(tmp_path, "ADI/a.png", "__MACOSX/ADI/._a.png", "ADI/._a.png", ".git/x.png", "ADI/.cache/y.png")
    for name in ("ADI/Thumbs.db", "ADI/.DS_Store", "labels.csv", "ADI/notes.txt"):
        (tmp_path / name).write_text("x")
    assert [e.id for e in open_examples(tmp_path)] == ["ADI/a.png"]


def test_a_split_of_class_folders_is_named_or_asked_for(tmp_path):
    write_images(tmp_path, "train/ADI/a.png", "train/TUM/b.png", "test/ADI/c.png")
    assert [e.id for e in open_examples(tmp_path, "train")] == ["ADI/a.png", "TUM/b.png"]
    with pytest.raises(ExamplesError, match=r"test, train .* look like splits"):
        open_examples(tmp_path)
    with pytest.raises(ExamplesError, match=r"no folder 'val'; found test/, train/"):
        open_examples(tmp_path, "val")


def test_slides_within_classes_are_not_taken_for_splits(tmp_path):
    write_images(tmp_path, "ADI/slide1/a.png", "TUM/slide2/b.png")
    assert [e.label for e in open_examples(tmp_path)] == ["ADI", "TUM"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "is not a folder"),
        (lambda root: root.mkdir(), "found nothing"),
        (lambda root: write_images(root, "a.png"), r"found a\.png\. Expected a records folder"),
        (lambda root: (root / "ADI").mkdir(parents=True), r"found ADI/\. Expected .* PATH/CLASS/NAME"),
    ],
)
def test_other_paths_are_refused_with_what_was_found(tmp_path, make, message):
    make(tmp_path / "data")
    with pytest.raises(ExamplesError, match=message):
        open_examples(tmp_path / "data")


def test_records_folder_with_one_split_or_a_named_one(tmp_path):
    with RecordsWriter(tmp_path / "one") as writer:
        writer.write(Record("x", png(1), ("a caption",), label="ADI"), "test")
    with RecordsWriter(tmp_path / "two") as writer:
        writer.write(Record("x", png(1), ("a caption",)), "test")
        writer.write(Record("y", png(1), ("a caption",)), "train")
    assert [e.label for e in open_examples(tmp_path / "one")] == ["ADI"]
    assert [e.id for e in open_examples(tmp_path / "two", "train")] == ["y"]
    with pytest.raises(ExamplesError, match=r"has the splits test, train: say which"):
        open_examples(tmp_path / "two")


@pytest.mark.realdata
def test_colon_regions(realdata):
    examples = open_examples(realdata / "colon_regions3", "test")
    labels = [example.label for example in examples]
    assert {label: labels.count(label) for label in set(labels)} == {"ADI": 54, "NORM": 100, "BACK": 100}
