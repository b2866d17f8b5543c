"""Linear gates: what they decide, what they refuse, and what a threshold promises."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.metrics import precision_recall_curve

from data_prep.curation.pair import KEPT, Decision, Pair, drop
from data_prep.images.gate_training import TrainingSettings, _parts, least_threshold, train_gate
from data_prep.images.gates import (
    Counts,
    Gate,
    GateError,
    GateSettings,
    apply_gates,
    count,
    describe,
    held_by,
    load_gate,
    load_gates,
    lower_bound,
    may_show,
    save_gate,
    score,
    scores_of,
)

COUNTS = Counts(9, 1, 8, 2, 0.95, 0.6, 0.5)
MODEL = {"model": "tiny", "fingerprint": "f00d"}


def make_gate(name: str = "pathology", role: str = "require", **changes: object) -> Gate:
    gate = Gate(
        name=name,
        role=role,
        weights=(math.log(9), 0.0),
        bias=0.0,
        threshold=0.7,
        stated_precision=0.9,
        held_out=COUNTS,
        private=role == "hold",
        trained_on={"seed": 0},
        version="0",
        **MODEL,
    )
    return dataclasses.replace(gate, **changes)


def make_pair(**changes: object) -> Pair:
    return dataclasses.replace(Pair("twitter:1:0", "twitter", "1", "1", "0"), **changes)


def clouds(count: int, gap: float, seed: int = 0, width: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    positive, negative = rng.normal(size=(2, count, width))
    positive[:, 0] += gap
    negative[:, 0] -= gap
    return positive, negative


def test_the_score_is_the_sigmoid_of_the_normalised_row() -> None:
    # (1, 0) has the logit log 9, so 9 / (9 + 1); its length does not count; (0, 1) has the logit 0.
    scores = score(make_gate(), np.array([[1.0, 0], [25.0, 0], [-3.0, 0], [0, 2.0]]), fingerprint="f00d")
    np.testing.assert_array_equal(scores, [0.9, 0.9, 0.1, 0.5])


def test_a_score_does_not_depend_on_the_batch() -> None:
    rng = np.random.default_rng(0)
    gate = make_gate(weights=tuple(rng.normal(size=512)))
    features = rng.normal(size=(33, 512)).astype(np.float32)
    together = score(gate, features, fingerprint="f00d")
    alone = [score(gate, row[None], fingerprint="f00d")[0] for row in features]
    assert together.tolist() == alone
    assert len(score(gate, features[:0], fingerprint="f00d")) == 0


def test_scores_by_the_names_of_the_gates() -> None:
    gates = (make_gate(), make_gate("face", "hold", weights=(0.0, math.log(4))))
    features = np.array([[1.0, 0], [0, 1.0]])
    assert scores_of(gates, features, fingerprint="f00d") == [
        {"pathology": 0.9, "face": 0.5}, {"pathology": 0.5, "face": 0.8}
    ]  # fmt: skip
    assert scores_of((), features, fingerprint="f00d") == [{}, {}]
    assert scores_of(gates, features[:0], fingerprint="f00d") == []


def test_features_of_another_model_or_width_are_refused() -> None:
    with pytest.raises(GateError, match=r"trained on features of tiny \(f00d\), these are of beef"):
        score(make_gate(), np.ones((1, 2)), fingerprint="beef")
    with pytest.raises(GateError, match=r"expected features \[N, 2\], got \(1, 3\)"):
        score(make_gate(), np.ones((1, 3)), fingerprint="f00d")
    with pytest.raises(GateError, match="1 rows of the features are zero or not finite, the first is 1"):
        score(make_gate(), np.array([[1.0, 0], [0, 0]]), fingerprint="f00d")


def test_separable_kinds_are_told_apart() -> None:
    positive, negative = clouds(120, gap=6)
    gate = train_gate(positive, negative, TrainingSettings(precision=0.99), name="pathology", **MODEL)
    fresh_positive, fresh_negative = clouds(200, gap=6, seed=1)
    assert (score(gate, fresh_positive, fingerprint="f00d") >= gate.threshold).mean() > 0.97
    assert (score(gate, fresh_negative, fingerprint="f00d") >= gate.threshold).mean() < 0.03
    assert gate.held_out.precision >= 0.99
    assert (gate.trained_on["positive"], gate.trained_on["seed"], gate.private) == (120, 0, False)
    again = train_gate(positive, negative, TrainingSettings(precision=0.99), name="pathology", **MODEL)
    assert again == gate


def test_the_recorded_counts_are_of_images_that_were_not_trained_on() -> None:
    """Random labels: a gate can learn its training images by heart, but not the held-out ones."""
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(size=(2, 150, 200))
    with pytest.raises(
        GateError, match=r"precision of 0.99 and a recall of 0.1 on the 90 held-out images: the best precision is 0"
    ):
        train_gate(positive, negative, TrainingSettings(precision=0.99), name="noise", **MODEL)


def test_a_precision_that_overlap_forbids_is_refused_and_a_lower_one_is_not() -> None:
    positive, negative = clouds(200, gap=0.6)
    negative[:, 0] += 0.4
    gate = train_gate(positive, negative, TrainingSettings(precision=0.7), name="p", role="hold", **MODEL)
    assert gate.held_out.precision >= 0.7
    assert gate.held_out.precision_bound < gate.held_out.precision
    assert gate.private
    stricter = train_gate(positive, negative, TrainingSettings(precision=0.8), name="p", **MODEL)
    assert stricter.threshold > gate.threshold
    assert stricter.held_out.recall < gate.held_out.recall


@given(
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=40),
    st.sampled_from([0.5, 0.75, 1.0]),
    st.sampled_from([0.0, 0.5]),
)
def test_the_threshold_is_the_least_that_scikit_learn_finds(
    items: list[tuple[int, bool]], precision: float, least_recall: float
) -> None:
    scores, truth = np.array([s / 10 for s, _ in items]), np.array([t for _, t in items])
    if not truth.any():
        with pytest.raises(GateError, match="no threshold"):
            least_threshold(scores, truth, precision, least_recall)
        return
    shares, recalls, thresholds = precision_recall_curve(truth, scores)
    # The last point of the curve is (1, 0) and has no threshold.
    good = thresholds[(shares[:-1] >= precision) & (recalls[:-1] >= max(least_recall, 1e-9))]
    if not len(good):
        with pytest.raises(GateError, match="the best precision is"):
            least_threshold(scores, truth, precision, least_recall)
        return
    threshold = least_threshold(scores, truth, precision, least_recall)
    below = scores[scores < good.min()]
    assert threshold == pytest.approx((good.min() + below.max()) / 2 if len(below) else good.min(), abs=1e-6)
    assert ((scores >= threshold) == (scores >= good.min())).all()


def test_neighbouring_scores_leave_no_room_for_a_middle() -> None:
    scores = np.array([0.500001, 0.5])
    assert least_threshold(scores, np.array([True, False]), 1.0, 0.1) == 0.500001


def test_the_bound_is_the_share_at_which_so_many_successes_become_improbable() -> None:
    """Clopper-Pearson by its definition: with the bound as the true share, 47 or more of 50 have a chance of 5 %."""
    bound = lower_bound(47, 50, 0.95)
    assert binom.sf(46, 50, bound) == pytest.approx(0.05, abs=1e-9)  # the quantile's own accuracy
    assert lower_bound(0, 50, 0.95) == 0
    assert lower_bound(50, 50, 0.95) == pytest.approx(0.05 ** (1 / 50))


def test_counts() -> None:
    scores, truth = np.array([0.9, 0.8, 0.7, 0.6, 0.1]), np.array([True, False, True, True, False])
    counts = count(scores, truth, 0.7)
    assert dataclasses.astuple(counts)[:4] == (2, 1, 1, 1)
    assert (counts.precision, counts.recall) == (2 / 3, 2 / 3)


def test_groups_stay_in_one_part_and_each_part_has_both_kinds() -> None:
    rng = np.random.default_rng(0)
    groups = np.array([f"slide{i}" for i in rng.integers(0, 30, 400)])
    truth = rng.random(400) < 0.5
    part = _parts(groups, truth, TrainingSettings())
    for group in set(groups):
        assert len(set(part[groups == group])) == 1
    for name, share in [("train", 0.5), ("validation", 0.2), ("holdout", 0.3)]:
        assert 0 < truth[part == name].mean() < 1
        assert abs((part == name).mean() - share) < 0.1
    assert part.tolist() == _parts(groups, truth, TrainingSettings()).tolist()
    assert part.tolist() != _parts(groups, truth, TrainingSettings(seed=1)).tolist()


def test_too_few_images_or_groups_are_refused() -> None:
    positive, negative = clouds(40, gap=3)
    with pytest.raises(GateError, match="5 negative images: expected at least 6"):
        train_gate(positive, negative[:5], TrainingSettings(), name="p", **MODEL)
    with pytest.raises(GateError, match=r"the part '.*' has .* of 2 groups: expected at least"):
        train_gate(positive, negative, TrainingSettings(), name="p", groups=["a"] * 40 + ["b"] * 40, **MODEL)
    with pytest.raises(GateError, match="groups: expected 80 names"):
        train_gate(positive, negative, TrainingSettings(), name="p", groups=["a"], **MODEL)
    with pytest.raises(GateError, match="expected one width"):
        train_gate(positive, negative[:, :3], TrainingSettings(), name="p", **MODEL)
    with pytest.raises(GateError, match="precision: expected above 0"):
        TrainingSettings(precision=1.2)
    with pytest.raises(GateError, match="that leave some images to train on"):
        TrainingSettings(holdout=0.6, validation=0.4)


def test_a_gate_survives_its_file_bit_by_bit(tmp_path: Path) -> None:
    weights = tuple(np.random.default_rng(0).normal(size=16).tolist())
    gate = make_gate(weights=weights, bias=0.1 + 0.2)
    save_gate(gate, tmp_path / "gate.json")
    assert load_gate(tmp_path / "gate.json") == gate
    described = json.loads(json.dumps(describe(gate)))
    assert (described["precision"], described["recall"], described["threshold"]) == (0.9, 9 / 11, 0.7)
    assert "weights" not in described


def test_files_that_are_no_gates_are_named(tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    with pytest.raises(GateError, match="cannot be read"):
        load_gate(path)
    save_gate(make_gate(), path)
    values = json.loads(path.read_text())
    for broken in (
        "[]",
        "no json",
        json.dumps({**values, "format": "2"}),
        json.dumps({**values, "extra": 1}),
        json.dumps({**values, "weights": "abc"}),
        json.dumps({**values, "held_out": {}}),
    ):
        path.write_text(broken)
        with pytest.raises(GateError, match="train it again"):
            load_gate(path)
    for change, message in [({"role": "maybe"}, "expected a role"), ({"threshold": math.nan}, "finite numbers"),
                            ({"name": "a b"}, "letters, digits")]:  # fmt: skip
        path.write_text(json.dumps({**values, **change}))
        with pytest.raises(GateError, match=message):
            load_gate(path)


def test_gates_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    def settings(*gates: Gate, **wrong: tuple[str, ...]) -> GateSettings:
        paths: dict[str, tuple[str, ...]] = {"require": (), "hold": ()}
        for number, gate in enumerate(gates):
            save_gate(gate, tmp_path / f"{number}.json")
            paths[gate.role] += (str(tmp_path / f"{number}.json"),)
        return GateSettings(**{**paths, **wrong})

    text = make_gate("text", "hold")
    assert load_gates(settings(text, make_gate())) == (make_gate(), text)
    with pytest.raises(GateError, match="two gates are called 'text'"):
        load_gates(settings(text, text))
    with pytest.raises(GateError, match="of different models"):
        load_gates(settings(make_gate(), make_gate("text", "hold", fingerprint="beef")))
    with pytest.raises(GateError, match="was trained with --role hold and is set to require"):
        load_gates(settings(text, require=(str(tmp_path / "0.json"),), hold=()))


def test_a_pair_is_dropped_below_a_required_gate_and_held_at_an_impurity_gate() -> None:
    gates = (make_gate(), make_gate("face", "hold"), make_gate("label", "hold", threshold=0.2))
    clean = apply_gates(make_pair(scores={"older": 1.0}), {"pathology": 0.7, "face": 0.69, "label": 0.1}, gates)
    assert isinstance(clean, Pair)
    assert clean.scores == {"older": 1.0, "pathology": 0.7, "face": 0.69, "label": 0.1}
    assert held_by(clean, gates) == ()
    held = apply_gates(make_pair(), {"pathology": 0.9, "face": 0.7, "label": 0.2}, gates)
    assert isinstance(held, Pair)
    assert held_by(held, gates) == ("face", "label")
    other = apply_gates(make_pair(), {"pathology": 0.699999, "face": 0.9, "label": 0.0}, gates)
    assert isinstance(other, Decision)
    assert (other.stage, other.reason, other.detail) == ("gate", "not_pathology", "score 0.699999, threshold 0.7")
    assert other.pair is not None
    assert other.pair.scores["face"] == 0.9


def test_what_a_report_may_show() -> None:
    gates = (make_gate(), make_gate("face", "hold"))
    harmless = make_pair(scores={"pathology": 0.1, "face": 0.1})
    face = make_pair(scores={"pathology": 0.1, "face": 0.8})
    assert may_show(drop(harmless, "gate", "not_pathology"), gates)
    assert may_show(drop(harmless, "duplicate", "duplicate"), gates)
    assert may_show(drop(harmless, KEPT, ""), gates)
    # A face that failed as pathology was never reviewed; one that a person released is as good as any.
    assert not may_show(drop(face, "gate", "not_pathology"), gates)
    assert may_show(drop(face, KEPT, ""), gates)
    assert not may_show(drop(face, "gate", "held_face"))
    assert not may_show(drop(harmless, "gate", "not_pathology"), (make_gate(private=True),))
    for stage in ("hydrate", "image", "verdict", "text"):
        assert not may_show(drop(harmless, stage, "any"), gates)
    assert not may_show(drop(make_pair(safety=0.5), "gate", "not_pathology"), gates)
    assert may_show(drop(make_pair(safety=0.49), "gate", "not_pathology"), gates)
    assert not may_show(Decision("post", "twitter:1", "twitter", "source", "repost"), gates)
