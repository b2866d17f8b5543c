"""The audit of a suite: scored sets looked for among the training images, and scored again without what is found."""

import dataclasses

import numpy as np
import pytest

from plip_jax.data.perceptual_hash import close_pairs
from plip_jax.evaluation import suite
from plip_jax.evaluation.audit import AuditConfig, audit_sets
from plip_jax.evaluation.embeddings import EvaluationError
from plip_jax.evaluation.examples import Examples
from plip_jax.evaluation.task import Inputs, Model, Task, TaskResult


@dataclasses.dataclass(frozen=True)
class Record:
    id: str
    image: bytes
    label: str = ""
    captions: tuple[str, ...] = ()


def make_examples(name: str, numbers: list[int]) -> Examples:
    return Examples.from_records([Record(f"{name}{n}", bytes([n]), "ab"[n % 2]) for n in numbers])


def hash_images(examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """An image's number, spread over 64 bits so that two of them differ in many."""
    bits = [np.random.default_rng(record.image[0]).integers(0, 2**63, 8, np.uint64) for record in examples.records]
    return np.stack(bits), np.zeros(len(examples), bool)


def encode(images, *, names) -> np.ndarray:
    return np.stack([np.random.default_rng(image[0]).normal(size=16) for image in images])


MODEL = Model("m", lambda examples: examples.embed(encode) if examples.origin is None else never(examples))


def never(examples: Examples):
    raise AssertionError("a subset is cut from its whole")


def run(config, inputs: Inputs) -> TaskResult:
    metrics = {"share_of_a": float(np.mean([label == "a" for label in inputs.test.labels]))}
    report = {"type": "share", "num_examples": len(inputs.test), "metrics": metrics, "hashes": {}}
    return TaskResult(report, ())


def check(config, data) -> None:
    if len(set(data["test"].labels)) < 2:
        raise EvaluationError("expected two classes")


TASK = Task(dict, check, run, lambda config: ("share_of_a",))


def planned(*splits: str) -> list[suite.PlannedTask]:
    return [suite.PlannedTask(f"on {split}", "share", TASK, {}, "set", split) for split in splits]


DATA = {("set", "x"): make_examples("x", [0, 1, 2, 3, 5]), ("set", "y"): make_examples("y", [10, 11, 12])}


def test_copies_are_found_by_either_witness_and_scores_given_without_them():
    training = make_examples("t", [20, 3, 21, 1, 22])
    tasks = planned("x", "y")
    found = audit_sets(
        training, DATA, tasks, MODEL, AuditConfig(data="d"), hash_images=hash_images, close_pairs=close_pairs
    )
    assert {source: rows.tolist() for source, rows in found.flagged.items()} == {("set", "x"): [1, 3], ("set", "y"): []}
    assert found.report["sets"]["set x"]["flagged"] == {"hash": 2, "embedding": 2, "both": 2, "either": 2}
    assert [(row["set"], row["test_id"], row["train_id"]) for row in found.rows] == [
        ("set x", "x1", "t1"), ("set x", "x3", "t3"),
    ]  # fmt: skip
    assert "5 training images of d train" in found.report["method"]
    reports = suite.run_without(tasks, DATA, MODEL, suite.run_tasks(tasks, DATA, MODEL), found.flagged)
    assert list(reports) == ["on x"]  # nothing was flagged in y: its scores stand
    assert reports["on x"]["num_examples"] == 3
    assert reports["on x"]["metrics"] == {"share_of_a": 2 / 3}


def test_too_little_left_is_said_and_stops_nothing():
    tasks = planned("x", "y")
    everything = {source: np.arange(len(examples)) for source, examples in DATA.items()}
    results = suite.run_tasks(tasks, DATA, MODEL)
    reports = suite.run_without(tasks, DATA, MODEL, results, everything)
    assert {name: report["not_scored"] for name, report in reports.items()} == dict.fromkeys(
        ("on x", "on y"), "expected at least one example, got an empty subset"
    )
    one_class = {("set", "y"): np.array([0, 2])}
    assert suite.run_without(tasks, DATA, MODEL, results, one_class) == {"on y": {"not_scored": "expected two classes"}}


def test_a_task_that_a_model_cannot_do_is_named_and_left_out():
    needs = dataclasses.replace(TASK, needs=frozenset({"text", "tower"}))
    item = dataclasses.replace(planned("x")[0], task=needs)
    assert suite.lacks(needs, MODEL) == "it embeds no text"
    assert (
        suite.lacks(needs, dataclasses.replace(MODEL, encode_text=encode)) == "its weights are not here to be trained"
    )
    assert suite.lacks(TASK, MODEL) == ""
    assert suite.run_tasks([item], DATA, MODEL) == {}
    failing = dataclasses.replace(TASK, run=lambda config, inputs: check(config, {"test": inputs.test.subset([0])}))
    with pytest.raises(EvaluationError, match="task on x, model m: expected"):
        suite.run_tasks([dataclasses.replace(item, task=failing)], DATA, MODEL)


def test_a_failed_task_is_told_and_the_others_stand():
    failing = dataclasses.replace(TASK, run=lambda config, inputs: check(config, {"test": inputs.test.subset([0])}))
    tasks = [dataclasses.replace(planned("x")[0], task=failing), *planned("y")]
    failed = {}
    results = suite.run_tasks(tasks, DATA, MODEL, on_error=lambda name, error: failed.update({name: str(error)}))
    assert list(results) == ["on y"]
    assert failed == {"on x": "expected two classes"}


def test_answers_that_were_learned_are_counted_again_and_not_learned_again():
    asked = []

    def rescore(left_out):
        asked.append(set(left_out))
        return {"num_examples": 1}

    learned = dataclasses.replace(
        TASK, run=lambda config, inputs: dataclasses.replace(run(config, inputs), rescore=rescore)
    )
    tasks = [dataclasses.replace(planned("x")[0], task=learned)]
    results = suite.run_tasks(tasks, DATA, MODEL)
    flagged = {("set", "x"): np.array([1, 4])}
    assert suite.run_without(tasks, DATA, MODEL, results, flagged) == {"on x": {"num_examples": 1}}
    assert asked == [{"x1", "x5"}]


class NoSplitError(ValueError):
    pass


class NoFolderError(ValueError):
    pass


def test_a_part_that_a_set_does_not_hold_makes_its_task_absent_or_is_done_without():
    def open_examples(data, split):
        if split in ("train", "gone"):
            raise NoSplitError(f"no split {split}")
        if split == "folder":
            raise NoFolderError("no folder")
        return DATA["set", split or ""].records

    def trained(config):
        return {"train": "train"}

    can_do_without = dataclasses.replace(TASK, splits=trained, optional=frozenset(["train"]))
    must_learn = dataclasses.replace(TASK, splits=lambda config: {"train": "folder"})
    tasks = [
        dataclasses.replace(planned("x")[0], task=can_do_without),
        dataclasses.replace(planned("y")[0], task=must_learn),
        *planned("gone"),
    ]
    errors = {"no_split": (NoSplitError, NoFolderError), "not_in_set": (NoSplitError,)}
    kept, opened, absent = suite.open_available(tasks, open_examples, **errors, allow_absent=True)
    assert [item.name for item in kept] == ["on x"]
    assert absent == {"on y": "no folder", "on gone": "no split gone"}
    assert set(suite.data_of(kept[0], opened)) == {"test"}
    with pytest.raises(NoFolderError):  # a folder without what is to be scored is a mistake
        suite.open_available(planned("folder"), open_examples, **errors, allow_absent=True)
    with pytest.raises(
        EvaluationError, match=r"task on y learns from.*--tasks \(the others are on x,on gone\): no folder"
    ):
        suite.open_available(tasks, open_examples, **errors)
    with pytest.raises(NoSplitError):
        suite.open_data(tasks, open_examples)
