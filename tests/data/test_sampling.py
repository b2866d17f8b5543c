"""The order of the records: a permutation for every size, unbiased, and computed without a table."""

import pickle

import numpy as np
import pytest

from plip_jax.data.sampling import make_mixture


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_the_order_is_a_permutation_for_every_size(size):
    mixture = make_mixture([size], [None], seed=0)
    for epoch in range(3):
        assert sorted(mixture.draw(epoch, place).record for place in range(size)) == list(range(size))


def test_every_record_stands_everywhere_equally_often():
    mixture = make_mixture([10], [None], seed=0)
    counts = np.zeros((10, 10))
    for epoch in range(200):
        for place in range(10):
            counts[place, mixture.draw(epoch, place).record] += 1
    # chi-square of 100 cells with 81 degrees of freedom: 200 is beyond p = 1e-11
    assert ((counts - 20) ** 2 / 20).sum() < 200


def test_a_hundred_million_records_need_no_memory():
    mixture = make_mixture([10**8, 3 * 10**7], [2.0, 1.0], seed=1)
    assert mixture.draws == (10**8, 5 * 10**7)
    drawn = [mixture.draw(2, place) for place in range(0, 15 * 10**7, 10**6)]
    assert len({d.index for d in drawn}) == len(drawn)
    assert 0.5 < np.mean([d.source == 0 for d in drawn]) < 0.8
    assert len(pickle.dumps(mixture)) < 1000
