"""Components of rows against relabelling by hand, and what links nothing."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_prep.grouping.components import UNKNOWN, components, hash_text, hash_texts, link_equal, members_of_groups


def spread(count: int, links: list[tuple[int, int]]) -> list[int]:
    """The least row of each component, by relabelling until nothing changes."""
    labels = list(range(count))
    while True:
        before = list(labels)
        for one, other in links:
            labels[one] = labels[other] = min(labels[one], labels[other])
        if labels == before:
            return labels


@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=20))
def test_rows_carry_the_least_row_of_their_component(count, links):
    links = [(one % count, other % count) for one, other in links]
    left, right = np.array(links, np.int64).reshape(-1, 2).T
    assert components(count, left, right).tolist() == spread(count, links)


@given(st.lists(st.integers(0, 4), max_size=15))
def test_equal_values_are_linked_and_unknown_ones_are_not(values):
    left, right = link_equal(np.array(values, np.uint64))
    labels = components(len(values), left, right)
    expected = [row if value == UNKNOWN else values.index(value) for row, value in enumerate(values)]
    assert labels.tolist() == expected
    known = [value for value in values if value != UNKNOWN]
    assert len(left) == len(known) - len(set(known))  # a tree a value


def test_only_groups_of_two_or_more_have_members():
    labels = np.array([0, 1, 0, 3, 4, 3, 3])
    assert [rows.tolist() for rows in members_of_groups(labels)] == [[0, 2], [3, 5, 6]]
    assert members_of_groups(np.arange(3)) == []
    assert members_of_groups(np.empty(0, np.int64)) == []


def test_texts_are_told_apart_and_the_empty_one_is_unknown():
    found = hash_texts(["", "a", "b", "a", "\ud800"])
    assert found[0] == UNKNOWN
    assert found[1] == found[3] == hash_text("a")
    assert len(set(found.tolist())) == 4
