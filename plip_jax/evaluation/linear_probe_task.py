"""The task of the linear probe: logistic regression on embeddings, its strength chosen on validation.

Embeddings are L2-normalised but for those that are published as they are (`embeddings.Embeddings.normalize`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from plip_jax.evaluation import bootstrap, classification_report, statistics
from plip_jax.evaluation.classification_report import METRICS, TRAIN, VAL, draw_fraction
from plip_jax.evaluation.embeddings import EvaluationError
from plip_jax.evaluation.examples import Examples
from plip_jax.evaluation.holdout import hold_out
from plip_jax.evaluation.linear_probe import LogisticProbe, balanced_weights, fit_probes
from plip_jax.evaluation.logistic_solver import SolverConfig
from plip_jax.evaluation.task import TEST, Inputs, Task, TaskResult
from plip_jax.evaluation.units import choose_units

CLASS_WEIGHTS = ("none", "balanced")


@dataclasses.dataclass(frozen=True)
class LinearProbeConfig:
    """Settings of the linear probe.

    Attributes:
        train_split: to learn from, of the same data.
        val_split: to choose the strength on; "" holds out a part of the training split.
        val_share: of the training examples to hold out.
        val_seed: of what is held out.
        classes: their order; empty for the sorted labels.
        strengths: scikit-learn's C, tried together; more is less regularisation.
        class_weight: "none", or "balanced" for scikit-learn's.
        refit_with_val: whether the chosen strength is fitted anew on training and validation examples together.
        fractions: shares of the training examples in (0, 1], each a probe of its own besides; empty for none.
        fraction_seeds: draws of each fraction.
        tolerance: of the solver, see `logistic_solver.SolverConfig`.
        max_iterations: of the solver.
    """

    train_split: str
    val_split: str = ""
    val_share: float = 0.2
    val_seed: int = 0
    classes: tuple[str, ...] = ()
    strengths: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
    class_weight: str = "none"
    refit_with_val: bool = True
    fractions: tuple[float, ...] = ()
    fraction_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    tolerance: float = 1e-6
    max_iterations: int = 1000

    def __post_init__(self) -> None:
        classification_report.check_train_split(self.train_split, self.val_share)
        if not self.strengths or min(self.strengths) <= 0 or len(set(self.strengths)) != len(self.strengths):
            raise EvaluationError(f"strengths: expected different numbers above 0, got {self.strengths}")
        if self.class_weight not in CLASS_WEIGHTS:
            raise EvaluationError(
                f"class_weight: expected one of {', '.join(CLASS_WEIGHTS)}, got {self.class_weight!r}"
            )
        if not all(0 < fraction <= 1 for fraction in self.fractions) or len(set(self.fractions)) < len(self.fractions):
            raise EvaluationError(f"fractions: expected different shares in (0, 1], got {self.fractions}")
        if self.fractions and (not self.fraction_seeds or len(set(self.fraction_seeds)) < len(self.fraction_seeds)):
            raise EvaluationError(f"fraction_seeds: expected different integers, got {self.fraction_seeds}")
        _ = self.solver  # checks its settings

    @property
    def solver(self) -> SolverConfig:
        """The solver's own settings."""
        return SolverConfig(self.tolerance, self.max_iterations)


@dataclasses.dataclass(frozen=True)
class _Set:
    """Examples to fit or to score: features float32 [N, D] and label ids int64 [N]."""

    features: np.ndarray
    ids: np.ndarray

    def take(self, rows: np.ndarray) -> "_Set":
        return _Set(self.features[rows], self.ids[rows])

    def join(self, other: "_Set") -> "_Set":
        return _Set(np.concatenate([self.features, other.features]), np.concatenate([self.ids, other.ids]))


@dataclasses.dataclass(frozen=True)
class _Fit:
    """A classifier over the classes that its training examples show; ``present`` are their ids."""

    probe: LogisticProbe
    present: np.ndarray

    def predict(self, features: np.ndarray) -> np.ndarray:
        return self.present[self.probe.predict(features)]

    def to_dict(self) -> dict[str, Any]:
        probe = self.probe
        return {"iterations": probe.iterations, "converged": probe.converged, "estimated_gap": probe.gap}


def check_linear_probe(
    config: LinearProbeConfig, data: Mapping[str, Examples]
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Put the classes in order and number the labels of each split.

    Returns:
        The classes, and by split the class ids, int64 [N].

    Raises:
        EvaluationError: splits that are the same, labels that do not fit, or nothing to choose on.
    """
    classification_report.check_other_examples(data)
    if VAL not in data:
        hold_out(
            data[TRAIN], config.val_share, config.val_seed
        )  # says now that it cannot be done, and not after an hour
    return classification_report.number_labels(data, config.classes)


def run_linear_probe(config: LinearProbeConfig, inputs: Inputs) -> TaskResult:
    """Choose the strength, fit it, score the test split; then the same for each fraction of the training split."""
    classes, ids = check_linear_probe(config, inputs.data)
    train, val = _training_and_validation(config, inputs, ids)
    test_embeddings = inputs.embed(TEST)
    test = _Set(test_embeddings.features, ids[TEST])
    fits, scores = _sweep(config, train, val, len(classes))
    best = int(np.argmax(scores))
    fit = fits[best]
    if config.refit_with_val:
        [fit] = _fit(config, train.join(val), [_rising(config)[best]])
    predicted = fit.predict(test.features)
    counts = statistics.confusion_matrix(test.ids, predicted, len(classes))
    selection = {
        "criterion": "macro_f1",
        "on": _validation_name(config),
        "num_examples": len(val.ids),
        "strength": fit.probe.strength,
        "candidates": [
            {"strength": each.probe.strength, "macro_f1": score, **each.to_dict()}
            for each, score in zip(fits, scores, strict=True)
        ],
    }
    fitted_on = len(train.ids) + (len(val.ids) if config.refit_with_val else 0)
    fractions = _fit_fractions(config, train, val, test, len(classes))
    units, replicates = choose_units(inputs.test), {}
    if inputs.bootstrap is not None:
        replicates = bootstrap.classification_bootstrap(test.ids, predicted, len(classes), units, inputs.bootstrap)
        for fraction in fractions:
            each = classification_report.replicate_runs(
                test.ids, fraction.predicted, len(classes), units, inputs.bootstrap
            )
            replicates[_at(fraction.share)] = each["macro_f1"].mean(axis=0)
    curve = _curve(fractions, test, len(classes), replicates, inputs.bootstrap.level if inputs.bootstrap else 0.95)
    metrics = statistics.classification_metrics(counts).to_dict()
    metrics |= {_at(point["fraction"]): point["mean"] for point in curve}
    report: dict[str, Any] = {
        "type": "linear_probe",
        "num_examples": len(inputs.test),
        "metrics": {name: metrics[name] for name in linear_probe_metric_names(config)},
        **classification_report.report_answers(classes, test.ids, predicted),
        "selection": selection,
        "fit": {"strength": fit.probe.strength, "on": _fitted_name(config), "num_examples": fitted_on}
        | {"class_weight": config.class_weight, "normalized": test_embeddings.normalize, **fit.to_dict()},
        "curve": curve,
        "notes": _notes(config, fit, selection),
        "hashes": {"split": inputs.test.hash} | {r: e.hash for r, e in inputs.data.items() if r != TEST},
    }
    if inputs.bootstrap is not None:
        report["bootstrap"] = bootstrap.summarize(replicates, units, inputs.bootstrap)
    rows = tuple(
        {"id": name, "label": label, "predicted": classes[k]}
        for name, label, k in zip(inputs.test.ids, inputs.test.labels, predicted, strict=True)
    )
    answers = predicted[None]
    runs = {name: (name, answers) for name in METRICS} | {_at(f.share): ("macro_f1", f.predicted) for f in fractions}
    rescore = classification_report.make_rescore(
        "linear_probe", inputs.test, test.ids, len(classes), runs, inputs.bootstrap
    )
    return TaskResult(report, rows, replicates=replicates, correct=predicted == test.ids, rescore=rescore)


def _rising(config: LinearProbeConfig) -> list[float]:
    """Rising, so that of equally good ones the one that regularises most comes first."""
    return sorted(config.strengths)


def _training_and_validation(
    config: LinearProbeConfig, inputs: Inputs, ids: Mapping[str, np.ndarray]
) -> tuple[_Set, _Set]:
    whole = _Set(inputs.embed(TRAIN).features, ids[TRAIN])
    if VAL in inputs.data:
        return whole, _Set(inputs.embed(VAL).features, ids[VAL])
    rest, held = hold_out(inputs.data[TRAIN], config.val_share, config.val_seed)
    return whole.take(rest), whole.take(held)


def _sweep(config: LinearProbeConfig, train: _Set, val: _Set, num_classes: int) -> tuple[list[_Fit], list[float]]:
    """Fit every strength, and score each on validation by macro F1."""
    fits = _fit(config, train, _rising(config))
    predicted = np.stack([fit.predict(val.features) for fit in fits])
    return fits, classification_report.score_runs(val.ids, predicted, num_classes)["macro_f1"].tolist()


def _fit(config: LinearProbeConfig, train: _Set, strengths: list[float]) -> list[_Fit]:
    # A part of the training split can lack a class: what is held out are whole patients or slides.
    present, renumbered = np.unique(train.ids, return_inverse=True)
    weights = balanced_weights(renumbered, len(present)) if config.class_weight == "balanced" else None
    probes = fit_probes(
        train.features, renumbered, len(present), strengths, class_weights=weights, config=config.solver
    )
    return [_Fit(probe, present) for probe in probes]


@dataclasses.dataclass(frozen=True)
class _Fraction:
    """What the probes of one fraction answered on the test split, one for each seed.

    Attributes:
        share: of the training examples.
        num_examples: that is.
        strengths: chosen on validation.
        predicted: int64 [S, N].
    """

    share: float
    num_examples: int
    strengths: list[float]
    predicted: np.ndarray


def _fit_fractions(config: LinearProbeConfig, train: _Set, val: _Set, test: _Set, num_classes: int) -> list[_Fraction]:
    """Choose the strength of each fraction and seed on the same validation examples; nothing is fitted anew."""
    fractions = []
    for share in config.fractions:
        strengths, predicted, size = [], [], 0
        for seed in config.fraction_seeds:
            part = train.take(draw_fraction(train.ids, share, seed))
            fits, scores = _sweep(config, part, val, num_classes)
            fit = fits[int(np.argmax(scores))]
            strengths.append(fit.probe.strength)
            predicted.append(fit.predict(test.features))
            size = len(part.ids)
        fractions.append(_Fraction(share, size, strengths, np.stack(predicted)))
    return fractions


def _curve(
    fractions: list[_Fraction], test: _Set, num_classes: int, replicates: Mapping[str, np.ndarray], level: float
) -> list[dict[str, Any]]:
    """One entry a fraction; ``low`` and ``high`` are the bootstrap interval of the mean, None without one."""
    curve = []
    for fraction in fractions:
        scores = classification_report.score_runs(test.ids, fraction.predicted, num_classes)["macro_f1"]
        name = _at(fraction.share)
        low, high = (bootstrap.interval(replicates[name], level) if name in replicates else None) or (None, None)
        curve.append(
            {
                "fraction": fraction.share,
                "num_examples": fraction.num_examples,
                "scores": scores.tolist(),
                "mean": float(scores.mean()),
                "sd": float(scores.std(ddof=1)) if len(scores) > 1 else None,
                "low": low,
                "high": high,
                "strengths": fraction.strengths,
            }
        )
    return curve


def _at(share: float) -> str:
    return f"macro_f1_at_{share:g}"


def _validation_name(config: LinearProbeConfig) -> str:
    if config.val_split:
        return f"the split {config.val_split}"
    return f"{config.val_share:.0%} of the training split, held out with seed {config.val_seed}"


def _fitted_name(config: LinearProbeConfig) -> str:
    return "training and validation examples" if config.refit_with_val else "training examples without validation"


def _notes(config: LinearProbeConfig, fit: _Fit, selection: Mapping[str, Any]) -> list[str]:
    strengths, notes = _rising(config), []
    if len(strengths) > 1 and fit.probe.strength in (strengths[0], strengths[-1]):
        notes.append(f"the chosen strength, {fit.probe.strength:g}, is at the end of those tried: try more beyond it.")
    unfinished = sum(not candidate["converged"] for candidate in selection["candidates"])
    if unfinished or not fit.probe.converged:
        notes.append(
            f"{unfinished} of {len(strengths)} fits of the sweep and {int(not fit.probe.converged)} of the final one "
            "did not converge."
        )
    if config.fractions:
        notes.append(
            "curve: examples are drawn anew for each seed, validation is the same for all; low and high are bootstrap "
            "intervals over test units of the mean over seeds, sd is over seeds."
        )
    return notes


def linear_probe_metric_names(config: LinearProbeConfig) -> tuple[str, ...]:
    """Macro F1, by which the strength is chosen, the others, and macro F1 of each fraction, mean over seeds."""
    return "macro_f1", *(name for name in METRICS if name != "macro_f1"), *map(_at, config.fractions)


def _splits(config: LinearProbeConfig) -> dict[str, str]:
    return classification_report.split_names(config.train_split, config.val_split)


LINEAR_PROBE = Task(LinearProbeConfig, check_linear_probe, run_linear_probe, linear_probe_metric_names, splits=_splits)
