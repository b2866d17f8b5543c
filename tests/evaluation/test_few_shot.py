"""kNN and SimpleShot against brute force and scikit-learn, ties included; which examples an episode draws."""

import json
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from small_classes import draw_classes, make_examples, make_inputs

from plip_jax.evaluation import few_shot
from plip_jax.evaluation.bootstrap import BootstrapConfig
from plip_jax.evaluation.embeddings import EvaluationError, normalize_rows
from plip_jax.evaluation.few_shot_task import FEW_SHOT, FewShotConfig
from plip_jax.evaluation.units import Units, units_of

COUNTS = {"a": 40, "b": 30, "c": 20}


@pytest.mark.parametrize("block", [1, 40, 2**23])
def test_neighbours_are_in_the_order_of_score_then_row_however_many_are_equal(monkeypatch, block):
    monkeypatch.setattr(few_shot, "_BLOCK", block)
    rng = np.random.default_rng(0)
    # Few different values and repeated rows: most scores are equal to others, some negative, some zero of either sign.
    train = rng.integers(-1, 2, (37, 3)).astype(np.float32)
    queries = np.concatenate([rng.integers(-1, 2, (10, 3)), [[0, 0, 0]], [[-0.0, 1, -1]]]).astype(np.float32)
    scores = queries @ train.T  # small integers: exact in any order of summation
    expected = [np.lexsort((np.arange(37), -row))[:9] for row in scores]
    np.testing.assert_array_equal(few_shot.nearest(train, queries, 9), expected)
    np.testing.assert_array_equal(few_shot.nearest(train, queries, 37)[:, :9], expected)


@pytest.mark.parametrize("k", [1, 5])
def test_knn_answers_are_those_of_sklearn_where_no_vote_is_tied(k):
    labels, train = draw_classes({"a": 80, "b": 80}, 6, 0)
    _, queries = draw_classes({"a": 100, "b": 100}, 6, 1)
    train, queries = normalize_rows(train), normalize_rows(queries)
    ids = np.asarray([label == "b" for label in labels], np.int64)
    found = few_shot.vote(ids[few_shot.nearest(train, queries, k)], 2)
    other = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(train, ids).predict(queries)
    np.testing.assert_array_equal(found, other)


def test_a_tied_vote_goes_to_the_class_of_the_nearest_neighbour():
    neighbours = np.array([[2, 1, 1, 2], [1, 2, 2, 0], [0, 1, 2, 3], [3, 0, 0, 3], [1, 0, 0, 0]])
    assert few_shot.vote(neighbours, 4).tolist() == [2, 2, 0, 3, 0]
    assert few_shot.vote(neighbours[:, :1], 4).tolist() == [2, 1, 0, 3, 1]


def test_episodes_draw_their_own_classes_each_example_once_from_as_many_units_as_there_are():
    # Class 0: six slides of three; class 1: two slides, one of 1 and one of 9.
    labels = np.array([0] * 18 + [1] * 10)
    names = [f"p{i % 6}" for i in range(18)] + ["q0"] + ["q1"] * 9
    mix = np.random.default_rng(3).permutation(28)
    labels, units = labels[mix], units_of("slide", tuple(names[i] for i in mix))
    drawn = few_shot.draw_episodes(labels, units, 2, shots=4, episodes=300, seed=0)
    assert drawn.shape == (300, 2, 4)
    np.testing.assert_array_equal(labels[drawn], np.broadcast_to([[0], [1]], (300, 2, 4)))
    of = units.of_item[drawn]
    for episode in range(300):
        assert [len(set(drawn[episode, k])) for k in (0, 1)] == [4, 4]
        assert len(set(of[episode, 0])) == 4
        assert len(set(of[episode, 1, :2])) == 2  # both slides before either gives a second
    # Seeded, every example is drawn at some time, and each slide of a class comes first as often.
    np.testing.assert_array_equal(few_shot.draw_episodes(labels, units, 2, 4, 300, 0), drawn)
    assert (few_shot.draw_episodes(labels, units, 2, 4, 300, 1) != drawn).any()
    assert len(np.unique(drawn)) == 28
    first = np.unique(of[:, 1, 0], return_counts=True)[1] / 300
    assert first == pytest.approx([0.5, 0.5], abs=0.12)  # 4 standard deviations of 300 fair draws


def test_a_class_that_is_drawn_whole_is_there_whole():
    labels = np.array([0, 1, 0, 1, 0])
    drawn = few_shot.draw_episodes(labels[:5], Units("slide", np.zeros(5, np.int64), 1), 2, 2, 50, 0)
    assert {tuple(sorted(row)) for row in drawn[:, 1]} == {(1, 3)}
    assert {tuple(sorted(row)) for row in drawn[:, 0]} == {(0, 2), (0, 4), (2, 4)}
    with pytest.raises(EvaluationError, match="3 or more examples of class 1 to draw, got 2"):
        few_shot.draw_episodes(labels, Units("patch", np.arange(5), 5), 2, 3, 1, 0)


@pytest.mark.parametrize("block", [1, 2**23])
def test_simple_shot_is_the_nearest_class_mean_of_centred_normalised_features(monkeypatch, block):
    monkeypatch.setattr(few_shot, "_BLOCK", block)
    labels, train = draw_classes(COUNTS, 5, 0)
    right, queries = draw_classes(COUNTS, 5, 1)
    ids, right_ids = (np.asarray([ord(label) - ord("a") for label in some]) for some in (labels, right))
    mean = train.mean(axis=0)

    def cl2n(features):
        moved = features.astype(np.float64) - mean
        return moved / np.linalg.norm(moved, axis=1, keepdims=True)

    drawn = few_shot.draw_episodes(ids, Units("patch", np.arange(len(ids)), len(ids)), 3, 5, 7, 0)
    found = np.concatenate(
        list(few_shot.simple_shot(few_shot.centre(train, mean), few_shot.centre(queries, mean), drawn))
    )
    assert found.shape == (7, len(queries))
    for episode, answers in zip(drawn, found, strict=True):
        model = NearestCentroid().fit(cl2n(train)[episode.ravel()], np.repeat([0, 1, 2], 5))
        np.testing.assert_array_equal(answers, model.predict(cl2n(queries)))
    counts = few_shot.confusion_of_episodes(right_ids, found, 3)
    for one, answers in zip(counts, found, strict=True):
        expected = [[int(((right_ids == i) & (answers == j)).sum()) for j in range(3)] for i in range(3)]
        assert one.tolist() == expected


def test_a_row_that_is_the_mean_is_centred_to_zero():
    assert few_shot.centre(np.array([[1, 2], [1, 5]]), np.array([1, 2])).tolist() == [[0, 0], [0, 1]]


def settings(**changes: Any) -> FewShotConfig:
    return FewShotConfig(**{"train_split": "train", "neighbours": (3, 1), "shots": (1, 4), "episodes": 40, **changes})


def make_task_inputs(bootstrap: BootstrapConfig | None = None):
    data, features = {}, {}
    for seed, role in enumerate(("train", "test")):
        labels, features[role] = draw_classes(COUNTS, 8, seed, spread=0.4)
        data[role] = make_examples(role, labels, [f"{role}{label}{i % 30}" for i, label in enumerate(labels)])
    return make_inputs(data, features, bootstrap), features


def test_the_task_scores_both_and_says_what_its_intervals_are_over():
    inputs, features = make_task_inputs(BootstrapConfig(resamples=100))
    result = FEW_SHOT.run(settings(), inputs)
    report = result.report
    assert tuple(report["metrics"]) == FEW_SHOT.metric_names(settings())
    assert next(iter(report["metrics"])) == "knn_3_macro_f1"
    train, test = normalize_rows(features["train"]), normalize_rows(features["test"])
    model = KNeighborsClassifier(1, metric="cosine", algorithm="brute").fit(train, inputs.data["train"].labels)
    answers = model.predict(test)
    assert [row["knn_1"] for row in result.rows] == answers.tolist()
    right = inputs.test.labels
    assert report["metrics"]["knn_1_macro_f1"] == pytest.approx(
        f1_score(right, answers, average="macro"),
        abs=1e-12,  # float64 rounding
    )
    assert report["metrics"]["knn_1_balanced_accuracy"] == pytest.approx(
        balanced_accuracy_score(right, answers),
        abs=1e-12,  # the same
    )
    # kNN's intervals are over slides of the test split; SimpleShot's are over episodes and stand apart.
    assert report["bootstrap"]["unit"] == "slide-level"
    assert {name.split("_")[0] for name in report["bootstrap"]["intervals"]} == {"knn"}
    episodes = report["episodes"]
    assert "over episodes" in episodes["interval"]
    assert {name.split("_")[0] for name in episodes["metrics"]} == {"simpleshot"}
    one, four = (episodes["metrics"][f"simpleshot_{shots}_balanced_accuracy"] for shots in (1, 4))
    assert one["low"] < one["mean"] < one["high"]
    assert one["mean"] + 0.03 < four["mean"]
    assert four["sd"] < one["sd"]
    assert four["mean"] == report["metrics"]["simpleshot_4_balanced_accuracy"]
    assert np.array(report["confusion"]["counts"]).sum() == len(right)
    assert result.correct is not None
    assert report["metrics"]["knn_3_accuracy"] == result.correct.mean()
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_fewer_shots_are_the_first_of_more_so_settings_do_not_change_each_others_scores():
    inputs, _ = make_task_inputs()
    both = FEW_SHOT.run(settings(), inputs).report
    alone = FEW_SHOT.run(settings(neighbours=(), shots=(4,)), inputs).report
    assert alone["metrics"]["simpleshot_4_mcc"] == both["metrics"]["simpleshot_4_mcc"]
    assert "confusion" not in alone
    neighbours = FEW_SHOT.run(settings(shots=()), inputs).report
    assert "episodes" not in neighbours
    assert neighbours["metrics"]["knn_1_mcc"] == both["metrics"]["knn_1_mcc"]


def test_what_does_not_fit_is_refused():
    inputs, _ = make_task_inputs()
    with pytest.raises(EvaluationError, match=r"too few of b \(30\), c \(20\)"):
        FEW_SHOT.check(settings(shots=(2, 31)), inputs.data)
    with pytest.raises(EvaluationError, match="at most the 90 training examples"):
        FEW_SHOT.check(settings(neighbours=(91,)), inputs.data)
    for changes, message in (
        ({"train_split": ""}, "train_split"),
        ({"neighbours": (0,)}, "neighbours"),
        ({"shots": (2, 2)}, "shots"),
        ({"shots": (), "neighbours": ()}, "nothing to measure"),
        ({"episodes": 0}, "episodes"),
    ):
        with pytest.raises(EvaluationError, match=message):
            settings(**changes)
