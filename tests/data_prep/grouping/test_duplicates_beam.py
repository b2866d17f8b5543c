"""The Beam transform finds the groups that numpy finds, and a bucket links as little as it can."""

import itertools

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.grouping.duplicates import duplicate_groups
from data_prep.grouping.duplicates_beam import GroupDuplicates, band_keys, link_bucket, unite_links


def to_bytes(value: int) -> bytes:
    return value.to_bytes(8, "big")


def near(rng: np.random.Generator, count: int) -> np.ndarray:
    """Random hashes, half of them earlier ones with up to four bits changed, some equal."""
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    for row in range(1, count, 2):
        bits = rng.choice(64, rng.integers(0, 5), replace=False).astype(np.uint64)
        hashes[row] = hashes[rng.integers(row)] ^ np.bitwise_or.reduce(np.uint64(1) << bits, initial=0)
    return hashes


def test_beam_finds_the_groups_of_numpy():
    rng = np.random.default_rng(0)
    hashes = near(rng, 300)
    hashes[200:260] = hashes[200]
    names = [f"pair{number:03}" for number in rng.permutation(300)]
    groups = duplicate_groups(hashes, 3)
    least = {label: min(name for name, other in zip(names, groups, strict=True) if other == label) for label in groups}
    expected = [(name, least[label]) for name, label in zip(names, groups, strict=True)]
    assert 5 < len(least) < 200
    rows = [(name, to_bytes(int(value))) for name, value in zip(names, hashes, strict=True)]
    # Digests of flat images: equal or not, however few bits differ.
    rows += [("flat1", bytes(32)), ("flat0", bytes(32)), ("flat2", bytes(31) + b"\1")]
    expected += [("flat1", "flat0"), ("flat0", "flat0"), ("flat2", "flat2")]
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        found = pipeline | "rows" >> beam.Create(rows) | "group" >> GroupDuplicates(3)
        assert_that(found, equal_to(expected))


def test_nothing_close_and_nothing_at_all_go_through():
    for rows in ([("a", to_bytes(1)), ("b", to_bytes(2**64 - 1))], []):
        with beam.Pipeline(runner=FnApiRunner()) as pipeline:
            found = pipeline | "rows" >> beam.Create(rows) | "group" >> GroupDuplicates(3)
            assert_that(found, equal_to([(name, name) for name, _ in rows]))


@given(st.integers(0, 2**64 - 1), st.integers(0, 10), st.data())
def test_close_hashes_share_a_band(value, radius, data):
    other = value
    for bit in data.draw(st.lists(st.integers(0, 63), max_size=radius)):
        other ^= 1 << bit
    assert set(band_keys(to_bytes(value), radius)) & set(band_keys(to_bytes(other), radius))
    # The bands are all of the hash: together they give it back.
    cuts = [64 * band // (radius + 1) for band in range(radius + 1)]
    keys = band_keys(to_bytes(value), radius)
    assert sum(int.from_bytes(bits, "big") << cuts[band] for band, bits in keys) == value


@settings(deadline=None)  # other processes share the core
@given(st.integers(0, 1000), st.integers(0, 25))
def test_a_bucket_gives_a_spanning_forest(seed, count):
    hashes = np.unique(near(np.random.default_rng(seed), count)) if count else np.empty(0, np.uint64)
    nodes = [(to_bytes(int(value)), f"id{row}") for row, value in enumerate(hashes)]
    links = list(link_bucket(reversed(nodes), 3))
    groups = duplicate_groups(hashes, 3)
    assert len(links) == len(nodes) - len(set(groups.tolist()))
    united = dict(unite_links(links))
    for (row, one), (other_row, other) in itertools.combinations(enumerate(nodes), 2):
        together = one[0] in united and united[one[0]] == united.get(other[0])
        assert together == (groups[row] == groups[other_row])


def test_a_radius_that_has_no_bands_is_refused():
    with pytest.raises(ValueError, match="0 to 63 bits, got 64"):
        GroupDuplicates(64)
