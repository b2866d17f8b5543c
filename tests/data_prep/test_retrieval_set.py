"""A benchmark set from any records folder: duplicates by image and caption go, the rest stays as it was."""

import json

import numpy as np
import pytest
from PIL import Image

from data_prep import retrieval_set
from data_prep.shards import RecordsWriter
from plip_jax.data.examples import open_examples
from plip_jax.data.records import Record, open_records
from tests.small_tissue import encoded, tissue

WHITE = Image.new("RGB", (40, 40), "white")
RECORDS = [
    Record("a", encoded(tissue(0)), ("A gland.", "Colon, H&E"), "post1"),
    Record("b", encoded(tissue(0), "JPEG", quality=70), ("a  GLAND.",), "post2"),  # the image and caption of a
    Record("c", encoded(tissue(0).resize((64, 64))), ("Another view of it",), "post3"),  # the image of a
    Record("d", encoded(tissue(1)), ("A gland.",), "post4"),  # a caption of a
    Record("e", encoded(tissue(2)), ("Stroma",)),
    Record("f", encoded(tissue(2).transpose(Image.Transpose.ROTATE_90)), ("Stroma",)),  # e, turned
    Record("g", encoded(WHITE), ("Nothing",)),
    Record("h", encoded(WHITE), ("Nothing",)),  # equal bytes
    Record("i", encoded(WHITE.resize((41, 41))), ("Nothing",)),  # blank too, but no copy of the file
]


@pytest.fixture
def folder(tmp_path):
    with RecordsWriter(tmp_path / "all") as writer:
        writer.write(Record("train", encoded(tissue(9)), ("A gland.",)), "train")
        for record in RECORDS:
            writer.write(record, "validation")
    return tmp_path / "all"


@pytest.mark.parametrize(
    ("duplicates", "kept", "left"),
    [
        ("both", "acdegi", (1, 2)),  # c shows a's image; d says what a says, and i what g says
        ("image", "adegi", (0, 2)),
        ("caption", "aceg", (1, 0)),
    ],
)
def test_duplicates_are_dropped_and_reported(folder, tmp_path, capsys, duplicates, kept, left):
    out = tmp_path / "set"
    arguments = ["--records", str(folder), "--split", "validation", "--out", str(out), "--duplicates", duplicates]
    assert retrieval_set.main(arguments) == 0
    assert f"{len(kept)} of 9 pairs kept" in capsys.readouterr().out
    written = open_records(out, "test")
    assert list(written) == [record for record in RECORDS if record.id in kept]
    report = json.loads((out / retrieval_set.REPORT_NAME).read_text())
    assert (report["read"], report["kept"], report["dropped"]) == (9, len(kept), 9 - len(kept))
    assert tuple(report["left"].values()) == left
    assert {"id": "b", "of": "a"} in report["listed"]
    assert report["fingerprint"] == open_records(folder, "validation").fingerprint


def test_the_set_opens_for_evaluation(folder, tmp_path):
    retrieval_set.make_retrieval_set(open_records(folder, "validation"), tmp_path / "set")
    examples = open_examples(tmp_path / "set")
    assert [(example.id, example.group_id) for example in examples][:2] == [("a", "post1"), ("c", "post3")]


def test_a_pair_that_says_more_stays(folder):
    captions = [frozenset("x"), frozenset("xy"), frozenset("x")]
    found = retrieval_set.find_duplicates({1: [0], 2: [0, 1]}, captions, "both")
    assert found == [retrieval_set.Duplicate(2, 0)]


def test_a_chain_of_copies_is_measured_from_those_that_stay():
    hashes = np.array([[0], [0b1111], [0b11111111]], np.uint64)
    equal = retrieval_set.find_equal_images(hashes, [""] * 3, radius=4)
    assert equal == {1: [0], 2: [1]}
    # 1 goes because of 0; 2 is like 1 only, which is gone, so it stays.
    assert retrieval_set.find_duplicates(equal, [frozenset("x")] * 3, "image") == [retrieval_set.Duplicate(1, 0)]


def test_an_unknown_split_is_named(folder, tmp_path, capsys):
    assert retrieval_set.main(["--records", str(folder), "--split", "dev", "--out", str(tmp_path / "set")]) == 1
    assert "has no split 'dev'" in capsys.readouterr().err
