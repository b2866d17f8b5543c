"""The splits that several builders share."""

import numpy as np
import pytest

from data_prep.tfds.base import SetError
from data_prep.tfds.splits import pandas_order, random_parts, random_rows, unit_parts, unit_rows
from data_prep.tfds.tables import read_table


def test_the_order_is_that_of_pandas_sample():
    # pandas 3.1.1: pd.Series(range(10)).sample(frac=1, random_state=1).tolist()
    assert pandas_order(10, 1).tolist() == [2, 9, 6, 4, 0, 3, 1, 7, 8, 5]
    generator = np.random.RandomState(1)  # what pandas calls
    assert np.array_equal(pandas_order(1000, 1), generator.choice(1000, 1000, replace=False))


def test_the_first_seventy_percent_of_the_order_are_for_training():
    train, test = random_rows(10)
    assert train == [2, 9, 6, 4, 0, 3, 1]
    assert test == [7, 8, 5]
    parts = random_parts("abcd", labels="1234")
    assert parts["train"].filenames + parts["test"].filenames == ("d", "c", "a", "b")
    assert parts["test"].labels == ("1", "2")
    assert len(parts["train"].filenames) == 2  # int(0.7 * 4)


def test_units_stay_whole_and_every_class_comes_close_to_its_share():
    rng = np.random.default_rng(0)
    units = [f"slide{number}" for number in rng.integers(0, 40, 2000)]
    labels = [("a", "a", "b")[number] for number in rng.integers(0, 3, 2000)]
    shares = {"train": 0.6, "val": 0.1, "test": 0.3}
    rows = unit_rows(units, labels, shares)
    assert sorted(row for part in rows.values() for row in part) == list(range(2000))
    slides = [{units[row] for row in part} for part in rows.values()]
    assert sum(map(len, slides)) == len(set().union(*slides)) == 40
    for part, share in shares.items():
        for label in "ab":
            got = sum(labels[row] == label for row in rows[part]) / labels.count(label)
            assert abs(got - share) < 0.04  # half of one slide of 50 among about 700 of a class
    assert rows == unit_rows(units, labels, shares)
    assert rows != unit_rows(units, labels, shares, seed=2)


def test_a_lone_unit_goes_to_the_largest_part_and_an_empty_part_is_left_out():
    assert unit_rows(["s", "s"], ["a", "b"], {"train": 0.7, "test": 0.3}) == {"train": [0, 1]}
    parts = unit_parts(["1", "2", "3"], ["s", "s", "t"], ["a", "a", "a"], {"train": 0.7, "test": 0.3}, own_labels=True)
    assert parts["train"].filenames == ("1", "2")
    assert parts["test"].labels == ("a",)


def test_tables_are_read_with_their_faults_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfImage Name, Partition\r\n"a, b.png",train\r\n')
    assert read_table(path, ["Partition"]) == [{"Image Name": "a, b.png", "Partition": "train"}]
    with pytest.raises(SetError, match="expected the columns label, got Image Name, Partition"):
        read_table(path, ["label"])
    path.write_text("a,b\n1,2\n3\n")
    with pytest.raises(SetError, match="line 3: expected 2 values"):
        read_table(path, ["a"])
    path.write_bytes(b"a,b\n\xff,2\n")
    with pytest.raises(SetError, match="not a table in UTF-8"):
        read_table(path, ["a"])
