"""The task of fine-tuning: how well the image network learns a data set from 1 % of it and up, as PLIP publishes it.

Each run draws a fraction of the training split, tries every learning rate on a part of it, and trains on all of it with
the one that is best on the rest.
"""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plip_jax.evaluation import bootstrap, classification_report
from plip_jax.evaluation.bootstrap import BootstrapConfig
from plip_jax.evaluation.classification_report import TRAIN, VAL, draw_fraction
from plip_jax.evaluation.embeddings import EvaluationError
from plip_jax.evaluation.examples import Examples
from plip_jax.evaluation.fine_tune import CLIP_MEAN, CLIP_STD, Classifier, Labelled, Recipe, load_pixels
from plip_jax.evaluation.holdout import hold_out
from plip_jax.evaluation.task import TEST, ImageTower, Inputs, Task, TaskResult
from plip_jax.evaluation.units import Units, choose_units

PIXEL_STATISTICS = ("clip", "own")
_OTHERS = ("macro_f1", "balanced_accuracy", "mcc", "accuracy")


@dataclasses.dataclass(frozen=True)
class FineTuneConfig:
    """Settings of fine-tuning; the defaults are PLIP's, but for the schedule, which is not published.

    Attributes:
        train_split: to learn from, of the same data.
        val_split: to choose the learning rate on; "" holds out a part of each subsample.
        val_share: of the subsample to hold out.
        val_seed: of what is held out; a run's own seed is added.
        classes: their order; empty for the sorted labels.
        fractions: of the training split, rising.
        seeds: of the subsample and of the order of its examples; scores are means over them.
        epochs: passes over the subsample; the last one counts.
        batch_size: examples a step.
        weight_decay: of AdamW, on every weight.
        schedule: "constant", or "cosine" down to zero.
        learning_rates: those that are tried.
        pixel_statistics: "clip" normalises the pixels for every model as the authors did, "own" as its own training.
        test_share: above 0, this share of the training split is the test set, as the authors did for Kather; the
            task's split is then the training split itself.
        test_seed: of that share.
        scratch_folder: for decoded images above a GiB a split; "" for the system's.
    """

    train_split: str
    val_split: str = ""
    val_share: float = 0.3
    val_seed: int = 0
    classes: tuple[str, ...] = ()
    fractions: tuple[float, ...] = (0.01, 0.05, 0.1, 0.5, 1.0)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
    epochs: int = 10
    batch_size: int = 128
    weight_decay: float = 0.1
    schedule: str = "constant"
    learning_rates: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
    pixel_statistics: str = "clip"
    test_share: float = 0.0
    test_seed: int = 0
    scratch_folder: str = ""

    def __post_init__(self) -> None:
        classification_report.check_train_split(self.train_split, self.val_share)
        rising = all(a < b for a, b in zip(self.fractions, self.fractions[1:], strict=False))
        if not self.fractions or not rising or self.fractions[0] <= 0 or self.fractions[-1] > 1:
            raise EvaluationError(f"fractions: expected rising numbers in (0, 1], got {self.fractions}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise EvaluationError(f"seeds: expected different integers of 0 or more, got {self.seeds}")
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise EvaluationError(f"learning_rates: expected numbers above 0, got {self.learning_rates}")
        if self.pixel_statistics not in PIXEL_STATISTICS:
            raise EvaluationError(
                f"pixel_statistics: expected one of {', '.join(PIXEL_STATISTICS)}, got {self.pixel_statistics!r}"
            )
        if not 0 <= self.test_share < 1:
            raise EvaluationError(f"test_share: expected a share of at least 0 and below 1, got {self.test_share}")
        self.recipe(CLIP_MEAN, CLIP_STD)  # checks the rest

    def recipe(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Recipe:
        """How a classifier is trained on pixels of these statistics."""
        return Recipe(self.epochs, self.batch_size, self.weight_decay, self.schedule, mean, std)


@dataclasses.dataclass(frozen=True)
class _Checked:
    """What a task is about to do.

    Attributes:
        data: by role, with the test set cut from the training split where the settings say so.
        classes: in order.
        ids: label ids int64 [N] by role.
    """

    data: Mapping[str, Examples]
    classes: tuple[str, ...]
    ids: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Run:
    """One fraction with one seed.

    Attributes:
        predicted: of the test examples, int64 [N].
        learning_rate: the one that was chosen.
        tried: weighted F1 of each learning rate on validation; None where training diverged.
    """

    predicted: np.ndarray
    learning_rate: float
    tried: list[float | None]


def check_fine_tune(config: FineTuneConfig, data: Mapping[str, Examples]) -> _Checked:
    """Cut the test set where that is asked for, number the labels, and see that the smallest subsample can be split.

    Raises:
        EvaluationError: splits that are the same, labels that do not fit, or too few training examples.
    """
    if config.test_share:
        if not classification_report.are_same(data[TEST], data[TRAIN]):
            raise EvaluationError(
                "test_share: the test set is cut from the training split, so expected that as the task's split too; "
                f"set split={config.train_split}, or test_share=0 to test on a split of its own"
            )
        rest, held = hold_out(data[TRAIN], config.test_share, config.test_seed)
        data = {**data, TRAIN: data[TRAIN].subset(rest), TEST: data[TRAIN].subset(held)}
    classification_report.check_other_examples(data)
    classes, ids = classification_report.number_labels(data, config.classes)
    checked = _Checked(data, classes, ids)
    if VAL not in data:  # now, and not after hours
        _split_for_choosing(config, checked, draw_fraction(ids[TRAIN], config.fractions[0], config.seeds[0]), 0)
    return checked


def run_fine_tune(config: FineTuneConfig, inputs: Inputs) -> TaskResult:
    """Train a classifier with the image network on each fraction with each seed, and test it."""
    checked = check_fine_tune(config, inputs.data)
    assert inputs.model.tower is not None  # the suite asks for it: Task.needs
    runs = _train_all(config, checked, inputs.model.tower())
    test, right, classes = checked.data[TEST], checked.ids[TEST], checked.classes
    predicted = [np.stack([run.predicted for run in of_fraction]) for of_fraction in runs]  # [S, N] a fraction
    scores = [classification_report.score_runs(right, one, len(classes)) for one in predicted]
    units = choose_units(test)
    replicates = _replicates(config, right, predicted, len(classes), units, inputs.bootstrap)
    last = predicted[-1][-1]
    report: dict[str, Any] = {
        "type": "fine_tune",
        "num_examples": len(test),
        "metrics": _summary(config, scores),
        "descriptions": _descriptions(config),
        **classification_report.report_answers(classes, right, last),
        "curve": _curve(config, checked, runs, scores, replicates, units, inputs.bootstrap),
        "seeds": list(config.seeds),
        "seed_scores": {
            f"weighted F1 at {fraction:g}": of["weighted_f1"].tolist()
            for fraction, of in zip(config.fractions, scores, strict=True)
        },
        "num_train_examples": len(checked.data[TRAIN]),
        "notes": _notes(config, checked),
        "hashes": {"split": test.hash} | {r: e.hash for r, e in checked.data.items() if r != TEST},
    }
    if inputs.bootstrap is not None:
        report["bootstrap"] = bootstrap.summarize(replicates, units, inputs.bootstrap)
    rows = tuple(
        {"id": name, "label": label, "predicted": classes[k]}
        for name, label, k in zip(test.ids, test.labels, last, strict=True)
    )
    # Whoever compares answers example by example does it over the task's split, which a share of it is not.
    correct = None if config.test_share else last == right
    of_metric = {name: (name, predicted[-1]) for name in classification_report.METRICS}
    at_fraction = {
        f"weighted_f1_at_{fraction:g}": ("weighted_f1", answers)
        for fraction, answers in zip(config.fractions, predicted, strict=True)
    }
    rescore = classification_report.make_rescore(
        "fine_tune", test, right, len(classes), of_metric | at_fraction, inputs.bootstrap
    )
    return TaskResult(report, rows, replicates=replicates, correct=correct, rescore=rescore)


def _train_all(config: FineTuneConfig, checked: _Checked, tower: ImageTower) -> list[list[_Run]]:
    """Every run, by fraction and seed; images are decoded once."""
    mean, std = (CLIP_MEAN, CLIP_STD) if config.pixel_statistics == "clip" else (tower.mean, tower.std)
    classifier = Classifier(tower, len(checked.classes), config.recipe(mean, std))
    with tempfile.TemporaryDirectory(prefix="fine_tune-", dir=config.scratch_folder or None) as folder:
        loaded = {
            role: Labelled(load_pixels(examples, tower, Path(folder), role), checked.ids[role])
            for role, examples in checked.data.items()
        }
        return [
            [_train_one(config, checked, classifier, loaded, fraction, seed) for seed in config.seeds]
            for fraction in config.fractions
        ]


def _train_one(
    config: FineTuneConfig,
    checked: _Checked,
    classifier: Classifier,
    loaded: Mapping[str, Labelled],
    fraction: float,
    seed: int,
) -> _Run:
    train = loaded[TRAIN]
    rows = draw_fraction(train.label_ids, fraction, seed)
    if VAL in loaded:
        fit, shown, chosen_on = rows, loaded[VAL], np.arange(len(loaded[VAL].label_ids))
    else:
        fit, chosen_on = _split_for_choosing(config, checked, rows, seed)
        shown = train
    tried: list[float | None] = []
    for rate in config.learning_rates:
        answers = classifier.predict(classifier.train(train, fit, rate, seed), shown, chosen_on)
        tried.append(None if answers is None else _weighted_f1(shown.label_ids[chosen_on], answers, checked.classes))
    if all(score is None for score in tried):
        raise EvaluationError(
            f"learning_rates: training diverged with every one of {config.learning_rates} at fraction {fraction:g}, "
            f"seed {seed}; try smaller ones"
        )
    # Of equal scores the first, which is the smallest rate in the published order.
    learning_rate = config.learning_rates[int(np.argmax([-1.0 if score is None else score for score in tried]))]
    predicted = classifier.predict(classifier.train(train, rows, learning_rate, seed), loaded[TEST])
    if predicted is None:
        raise EvaluationError(
            f"learning_rates: training on the whole subsample diverged with {learning_rate:g}, the best on validation, "
            f"at fraction {fraction:g}, seed {seed}; leave it out"
        )
    return _Run(predicted, learning_rate, tried)


def _split_for_choosing(
    config: FineTuneConfig, checked: _Checked, rows: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a subsample to fit and to choose the learning rate on; units stay whole."""
    try:
        fit, held = hold_out(checked.data[TRAIN].subset(rows), config.val_share, config.val_seed + seed)
    except EvaluationError as error:
        raise EvaluationError(
            f"{error}; or leave out the smallest fraction, {config.fractions[0]:g} of "
            f"{len(checked.data[TRAIN])} training examples"
        ) from error
    return rows[fit], rows[held]


def _weighted_f1(label_ids: np.ndarray, predicted: np.ndarray, classes: tuple[str, ...]) -> float:
    return float(classification_report.score_runs(label_ids, predicted[None], len(classes))["weighted_f1"][0])


def _summary(config: FineTuneConfig, scores: list[dict[str, np.ndarray]]) -> dict[str, float]:
    return {name: float(values) for name, values in _means(config, scores).items()}


def _means(config: FineTuneConfig, scores: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Means over the seeds (axis 0) of each fraction's scores, in the order of the metrics' names."""
    largest = scores[-1]
    found = {"weighted_f1": largest["weighted_f1"]}
    found |= {
        f"weighted_f1_at_{fraction:g}": of["weighted_f1"] for fraction, of in zip(config.fractions, scores, strict=True)
    }
    found |= {name: largest[name] for name in _OTHERS}
    return {name: values.mean(axis=0) for name, values in found.items()}


def _replicates(
    config: FineTuneConfig,
    label_ids: np.ndarray,
    predicted: list[np.ndarray],
    num_classes: int,
    units: Units,
    intervals: BootstrapConfig | None,
) -> dict[str, np.ndarray]:
    if intervals is None:
        return {}
    each = [classification_report.replicate_runs(label_ids, one, num_classes, units, intervals) for one in predicted]
    return _means(config, each)


def _curve(
    config: FineTuneConfig,
    checked: _Checked,
    runs: list[list[_Run]],
    scores: list[dict[str, np.ndarray]],
    replicates: Mapping[str, np.ndarray],
    units: Units,
    intervals: BootstrapConfig | None,
) -> list[dict[str, Any]]:
    """One entry a fraction; ``low`` and ``high`` are the bootstrap interval of the mean, None without one."""
    curve = []
    for fraction, of_fraction, found in zip(config.fractions, runs, scores, strict=True):
        values = found["weighted_f1"]
        ends = None
        if intervals is not None and units.count > 1:
            ends = bootstrap.interval(replicates[f"weighted_f1_at_{fraction:g}"], intervals.level)
        low, high = (None, None) if ends is None else ends
        curve.append(
            {
                "fraction": fraction,
                "num_examples": len(draw_fraction(checked.ids[TRAIN], fraction, config.seeds[0])),
                "scores": values.tolist(),
                "mean": float(values.mean()),
                "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
                "low": low,
                "high": high,
                "learning_rates": [run.learning_rate for run in of_fraction],
                "validation": [run.tried for run in of_fraction],
            }
        )
    return curve


def _descriptions(config: FineTuneConfig) -> dict[str, str]:
    over = f"mean over {len(config.seeds)} seeds"
    return {
        name: f"{over}, trained on {float(name.rpartition('_')[2]) if '_at_' in name else config.fractions[-1]:g} "
        "of the training split"
        for name in fine_tune_metric_names(config)
    }


def _notes(config: FineTuneConfig, checked: _Checked) -> list[str]:
    chosen_on = f"the split {config.val_split}" if VAL in checked.data else f"{config.val_share:g} of each subsample"
    notes = [
        f"confusion, per_class and constant_class are of the last seed ({config.seeds[-1]}) at the largest fraction.",
        f"the learning rate is chosen on {chosen_on} by weighted F1; then the whole subsample is trained on again.",
        f"the learning rate's schedule, which is not published, is {config.schedule}.",
        "low and high of the curve are bootstrap intervals over test units of the mean over seeds, sd is over seeds.",
    ]
    if config.pixel_statistics == "clip":
        notes.append("pixels are normalised with CLIP's statistics for every model, as the authors did.")
    if config.test_share:
        kind = choose_units(checked.data[TEST]).kind
        notes.append(
            f"the test set is a seeded {config.test_share:g} of the training split, as the authors did for Kather"
            + ("; patches of one slide may be on both sides." if kind == "patch" else f", by whole {kind}s.")
        )
    return notes


def fine_tune_metric_names(config: FineTuneConfig) -> tuple[str, ...]:
    """Weighted F1 at the largest fraction, then at each, then the other scores at the largest."""
    return "weighted_f1", *(f"weighted_f1_at_{fraction:g}" for fraction in config.fractions), *_OTHERS


def _splits(config: FineTuneConfig) -> dict[str, str]:
    return classification_report.split_names(config.train_split, config.val_split)


FINE_TUNE = Task(
    FineTuneConfig,
    check_fine_tune,
    run_fine_tune,
    fine_tune_metric_names,
    splits=_splits,
    needs=frozenset({"tower"}),
)
