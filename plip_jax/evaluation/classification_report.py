"""What the tasks that learn from a training split have in common: class order, the part to choose on, the report.

Their reports carry ``constant_class``, ``per_class`` and ``confusion`` in the layout of zero-shot classification.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from plip_jax.evaluation import bootstrap, statistics
from plip_jax.evaluation.bootstrap import BootstrapConfig
from plip_jax.evaluation.embeddings import EvaluationError
from plip_jax.evaluation.examples import Examples
from plip_jax.evaluation.task import TEST
from plip_jax.evaluation.units import Units, choose_units

TRAIN = "train"
VAL = "val"

METRICS = tuple(field.name for field in dataclasses.fields(statistics.ClassificationMetrics))

# Classes named in an error; the rest are counted.
_NAMED = 10


def number_labels(
    data: Mapping[str, Examples], classes: Sequence[str] = ()
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Put the classes in order and number each split's labels.

    Args:
        data: the splits by role, "train" among them.
        classes: their order; empty for the sorted labels of the training split.

    Returns:
        The classes, and label ids int64 [N] by role.

    Raises:
        EvaluationError: an example without a label, a label that is not a class, a class without a training example,
            or a single class.
    """
    for role, examples in data.items():
        bare = [name for name, label in zip(examples.ids, examples.labels, strict=True) if not label]
        if bare:
            raise EvaluationError(
                f"the {role} split: expected a label for each example, {len(bare)} of {len(examples)} have none, "
                f"first {bare[0]!r}"
            )
    trained = set(data[TRAIN].labels)
    order = tuple(classes) or tuple(sorted(trained))
    if len(set(order)) != len(order) or len(order) < 2:
        raise EvaluationError(f"expected two or more different classes, got {_named(order)}")
    untrained = [label for label in order if label not in trained]
    if untrained:
        raise EvaluationError(
            f"classes: expected a training example of each class, there is none of {_named(untrained)}"
        )
    number = {label: k for k, label in enumerate(order)}
    for role, examples in data.items():
        unknown = sorted(set(examples.labels) - set(number))
        if unknown:
            why = "classes does not name" if classes else "no training example has"
            raise EvaluationError(
                f"the {role} split has labels that {why}: {_named(unknown)} (classes: {_named(order)})"
            )
    ids = {role: np.asarray([number[label] for label in e.labels], np.int64) for role, e in data.items()}
    return order, ids


def are_same(first: Examples, second: Examples) -> bool:
    """Whether two splits are one: ids, labels and, where known, images; names alone may be those of other files."""
    return first.hash == second.hash and first.fingerprint == second.fingerprint


def check_other_examples(data: Mapping[str, Examples]) -> None:
    """Refuse a training or validation split that is the test split itself.

    Raises:
        EvaluationError: which one it is.
    """
    for role, examples in data.items():
        if role != TEST and are_same(examples, data[TEST]):
            raise EvaluationError(f"{role}_split: expected other examples than the test split, got the same ones")


def draw_fraction(label_ids: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """A share of each class's examples, at least one; with one seed a smaller share is a part of a larger one.

    Args:
        label_ids: int64 [N].
        fraction: in (0, 1].
        seed: of the draw.

    Returns:
        Rows, int64, rising.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for number in np.unique(label_ids):
        mixed = rng.permutation(np.flatnonzero(label_ids == number))
        drawn.append(mixed[: max(1, round(fraction * len(mixed)))])
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def split_names(train_split: str, val_split: str) -> dict[str, str]:
    """`task.Task.splits` of a task that learns: the training split, and a validation split where one is named."""
    return {TRAIN: train_split} | ({VAL: val_split} if val_split else {})


def check_train_split(train_split: str, val_share: float) -> None:
    """Check the settings that every task that learns has.

    Raises:
        EvaluationError: no training split, or a share of it to hold out that is not in (0, 1).
    """
    if not train_split:
        raise EvaluationError("train_split: expected the name of a split to learn from, got an empty one")
    if not 0 < val_share < 1:
        raise EvaluationError(f"val_share: expected a share in (0, 1), got {val_share}")


def report_answers(classes: Sequence[str], label_ids: np.ndarray, predicted_ids: np.ndarray) -> dict[str, Any]:
    """``constant_class``, ``per_class`` and ``confusion`` of one set of answers.

    Args:
        classes: K names, in order.
        label_ids: integers in [0, K), [N].
        predicted_ids: the same.
    """
    counts = statistics.confusion_matrix(label_ids, predicted_ids, len(classes))
    constant, constant_metrics = statistics.best_constant_class(counts)
    precision, recall, f1 = statistics.per_class_f1(counts)
    return {
        "constant_class": {"label": classes[constant], "metrics": constant_metrics.to_dict()},
        "per_class": {
            label: {
                "examples": int(counts[k].sum()),
                "predicted": int(counts[:, k].sum()),
                "precision": float(precision[k]),
                "recall": float(recall[k]),
                "f1": float(f1[k]),
            }
            for k, label in enumerate(classes)
        },
        "confusion": {"labels": list(classes), "rows": "actual", "counts": counts.tolist()},
    }


def score_runs(label_ids: np.ndarray, predicted_ids: np.ndarray, num_classes: int) -> dict[str, np.ndarray]:
    """Every metric of several runs.

    Args:
        label_ids: integers in [0, num_classes), [N].
        predicted_ids: of each run, [S, N].
        num_classes: K.

    Returns:
        Named float64 [S].
    """
    counts = [statistics.confusion_matrix(label_ids, predicted, num_classes) for predicted in predicted_ids]
    return statistics.metrics_of(np.stack(counts))


def replicate_runs(
    label_ids: np.ndarray, predicted_ids: np.ndarray, num_classes: int, units: Units, config: BootstrapConfig
) -> dict[str, np.ndarray]:
    """`score_runs` on every resample: named float64 [S, R]; the runs share the draws."""
    each = [
        bootstrap.classification_bootstrap(label_ids, predicted, num_classes, units, config)
        for predicted in predicted_ids
    ]
    return {name: np.stack([found[name] for found in each]) for name in each[0]}


def make_rescore(
    type_name: str,
    test: Examples,
    label_ids: np.ndarray,
    num_classes: int,
    runs: Mapping[str, tuple[str, np.ndarray]],
    config: BootstrapConfig | None,
) -> Callable[[Collection[str]], dict[str, Any]]:
    """`task.TaskResult.rescore` of a task that has learned: the same answers, counted without some examples.

    Args:
        type_name: of the task.
        test: the examples that were scored.
        label_ids: integers in [0, num_classes), [N].
        num_classes: K.
        runs: metric of the report -> the metric of `score_runs` that it is the mean of, and the runs' answers [S, N].
        config: how intervals are made; None for none.
    """

    def rescore(left_out: Collection[str]) -> dict[str, Any]:
        kept = np.asarray([row for row, name in enumerate(test.ids) if name not in left_out], np.int64)
        if not len(kept):
            raise EvaluationError("every scored example is left out")
        right = label_ids[kept]
        scored = {id(answers): score_runs(right, answers[:, kept], num_classes) for _, answers in runs.values()}
        metrics = {name: float(scored[id(answers)][of].mean()) for name, (of, answers) in runs.items()}
        report: dict[str, Any] = {"type": type_name, "num_examples": len(kept), "metrics": metrics}
        if config is not None:
            units = choose_units(test).take(kept)
            drawn = {
                id(answers): replicate_runs(right, answers[:, kept], num_classes, units, config)
                for answers in {id(answers): answers for _, answers in runs.values()}.values()
            }
            replicates = {name: drawn[id(answers)][of].mean(axis=0) for name, (of, answers) in runs.items()}
            report["bootstrap"] = bootstrap.summarize(replicates, units, config)
        return report

    return rescore


def _named(labels: Sequence[str]) -> str:
    more = len(labels) - _NAMED
    return ", ".join(labels[:_NAMED]) + (f" and {more} more" if more > 0 else "") if labels else "none"
