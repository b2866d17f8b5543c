"""Models against each other: the right pairs, one metric a task, corrected over the table."""

import numpy as np
import pytest

from plip_jax.evaluation import bootstrap
from plip_jax.evaluation.comparison import compare_models, compare_over_seeds
from plip_jax.evaluation.examples import Examples
from plip_jax.evaluation.suite import PlannedTask
from plip_jax.evaluation.task import Task, TaskResult
from plip_jax.evaluation.units import choose_units

CONFIG = bootstrap.BootstrapConfig(resamples=200)
NUM = 60
EXAMPLES = Examples(
    ids=tuple(map(str, range(NUM))), labels=("a",) * NUM, captions=((),) * NUM, records=(),
    patient_ids=tuple(map(str, range(NUM))),
)  # fmt: skip


def measured(correct: np.ndarray, **report) -> TaskResult:
    units = choose_units(EXAMPLES)
    replicates = {"accuracy": bootstrap.mean_replicates(correct.astype(float), units, CONFIG)}
    summary = bootstrap.summarize(replicates, units, CONFIG)
    found = {"metrics": {"accuracy": float(correct.mean())}, "hashes": {"split": "s"}, "bootstrap": summary, **report}
    return TaskResult(found, (), replicates=replicates, correct=correct)


def planned(*names: str) -> list[PlannedTask]:
    task = Task(dict, lambda *_: None, lambda *_: None, lambda config: ("accuracy",))
    return [PlannedTask(name, "a type", task, {}, "data", "test") for name in names]


DATA = {("data", "test"): EXAMPLES}
GOOD, BAD = np.arange(NUM) < 54, np.arange(NUM) < 30


def test_every_pair_is_compared_on_the_tasks_both_have():
    results = {
        "good": {"one": measured(GOOD), "two": measured(GOOD)},
        "bad": {"one": measured(BAD), "two": measured(BAD)},
        "same": {"one": measured(GOOD)},
    }
    rows = compare_models(planned("one", "two"), results, DATA)
    assert [(row["task"], row["a"], row["b"]) for row in rows] == [
        ("one", "good", "bad"), ("one", "good", "same"), ("one", "bad", "same"), ("two", "good", "bad"),
    ]  # fmt: skip
    first, same = rows[0], rows[1]
    assert first["difference"] == pytest.approx(0.4, abs=1e-12)  # 54 of 60 less 30 of 60
    assert first["interval"][0] > 0
    assert first["unit"] == "patient-level"
    assert first["mcnemar"] == {"p_value": pytest.approx(2 * 0.5**24), "only_first": 24, "only_second": 0,
                                "refused": None}  # fmt: skip
    assert (same["difference"], same["p_value"], same["p_holm"]) == (0, 1, 1)
    assert all(row["p_holm"] >= row["p_value"] for row in rows)
    assert first["p_holm"] > first["p_value"]  # four comparisons in the table


def test_without_intervals_nothing_is_compared():
    bare = TaskResult({"metrics": {"accuracy": 1.0}, "hashes": {}}, (), correct=GOOD)
    assert compare_models(planned("one"), {"a": {"one": bare}, "b": {"one": bare}}, DATA) == []


def test_a_test_set_of_the_tasks_own_has_no_mcnemar():
    first, second = (TaskResult(r.report, (), replicates=r.replicates) for r in (measured(GOOD), measured(BAD)))
    (row,) = compare_models(planned("one"), {"a": {"one": first}, "b": {"one": second}}, DATA)
    assert "mcnemar" not in row


def test_seeds_are_compared_as_published_and_labelled_so():
    scores = {"a": [0.9, 0.91, 0.92], "b": [0.8, 0.81, 0.82], "c": [0.7]}
    results = {name: {"one": measured(GOOD, seed_scores={"macro_f1": of})} for name, of in scores.items()}
    (row,) = compare_over_seeds(planned("one"), results)  # c has one seed
    assert (row["a"], row["b"], row["setting"]) == ("a", "b", "macro_f1")
    # The difference of the means .1 over the root of two variances of .0001 / 3: 0.1 / 0.0081650 = 12.247.
    assert row["statistic"] == pytest.approx(12.2474487, abs=1e-6)
    assert row["label"] == "as published: not a comparison of models"
