"""Image to image: posts, classes of neighbours, chance by shuffling and by counting, intervals, pictures."""

import dataclasses
import json

import numpy as np
import pytest

from plip_jax.evaluation import image_retrieval
from plip_jax.evaluation.bootstrap import BootstrapConfig
from plip_jax.evaluation.embeddings import EvaluationError
from plip_jax.evaluation.examples import Examples
from plip_jax.evaluation.image_retrieval_task import (
    IMAGE_RETRIEVAL,
    ImageRetrievalConfig,
    image_retrieval_metric_names,
    run_image_retrieval,
)
from plip_jax.evaluation.retrieval import random_recalls
from plip_jax.evaluation.task import Inputs, Model


@dataclasses.dataclass(frozen=True)
class Record:
    id: str
    angle: float
    label: str = ""
    group_id: str = ""
    slide_id: str = ""
    captions: tuple[str, ...] = ()

    @property
    def image(self) -> bytes:
        return str(self.angle).encode()


def encode(images, *, names) -> np.ndarray:
    angles = np.radians([float(image.decode()) for image in images])
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def inputs(records, resamples: int = 0) -> Inputs:
    bootstrap = BootstrapConfig(resamples) if resamples else None
    return Inputs({"test": Examples.from_records(records)}, Model("m", lambda one: one.embed(encode)), bootstrap)


# On a line of angles: the posts p (0, 30), q (10, 25, 80) and two images without company.
POSTS = [
    Record("a", 0, "x", "p", "s1"),
    Record("b", 30, "x", "p", "s1"),
    Record("c", 10, "y", "q", "s2"),
    Record("d", 25, "x", "q", "s2"),
    Record("e", 80, "y", "q", "s3"),
    Record("f", 41, "y", "r", "s3"),
    Record("g", 100, "y", "", "s3"),
]


def test_same_post_by_hand():
    result = run_image_retrieval(ImageRetrievalConfig(recall_at=(1, 3)), inputs(POSTS))
    # a: c 10, d 25 before b 30. b: d 5, f 11, c 20 before a 30. c: a 10 before d 15. d: b 5 before c 15; e at 55.
    # e: g 20, f 39, b 50 before d 55.
    assert [(row["query"], row["rank"], row["num_right"]) for row in result.rows] == [
        ("a", 3, 1), ("b", 4, 1), ("c", 2, 2), ("d", 2, 2), ("e", 4, 2),
    ]  # fmt: skip
    report = result.report
    assert (report["num_queries"], report["num_left_out"], report["num_candidates"]) == (5, 2, 6)
    assert report["metrics"]["recall@1"] == 0
    assert report["metrics"]["recall@3"] == 3 / 5
    assert report["metrics"]["median_rank"] == 3
    # Among the other six: one right 3/6, two right 1 - (4 3 2)/(6 5 4).
    exact = (2 * 0.5 + 3 * 0.8) / 5
    assert report["recall"]["3"]["random_exact"] == pytest.approx(exact, abs=1e-15)  # one rounding
    assert report["recall"]["3"]["random"] == pytest.approx(exact, abs=0.03)  # four standard errors of 1,000 shuffles
    assert report["metrics"]["fold@3"] == pytest.approx(0.6 / report["recall"]["3"]["random"], rel=1e-12)  # rounding
    assert tuple(sorted(report["metrics"])) == tuple(
        sorted(image_retrieval_metric_names(ImageRetrievalConfig(recall_at=(1, 3))))
    )
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_the_picture_names_the_query_and_never_shows_it():
    result = run_image_retrieval(ImageRetrievalConfig(pictured_queries=9, pictured_images=3), inputs(POSTS))
    first = result.gallery[0]
    assert (first.query_image, first.shown, first.right, first.best_right, first.rank) == (
        "a", ("c", "d", "b"), ("b",), "b", 3,
    )  # fmt: skip
    assert all(row.query_image not in row.shown for row in result.gallery)


def test_other_targets_and_the_lack_of_them():
    result = run_image_retrieval(ImageRetrievalConfig(target="slide", recall_at=(1,)), inputs(POSTS))
    assert [(row["query"], row["num_right"]) for row in result.rows] == [
        *zip("abcdefg", (1, 1, 1, 1, 2, 2, 2), strict=True)
    ]
    with pytest.raises(EvaluationError, match="no two of 7 examples have one patient"):
        run_image_retrieval(ImageRetrievalConfig(target="patient"), inputs(POSTS))


def test_shuffles_agree_with_the_exact_chance_for_groups_of_any_size():
    group_of = np.repeat([0, 1, 2, 3, -1], [2, 3, 9, 1, 25])
    queries = np.flatnonzero((group_of >= 0) & (group_of != 3))
    found = image_retrieval.simulated_recalls(group_of, queries, (1, 5, 20), rankings=4000, seed=0)
    num_right = np.bincount(group_of[queries])[group_of[queries]] - 1
    for row, k in zip(found, (1, 5, 20), strict=True):
        exact = random_recalls(39, num_right, k)
        # Four standard errors of each query's share, with a fixed seed.
        assert (np.abs(row - exact) < 4 * np.sqrt(exact * (1 - exact) / 4000) + 1e-9).all()
    again = image_retrieval.simulated_recalls(group_of, queries, (1, 5, 20), rankings=4000, seed=0)
    np.testing.assert_array_equal(again, found)


def test_random_embeddings_retrieve_no_more_than_shuffles():
    rng = np.random.default_rng(0)
    records = [Record(f"{i}", float(angle), group_id=f"{i // 3}") for i, angle in enumerate(rng.uniform(0, 360, 1500))]
    result = run_image_retrieval(ImageRetrievalConfig(recall_at=(50,)), inputs(records))
    assert result.report["metrics"]["fold@50"] == pytest.approx(1, abs=0.35)  # four standard errors


NEIGHBOURS = np.array([[1, 2, 3, 4], [0, 2, 3, 4], [3, 4, 0, -1], [2, 4, -1, -1], [-1, -1, -1, -1]])
LABELS = np.array([0, 0, 1, 1, 0])


def test_neighbour_measures_by_hand():
    scores = image_retrieval.neighbour_scores(NEIGHBOURS, LABELS, (1, 3, 4))
    # Their classes: 0 1 1 0; 0 1 1 0; 1 0 0 -; 1 0 - -; none.
    np.testing.assert_array_equal(scores.precision[0], [1, 1, 1, 1, 0])
    np.testing.assert_array_equal(scores.precision[1], [1 / 3, 1 / 3, 1 / 3, 1 / 2, 0])
    np.testing.assert_array_equal(scores.precision[2], [1 / 2, 1 / 2, 1 / 3, 1 / 2, 0])
    np.testing.assert_array_equal(scores.vote[1], [1, 1, 0, 1, -1])
    np.testing.assert_array_equal(scores.vote[2], [0, 0, 0, 1, -1])  # two against two: the nearest one's class
    np.testing.assert_array_equal(scores.hit[2], [True, True, True, True, False])


def test_votes_equal_scikit_learns_where_nothing_ties():
    from sklearn.neighbors import KNeighborsClassifier

    rng = np.random.default_rng(4)
    features, labels = rng.normal(size=(300, 5)), rng.integers(0, 2, 300)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    order = np.argsort(-(features @ features.T), axis=1)
    order = np.stack([row[row != query][:7] for query, row in enumerate(order)])
    votes = image_retrieval.neighbour_scores(order, labels, (7,)).vote[0]
    expected = [
        KNeighborsClassifier(7)
        .fit(np.delete(features, query, 0), np.delete(labels, query))
        .predict(features[[query]])[0]
        for query in range(60)
    ]
    np.testing.assert_array_equal(votes[:60], expected)


def test_classes_of_neighbours_by_hand():
    result = run_image_retrieval(ImageRetrievalConfig(mode="label", neighbours_at=(1, 2)), inputs(POSTS))
    # Nearest two: a(x): c d. b(x): d f. c(y): a d. d(x): b c. e(y): g f. f(y): b d. g(y): e f.
    metrics = result.report["metrics"]
    assert metrics["precision@1"] == pytest.approx(4 / 7)  # b, d, e, g
    assert metrics["precision@2"] == pytest.approx((0.5 + 0.5 + 0 + 0.5 + 1 + 0 + 1) / 7)
    assert metrics["hit@2"] == pytest.approx(5 / 7)
    # b, d, e, g by vote; a's neighbours tie, and the nearest is of another class
    assert metrics["majority_vote@2"] == pytest.approx(4 / 7)
    assert result.rows[0] == {
        "id": "a", "label": "x", "precision@1": 0, "precision@2": 0.5, "majority_vote@1": "y", "majority_vote@2": "y",
        "hit@1": False, "hit@2": True,
    }  # fmt: skip
    assert result.report["random"]["precision@1"] == pytest.approx((3 * 2 / 6 + 4 * 3 / 6) / 7)
    assert result.report["random"]["hit@2"] == pytest.approx((3 * (1 - 4 * 3 / 30) + 4 * (1 - 3 * 2 / 30)) / 7)
    assert result.report["per_class"]["y"]["hit@2"] == 0.5
    assert json.loads(json.dumps(result.report, allow_nan=False)) == result.report


def test_neighbours_of_the_querys_slide_can_be_left_out():
    config = ImageRetrievalConfig(mode="label", neighbours_at=(1,), exclude_same="slide")
    result = run_image_retrieval(config, inputs(POSTS))
    # a finds c (y), b and d each other, c finds a (x); e, f and g lose each other and find b: x.
    assert [row["hit@1"] for row in result.rows] == [False, True, False, True, False, False, False]
    picture = {row.query_image: row for row in result.gallery}
    assert all("b" not in row.shown for name, row in picture.items() if name == "a")
    with pytest.raises(EvaluationError, match="have no patient"):
        run_image_retrieval(dataclasses.replace(config, exclude_same="patient"), inputs(POSTS))
    with pytest.raises(EvaluationError, match="7 of 7 examples have no candidate of another slide"):
        run_image_retrieval(config, inputs([dataclasses.replace(record, slide_id="s") for record in POSTS]))


@pytest.mark.parametrize("config", [ImageRetrievalConfig(recall_at=(1, 3)), ImageRetrievalConfig(mode="label")])
def test_intervals_are_of_every_metric_over_the_highest_unit(config):
    result = run_image_retrieval(config, inputs(POSTS, resamples=50))
    block = result.report["bootstrap"]
    assert (block["unit"], block["num_units"], block["resamples"]) == ("slide-level", 3, 50)
    assert set(block["intervals"]) == set(result.report["metrics"]) == set(image_retrieval_metric_names(config))
    assert all(values.shape == (50,) for values in result.replicates.values())
    for name, interval in block["intervals"].items():
        if interval is not None:
            assert interval[0] <= result.report["metrics"][name] <= interval[1]


def test_the_headline_is_at_ten():
    assert image_retrieval_metric_names(ImageRetrievalConfig())[0] == "recall@10"
    assert image_retrieval_metric_names(ImageRetrievalConfig(mode="label", neighbours_at=(1, 5)))[0] == "precision@5"
    assert not IMAGE_RETRIEVAL.needs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "post"}, "mode: expected one of 'same_post', 'label'"),
        ({"target": "case"}, "target: expected one of"),
        ({"exclude_same": "slide"}, "only for mode label"),
        ({"neighbours_at": ()}, "neighbours_at: expected cut-offs"),
        ({"random_rankings": 0}, "random_rankings"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(EvaluationError, match=message):
        ImageRetrievalConfig(**settings)


def test_unlabelled_images_and_huge_groups_are_refused_before_anything_is_embedded():
    config = ImageRetrievalConfig(mode="label")
    with pytest.raises(EvaluationError, match="1 of 8 examples have no label, first 'h'"):
        IMAGE_RETRIEVAL.check(config, inputs([*POSTS, Record("h", 0)]).data)
    many = Examples.from_records([Record(f"{i}", 0, group_id="one") for i in range(10_001)])
    with pytest.raises(EvaluationError, match="mode='label'"):
        IMAGE_RETRIEVAL.check(ImageRetrievalConfig(), {"test": many})
