"""Ranks, ties, chance and blocks, against a direct computation and hand-worked numbers."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from plip_jax.evaluation import retrieval
from plip_jax.evaluation.embeddings import EvaluationError


def unit(rows) -> np.ndarray:
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_ranks_by_hand():
    # One feature decides: candidate scores for the query are 0.1, 0.9, 0.5, 0.7.
    candidates = np.array([[s, (1 - s * s) ** 0.5] for s in (0.1, 0.9, 0.5, 0.7)], np.float32)
    query = np.array([[1, 0]], np.float32)
    for target, rank in enumerate([4, 1, 3, 2]):
        np.testing.assert_array_equal(retrieval.first_ranks(query, candidates, [np.array([target])]), [rank])
    # With several right answers the best one counts, and right ones do not stand in each other's way.
    np.testing.assert_array_equal(retrieval.first_ranks(query, candidates, [np.array([0, 3])]), [2])
    np.testing.assert_array_equal(retrieval.first_ranks(query, candidates, [np.array([1, 2, 3])]), [1])


def test_ties_are_ranked_pessimistically():
    candidates = unit(np.ones((5, 8)))
    ranks = retrieval.first_ranks(candidates, candidates, [np.array([i]) for i in range(5)])
    np.testing.assert_array_equal(ranks, [5] * 5)
    ranks = retrieval.first_ranks(candidates[:1], candidates, [np.array([0, 1])])
    np.testing.assert_array_equal(ranks, [4])


@pytest.mark.parametrize("tile", [(1, 1), (4, 8), (32, 16), (1024, 8192)])
def test_blocks_change_nothing(tile):
    rng = np.random.default_rng(0)
    candidates, queries = unit(rng.normal(size=(40, 16))), unit(rng.normal(size=(23, 16)))
    candidates[7] = candidates[31]
    targets = [rng.choice(40, size=rng.integers(1, 5), replace=False) for _ in range(23)]
    ranks = retrieval.first_ranks(queries, candidates, targets, tile=tile)
    scores = queries.astype(np.float64) @ candidates.astype(np.float64).T
    expected = []
    for row, right in zip(scores, targets, strict=True):
        wrong = np.setdiff1d(np.arange(40), right)
        # 1e-12: the same pair of rows scored twice in float64
        expected.append(1 + int((row[wrong] > row[right].max() - 1e-12).sum()))
    np.testing.assert_array_equal(ranks, expected)


def test_relevance_is_by_key_not_by_row():
    targets = retrieval.targets_by_key(["b", "a", "c"], ["a", "b", "b"])
    assert [list(rows) for rows in targets] == [[1, 2], [0], []]
    with pytest.raises(EvaluationError, match=r"1 queries have no right answer.*row 2"):
        retrieval.first_ranks(unit(np.eye(3)), unit(np.eye(3)), targets)


def test_chance_is_k_over_n_for_one_right_answer():
    assert retrieval.random_recall(2023, 1, 10) == Fraction(10, 2023)
    assert retrieval.random_recall(100_000, 1, 50) == Fraction(50, 100_000)
    assert retrieval.random_recall(7, 1, 50) == 1


@pytest.mark.parametrize(("n", "m", "k"), [(5, 2, 1), (6, 3, 2), (6, 2, 5), (4, 4, 1)])
def test_chance_with_several_right_answers_equals_counting_all_draws(n, m, k):
    draws = list(itertools.combinations(range(n), k))
    hits = sum(any(item < m for item in draw) for draw in draws)
    assert retrieval.random_recall(n, m, k) == Fraction(hits, len(draws))


def test_recall_and_fold_by_hand():
    ranks = np.array([1, 3, 12, 100])
    targets = [np.array([0])] * 3 + [np.array([0, 1])]
    recalls = retrieval.recall_at(ranks, targets, num_candidates=200, cut_offs=(1, 10, 50, 500))
    assert [r.hits for r in recalls] == [1, 2, 3, 4]
    assert [r.recall for r in recalls] == [0.25, 0.5, 0.75, 1.0]
    assert recalls[0].random == 5 / 800
    assert recalls[0].fold == 40
    assert recalls[3].random == 1
    assert recalls[3].fold == 1


def test_random_embeddings_recall_what_chance_says():
    rng = np.random.default_rng(1)
    queries, candidates = unit(rng.normal(size=(4000, 8))), unit(rng.normal(size=(300, 8)))
    targets = [rng.choice(300, size=1 + i % 3, replace=False) for i in range(4000)]
    ranks = retrieval.first_ranks(queries, candidates, targets)
    for recall in retrieval.recall_at(ranks, targets, 300, (1, 5, 10, 50)):
        spread = (recall.random * (1 - recall.random) / 4000) ** 0.5
        assert abs(recall.recall - recall.random) < 4 * spread  # four standard errors, with a fixed seed


def test_nearest_are_the_best_first_and_ties_by_row():
    candidates = unit([[1, 0], [0, 1], [1, 0], [1, 1]])
    np.testing.assert_array_equal(retrieval.nearest(unit([[1, 0], [0, 1]]), candidates, 3).rows, [[0, 2, 3], [1, 3, 0]])


def test_an_excluded_candidate_is_not_ranked():
    features = unit(np.eye(4)[[0, 0, 1, 2]] + 0.1)
    targets = [np.array([2]), np.array([0])]
    queries = np.array([0, 1])
    # Row 1 is the query's copy: it stays in the way of row 2, and is itself the best answer to row 1's own query.
    ranks = retrieval.first_ranks(features[queries], features, targets, excluded=queries)
    np.testing.assert_array_equal(ranks, [3, 1])
    np.testing.assert_array_equal(retrieval.first_ranks(features[queries], features, targets), [4, 2])


@pytest.mark.parametrize("tile", [(2, 2), (8, 8), (1024, 8192)])
def test_nearest_equals_a_sort_of_all_scores(tile):
    rng = np.random.default_rng(2)
    candidates, queries = unit(rng.normal(size=(60, 6))), unit(rng.normal(size=(9, 6)))
    candidates[40:50] = candidates[3]  # eleven equal ones
    candidates[55] = candidates[20]
    codes, query_codes = rng.integers(0, 4, 60), rng.integers(0, 4, 9)
    queries[0] = candidates[3]
    scores = queries.astype(np.float64) @ candidates.astype(np.float64).T
    first = np.array([np.flatnonzero((candidates == row).all(axis=1))[0] for row in candidates])
    for k, excluded in ((1, False), (7, False), (7, True), (60, True)):
        given = {"query_codes": query_codes, "candidate_codes": codes} if excluded else {}
        found = retrieval.nearest(queries, candidates, k, tile=tile, **given)
        for query in range(9):
            allowed = np.flatnonzero(~(excluded & (codes == query_codes[query])))
            # By score, then by the first row with these features, then by row.
            order = allowed[np.lexsort((allowed, first[allowed], -scores[query, allowed].round(6)))][:k]
            expected = np.full(k, -1)
            expected[: len(order)] = order
            np.testing.assert_array_equal(found.rows[query], expected)
            # 1e-6: a float32 sum of six products of at most one
            np.testing.assert_allclose(found.scores[query, : len(order)], scores[query, order], atol=1e-6)
            assert (found.scores[query, len(order) :] == -np.inf).all()


def test_chance_of_each_query_is_by_its_number_of_right_answers():
    np.testing.assert_array_equal(
        retrieval.random_recalls(10, np.array([1, 2, 1]), 5), [0.5, 1 - (5 * 4) / (10 * 9), 0.5]
    )


def test_the_curve_begins_at_one_ends_at_the_candidates_and_agrees_with_recall():
    ranks, targets = np.array([1, 4, 7]), [np.array([0])] * 3
    curve = retrieval.recall_curve(ranks, targets, 8)
    assert curve["k"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert curve["recall"] == [1 / 3, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3, 1, 1]
    assert curve["random"] == [k / 8 for k in range(1, 9)]
    points = retrieval.curve_cut_offs(100_000)
    assert (points[0], points[-1]) == (1, 1000)
    assert len(points) <= 60
    assert list(points) == sorted(set(points))
    assert retrieval.curve_cut_offs(1) == (1,)


def test_resampled_recalls_equal_those_of_repeated_queries():
    rng = np.random.default_rng(3)
    ranks, example_of = rng.integers(1, 30, 50), rng.integers(0, 20, 50)
    num_right = rng.integers(1, 4, 50)
    chances = np.stack([retrieval.random_recalls(100, num_right, k) for k in (1, 10)])
    weights = rng.integers(0, 3, (40, 20)).astype(np.int32)
    found = retrieval.resampled_recalls(ranks, chances, example_of, (1, 10), weights)
    for row, weight in enumerate(weights):
        repeated = np.repeat(np.arange(50), weight[example_of])
        assert found["median_rank"][row] == np.median(ranks[repeated])
        assert found["recall@10"][row] == pytest.approx((ranks[repeated] <= 10).mean(), rel=1e-12)  # order of sums
        expected = (ranks[repeated] <= 1).sum() / chances[0, repeated].sum()
        assert found["fold@1"][row] == pytest.approx(expected, rel=1e-12)  # order of sums


def test_a_resample_without_queries_has_no_number():
    found = retrieval.resampled_recalls(
        np.array([3]), np.array([[0.5]]), np.array([1]), (1,), np.array([[2, 0], [0, 1]])
    )
    assert np.isnan([values[0] for values in found.values()]).all()
    assert found["median_rank"][1] == 3
