"""What the kept pairs are: counts by hand, the median against numpy."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.curation.pair import Pair
from data_prep.reports.composition import TOP_HASHTAGS, measure_composition, median_of


def pair(number: int, source: str = "twitter", **fields) -> Pair:
    given = {"caption": "two words", "split": "train", "clean_digest": f"{number:064x}", "author": f"{number:032x}"}
    return Pair(f"{source}:{number}:0", source, str(number), str(number), "0", **(given | fields))


PAIRS = [
    pair(1, created_at="2021-03-04T05:06:07Z", hashtags=("BreastPath", "GIPath", "breastpath")),
    pair(2, created_at="2021-03-31T23:59:59Z", hashtags=("BreastPath",), caption="one\nor  two words"),
    pair(3, created_at="2020-12-01T00:00:00Z", hashtags=("breastpath",), split="test"),
    pair(4, "laion", licence="unknown", author="", clean_digest=f"{1:064x}", caption="one"),
    pair(5, "laion", licence="unknown", author=f"{1:032x}", created_at="yesterday"),
]


def test_counts_are_the_hand_counted_ones():
    found = measure_composition(PAIRS)
    assert found.splits == {"test": {"twitter": 1}, "train": {"laion": 2, "twitter": 2}}
    assert found.words == {"laion": {1: 1, 2: 1}, "twitter": {2: 2, 4: 1}}
    assert found.hashtags == {"BreastPath": 3, "GIPath": 1}  # once a pair, in the spelling that most pairs use
    assert found.distinct_hashtags == 2
    assert found.months == {"": 2, "2020-12": 1, "2021-03": 2}
    assert found.licences == {"": 3, "unknown": 2}
    assert (found.pairs, found.images, found.authors) == (5, 4, 3)


def test_order_does_not_matter():
    for seed in range(5):
        shuffled = measure_composition(random.Random(seed).sample(PAIRS, len(PAIRS)))
        assert repr(shuffled) == repr(measure_composition(PAIRS))  # as text, so that the order of names counts


def test_only_the_most_frequent_hashtags_are_listed():
    pairs = [pair(number, hashtags=tuple(f"tag{tag:02d}" for tag in range(number, 40))) for number in range(40)]
    found = measure_composition(pairs)
    assert len(found.hashtags) == TOP_HASHTAGS
    assert list(found.hashtags.items())[:2] == [("tag39", 40), ("tag38", 39)]
    assert found.distinct_hashtags == 40


@given(st.dictionaries(st.integers(0, 60), st.integers(1, 9), min_size=1))
def test_median_is_numpys(counts):
    assert median_of(counts) == np.median([value for value, count in counts.items() for _ in range(count)])


def test_no_values_have_no_median():
    with pytest.raises(ValueError, match="no values"):
        median_of({})
