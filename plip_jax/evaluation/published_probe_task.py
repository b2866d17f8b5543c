"""The linear probe as PLIP publishes it: scikit-learn's SGDClassifier on embeddings, a few alphas, five seeds.

Features are L2-normalised but for those that are published as they are (`embeddings.Embeddings.normalize`). The
authors read alpha off the test set; here it is chosen on validation, and their choice is there by name.
"""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import SGDClassifier

from plip_jax.evaluation import bootstrap, classification_report
from plip_jax.evaluation.classification_report import TRAIN, VAL
from plip_jax.evaluation.embeddings import EvaluationError
from plip_jax.evaluation.examples import Examples
from plip_jax.evaluation.holdout import hold_out
from plip_jax.evaluation.task import TEST, Inputs, Task, TaskResult
from plip_jax.evaluation.units import choose_units

ALPHA_FROM = ("validation", "test")


@dataclasses.dataclass(frozen=True)
class PublishedProbeConfig:
    """Settings of the published linear probe.

    Attributes:
        train_split: to learn from, of the same data.
        val_split: to choose alpha on; "" holds out a part of the training split.
        val_share: of the training examples to hold out.
        val_seed: of what is held out.
        classes: their order; empty for the sorted labels.
        alphas: strengths of the L2 penalty that are tried.
        seeds: of the classifier; scores are means over them.
        max_iter: epochs at most.
        alpha_from: "validation", or "test" for the authors' choice, the alpha that is best on test.
    """

    train_split: str
    val_split: str = ""
    val_share: float = 0.2
    val_seed: int = 0
    classes: tuple[str, ...] = ()
    alphas: tuple[float, ...] = (0.1, 0.01, 0.001, 0.0001)
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    max_iter: int = 10_000
    alpha_from: str = "validation"

    def __post_init__(self) -> None:
        classification_report.check_train_split(self.train_split, self.val_share)
        if not self.alphas or min(self.alphas) <= 0:
            raise EvaluationError(f"alphas: expected numbers above 0, got {self.alphas}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise EvaluationError(f"seeds: expected different integers, got {self.seeds}")
        if self.max_iter < 1:
            raise EvaluationError(f"max_iter: expected 1 or more, got {self.max_iter}")
        if self.alpha_from not in ALPHA_FROM:
            raise EvaluationError(f"alpha_from: expected one of {', '.join(ALPHA_FROM)}, got {self.alpha_from!r}")
        if self.alpha_from == "test" and self.val_split:
            raise EvaluationError("val_split: nothing reads it with alpha_from=test; leave it empty")


@dataclasses.dataclass(frozen=True)
class _Fit:
    """What an alpha's classifiers answered.

    Attributes:
        predicted: of each seed, int64 [S, N].
        not_converged: seeds whose classifier met ``max_iter``.
    """

    predicted: np.ndarray
    not_converged: int


def check_published_probe(
    config: PublishedProbeConfig, data: Mapping[str, Examples]
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


def run_published_probe(config: PublishedProbeConfig, inputs: Inputs) -> TaskResult:
    """Choose alpha, then fit it on the whole training split with each seed."""
    classes, ids = check_published_probe(config, inputs.data)
    embedded = inputs.embed(TRAIN)
    train, test = embedded.features, inputs.embed(TEST).features
    alpha, selection, fit = _choose_alpha(config, inputs, ids, train, test)
    fit = fit or _fit(config, alpha, train, ids[TRAIN], test)
    scores = classification_report.score_runs(ids[TEST], fit.predicted, len(classes))
    report: dict[str, Any] = {
        "type": "published_probe",
        "num_examples": len(inputs.test),
        "metrics": _summary(config, scores),
        "descriptions": _descriptions(config, alpha),
        **classification_report.report_answers(classes, ids[TEST], fit.predicted[0]),
        "selection": selection,
        "seeds": list(config.seeds),
        "seed_scores": {name: scores[name].tolist() for name in ("macro_f1", "weighted_f1")},
        "num_train_examples": len(train),
        "features_normalized": embedded.normalize,
        "notes": _notes(config, fit),
        "hashes": {"split": inputs.test.hash} | {r: e.hash for r, e in inputs.data.items() if r != TEST},
    }
    replicates: dict[str, np.ndarray] = {}
    if inputs.bootstrap is not None:
        units = choose_units(inputs.test)
        each = classification_report.replicate_runs(ids[TEST], fit.predicted, len(classes), units, inputs.bootstrap)
        replicates = _summary(config, each)
        report["bootstrap"] = bootstrap.summarize(replicates, units, inputs.bootstrap)
    rows = tuple(
        {"id": name, "label": label}
        | {f"predicted_seed_{seed}": classes[k] for seed, k in zip(config.seeds, answers, strict=True)}
        for name, label, answers in zip(inputs.test.ids, inputs.test.labels, fit.predicted.T, strict=True)
    )
    runs = {name: (name, fit.predicted) for name in classification_report.METRICS}
    rescore = classification_report.make_rescore(
        "published_probe", inputs.test, ids[TEST], len(classes), runs, inputs.bootstrap
    )
    return TaskResult(report, rows, replicates=replicates, correct=fit.predicted[0] == ids[TEST], rescore=rescore)


def _choose_alpha(
    config: PublishedProbeConfig, inputs: Inputs, ids: Mapping[str, np.ndarray], train: np.ndarray, test: np.ndarray
) -> tuple[float, dict[str, Any], _Fit | None]:
    """The alpha with the best macro F1, mean over the seeds; of equal ones the first named.

    Returns:
        It, the report's ``selection``, and its answers to the test split where those were needed to choose it.
    """
    if config.alpha_from == "test":
        fitted, fit_ids, shown, right = train, ids[TRAIN], test, ids[TEST]
    elif VAL in inputs.data:
        fitted, fit_ids, shown, right = train, ids[TRAIN], inputs.embed(VAL).features, ids[VAL]
    else:
        rest, held = hold_out(inputs.data[TRAIN], config.val_share, config.val_seed)
        fitted, fit_ids, shown, right = train[rest], ids[TRAIN][rest], train[held], ids[TRAIN][held]
    num_classes = int(ids[TRAIN].max()) + 1
    fits = [_fit(config, alpha, fitted, fit_ids, shown) for alpha in config.alphas]
    scores = [classification_report.score_runs(right, fit.predicted, num_classes)["macro_f1"] for fit in fits]
    best = int(np.argmax([score.mean() for score in scores]))
    selection = {
        "alpha_from": config.alpha_from,
        "criterion": "macro_f1, mean over seeds",
        "alpha": config.alphas[best],
        "num_examples": len(right),
        "candidates": [
            {"alpha": alpha, "mean": float(score.mean()), "scores": score.tolist(), "not_converged": fit.not_converged}
            for alpha, score, fit in zip(config.alphas, scores, fits, strict=True)
        ],
    }
    return config.alphas[best], selection, fits[best] if config.alpha_from == "test" else None


def _fit(
    config: PublishedProbeConfig, alpha: float, train: np.ndarray, label_ids: np.ndarray, shown: np.ndarray
) -> _Fit:
    predicted, not_converged = [], 0
    for seed in config.seeds:
        classifier = SGDClassifier(
            loss="log_loss",
            penalty="l2",
            alpha=alpha,
            class_weight="balanced",
            max_iter=config.max_iter,
            random_state=seed,
            n_jobs=-1,  # a class a thread; each has a seed of its own, so the answers do not change
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the report counts them
            classifier.fit(train, label_ids)
        not_converged += classifier.n_iter_ == config.max_iter  # as scikit-learn decides on its warning
        predicted.append(np.asarray(classifier.predict(shown), np.int64))
    return _Fit(np.stack(predicted), not_converged)


def _summary(config: PublishedProbeConfig, scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Means over the seeds (axis 0) and the SD of macro F1, in the order of the metrics' names."""
    found: dict[str, np.ndarray] = {name: values.mean(axis=0) for name, values in scores.items()}
    if len(config.seeds) > 1:
        found["macro_f1_sd"] = scores["macro_f1"].std(axis=0, ddof=1)
    return {
        name: float(found[name]) if found[name].ndim == 0 else found[name]
        for name in published_probe_metric_names(config)
    }


def _descriptions(config: PublishedProbeConfig, alpha: float) -> dict[str, str]:
    chosen = "on validation" if config.alpha_from == "validation" else "on the test set, as the authors did: optimistic"
    over = f"over {len(config.seeds)} seeds; alpha {alpha:g}, chosen {chosen}"
    return {
        name: f"{'SD (n - 1)' if name.endswith('_sd') else 'mean'} {over}"
        for name in published_probe_metric_names(config)
    }


def _notes(config: PublishedProbeConfig, fit: _Fit) -> list[str]:
    notes = [f"confusion, per_class and constant_class are of the first seed ({config.seeds[0]})."]
    if config.alpha_from == "test":
        notes.append(
            "alpha is the one that scores best on the test set, as the authors chose it: these scores are optimistic."
        )
    if fit.not_converged:
        notes.append(f"{fit.not_converged} of {len(config.seeds)} classifiers met max_iter={config.max_iter}.")
    return notes


def published_probe_metric_names(config: PublishedProbeConfig) -> tuple[str, ...]:
    """Macro F1, the score that is published with its SD over the seeds, and the others; an SD needs two seeds."""
    spread = ("macro_f1_sd",) if len(config.seeds) > 1 else ()
    return "macro_f1", *spread, "weighted_f1", "balanced_accuracy", "mcc", "accuracy"


def _splits(config: PublishedProbeConfig) -> dict[str, str]:
    return classification_report.split_names(config.train_split, config.val_split)


PUBLISHED_PROBE = Task(
    PublishedProbeConfig, check_published_probe, run_published_probe, published_probe_metric_names, splits=_splits
)
