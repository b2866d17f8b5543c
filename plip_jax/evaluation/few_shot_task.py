"""The task of classification from examples without training: kNN on all of them, SimpleShot on a few a class."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from plip_jax.evaluation import bootstrap, classification_report, few_shot, statistics
from plip_jax.evaluation.classification_report import METRICS, TRAIN
from plip_jax.evaluation.embeddings import EvaluationError, normalize_rows
from plip_jax.evaluation.examples import Examples
from plip_jax.evaluation.task import TEST, Inputs, Task, TaskResult
from plip_jax.evaluation.units import choose_units


@dataclasses.dataclass(frozen=True)
class FewShotConfig:
    """Settings of kNN and SimpleShot. Nothing is chosen, so there is no validation split.

    Attributes:
        train_split: examples to learn from, of the same data.
        classes: their order; empty for the sorted labels.
        neighbours: k of kNN, each a classifier of its own on the whole training split; empty for none.
        shots: examples a class of SimpleShot, each a classifier of its own; empty for none.
        episodes: draws of the shots.
        seed: of the draws.
        level: of the interval over episodes.
    """

    train_split: str
    classes: tuple[str, ...] = ()
    neighbours: tuple[int, ...] = (20, 1)
    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    episodes: int = 1000
    seed: int = 0
    level: float = 0.95

    def __post_init__(self) -> None:
        if not self.train_split:
            raise EvaluationError("train_split: expected the name of a split to learn from, got an empty one")
        for name in ("neighbours", "shots"):
            values = getattr(self, name)
            if any(value < 1 for value in values) or len(set(values)) != len(values):
                raise EvaluationError(f"{name}: expected different numbers of 1 or more, got {values}")
        if not self.neighbours and not self.shots:
            raise EvaluationError("expected neighbours or shots, got neither: there is nothing to measure")
        if self.episodes < 1 or not 0 < self.level < 1:
            raise EvaluationError(
                f"expected 1 or more episodes and a level in (0, 1), got {self.episodes} and {self.level}"
            )


def check_few_shot(
    config: FewShotConfig, data: Mapping[str, Examples]
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Put the classes in order and number the labels; every class needs as many examples as the most shots.

    Returns:
        The classes, and by split the class ids, int64 [N].

    Raises:
        EvaluationError: splits that are the same, labels that do not fit, or too few training examples.
    """
    classification_report.check_other_examples(data)
    classes, ids = classification_report.number_labels(data, config.classes)
    train = data[TRAIN]
    if max(config.neighbours, default=0) > len(train):
        raise EvaluationError(
            f"neighbours: expected at most the {len(train)} training examples, got {config.neighbours}"
        )
    most = max(config.shots, default=0)
    small = few_shot.too_small(ids[TRAIN], classes, most)
    if small:
        raise EvaluationError(
            f"shots: expected {most} or more training examples of each class, too few of {', '.join(small)}"
        )
    return classes, ids


def run_few_shot(config: FewShotConfig, inputs: Inputs) -> TaskResult:
    """Classify the test split by neighbours and by class means of a few examples."""
    classes, ids = check_few_shot(config, inputs.data)
    train, test = inputs.embed(TRAIN).features, inputs.embed(TEST).features
    answers = _neighbours(config, ids, len(classes), train, test)
    scores = {
        f"knn_{k}_{name}": float(values[0])
        for k, predicted in answers.items()
        for name, values in classification_report.score_runs(ids[TEST], predicted[None], len(classes)).items()
    }
    over_episodes = _simple_shot(config, inputs, ids, len(classes), train, test)
    scores |= {name: found["mean"] for name, found in over_episodes.items()}
    report: dict[str, Any] = {
        "type": "few_shot",
        "num_examples": len(inputs.test),
        "metrics": {name: scores[name] for name in few_shot_metric_names(config)},
        "num_train_examples": len(train),
        "notes": [],
        "hashes": {"split": inputs.test.hash, TRAIN: inputs.data[TRAIN].hash},
    }
    correct = None
    if answers:
        shown = config.neighbours[0]
        report |= classification_report.report_answers(classes, ids[TEST], answers[shown])
        report["notes"].append(f"confusion, per_class and constant_class are of kNN with k = {shown}.")
        correct = answers[shown] == ids[TEST]
    if config.shots:
        report["episodes"] = _describe_episodes(config, inputs) | {"metrics": over_episodes}
        report["notes"].append(
            "SimpleShot's scores are means over episodes, their intervals over episodes too: they show how much the "
            "drawn examples matter, not how much the test patients do."
        )
    replicates = _replicates(inputs, ids[TEST], answers, len(classes))
    if inputs.bootstrap is not None:
        report["bootstrap"] = bootstrap.summarize(replicates, choose_units(inputs.test), inputs.bootstrap)
    rows = tuple(
        {"id": name, "label": label} | {f"knn_{k}": classes[answers[k][row]] for k in answers}
        for row, (name, label) in enumerate(zip(inputs.test.ids, inputs.test.labels, strict=True))
    )
    return TaskResult(report, rows, replicates=replicates, correct=correct)


def _neighbours(
    config: FewShotConfig, ids: Mapping[str, np.ndarray], num_classes: int, train: np.ndarray, test: np.ndarray
) -> dict[int, np.ndarray]:
    """The answers of each k, int64 [N]."""
    if not config.neighbours:
        return {}
    # Cosine, also of features that are published without normalisation.
    found = few_shot.nearest(normalize_rows(train), normalize_rows(test), max(config.neighbours))
    neighbour_ids = ids[TRAIN][found]
    return {k: few_shot.vote(neighbour_ids[:, :k], num_classes) for k in config.neighbours}


def _simple_shot(
    config: FewShotConfig,
    inputs: Inputs,
    ids: Mapping[str, np.ndarray],
    num_classes: int,
    train: np.ndarray,
    test: np.ndarray,
) -> dict[str, dict[str, Any]]:
    """Mean, SD and interval over the episodes of each metric."""
    if not config.shots:
        return {}
    mean = train.mean(axis=0, dtype=np.float64)
    train, test = few_shot.centre(train, mean), few_shot.centre(test, mean)
    units = choose_units(inputs.data[TRAIN])
    drawn = few_shot.draw_episodes(ids[TRAIN], units, num_classes, max(config.shots), config.episodes, config.seed)
    ends = [(1 - config.level) / 2, (1 + config.level) / 2]
    summary: dict[str, dict[str, Any]] = {}
    for shots in config.shots:
        counts = [
            few_shot.confusion_of_episodes(ids[TEST], answers, num_classes)
            for answers in few_shot.simple_shot(train, test, drawn[:, :, :shots])
        ]
        for name, values in statistics.metrics_of(np.concatenate(counts)).items():
            low, high = np.quantile(values, ends)
            summary[f"simpleshot_{shots}_{name}"] = {
                "mean": float(values.mean()),
                "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
                "low": float(low),
                "high": float(high),
            }
    return summary


def _describe_episodes(config: FewShotConfig, inputs: Inputs) -> dict[str, Any]:
    units = choose_units(inputs.data[TRAIN])
    return {
        "episodes": config.episodes,
        "seed": config.seed,
        "level": config.level,
        "interval": "percentiles over episodes (which shots were drawn), not over test units",
        "drawn_from": f"{units.count} {units.kind} units, as many different ones a class as there are",
        "ways": "all classes",
        "centre": "mean of the whole training split",
    }


def _replicates(
    inputs: Inputs, label_ids: np.ndarray, answers: Mapping[int, np.ndarray], num_classes: int
) -> dict[str, np.ndarray]:
    """Of kNN alone: the resamples are of test units."""
    if inputs.bootstrap is None:
        return {}
    units = choose_units(inputs.test)
    return {
        f"knn_{k}_{name}": values
        for k, predicted in answers.items()
        for name, values in bootstrap.classification_bootstrap(
            label_ids, predicted, num_classes, units, inputs.bootstrap
        ).items()
    }


def few_shot_metric_names(config: FewShotConfig) -> tuple[str, ...]:
    """Those of kNN with the first k, then of other k and SimpleShot in the settings' order; macro F1 first of each."""
    names = ("macro_f1", *(name for name in METRICS if name != "macro_f1"))
    classifiers = [f"knn_{k}" for k in config.neighbours] + [f"simpleshot_{shots}" for shots in config.shots]
    return tuple(f"{classifier}_{name}" for classifier in classifiers for name in names)


def _splits(config: FewShotConfig) -> dict[str, str]:
    return classification_report.split_names(config.train_split, "")


FEW_SHOT = Task(FewShotConfig, check_few_shot, run_few_shot, few_shot_metric_names, splits=_splits)
