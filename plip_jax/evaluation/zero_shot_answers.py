"""What is measured of zero-shot scores: one class an example (`Answers`), or several labels an example (`LabelScores`).

Both are cut to a stratum with ``take``, and give ``metrics`` once and ``replicates`` on every resample under the same
names.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import special

from plip_jax.evaluation import bootstrap, calibration, ranking_metrics, statistics
from plip_jax.evaluation.bootstrap import BootstrapConfig
from plip_jax.evaluation.calibration import FittedScale, Reliability
from plip_jax.evaluation.ranking_metrics import Ranking
from plip_jax.evaluation.units import Units
from plip_jax.evaluation.zero_shot import predict


def log_odds(scores: np.ndarray, scale: float | None) -> np.ndarray:
    """How much each class stands out against the others, comparable between examples.

    It ranks examples as the class's softmax probability does, without the ties of probabilities that round to 1.

    Args:
        scores: cosines [N, K].
        scale: of the softmax; None for its limit at a large scale, the difference to the best other class. With two
            classes the ranking is the same at any scale.

    Returns:
        float64 [N, K].
    """
    scores = np.asarray(scores, np.float64)
    out = np.empty_like(scores)
    for k in range(scores.shape[1]):
        others = np.delete(scores, k, axis=1)
        if scale is None or others.shape[1] == 1:
            out[:, k] = scores[:, k] - others.max(axis=1)
        else:
            out[:, k] = scale * scores[:, k] - special.logsumexp(scale * others, axis=1)
    return out


@dataclasses.dataclass(frozen=True)
class Answers:
    """Examples of one class each.

    Attributes:
        labels: the classes, in order; of two the last is the positive one.
        scores: cosines float32 [N, K].
        label_ids: int64 [N].
        scale: the learned one; None where it is not known.
        fitted: scale fitted on validation; None without one.
        graded: the order of the classes is that of grades.
        top_k: cut-offs between 1 and K.
    """

    labels: tuple[str, ...]
    scores: np.ndarray
    label_ids: np.ndarray
    scale: float | None = None
    fitted: FittedScale | None = None
    graded: bool = False
    top_k: tuple[int, ...] = ()

    @functools.cached_property
    def predicted(self) -> np.ndarray:
        """The best class of each example, int64 [N]."""
        return predict(self.scores)

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """The confusion matrix, int64 [K, K], rows actual."""
        return statistics.confusion_matrix(self.label_ids, self.predicted, len(self.labels))

    @functools.cached_property
    def right_ranks(self) -> np.ndarray:
        """How many classes come before the right one, int64 [N]."""
        return statistics.right_ranks(self.scores, self.label_ids)

    @functools.cached_property
    def rankings(self) -> list[Ranking]:
        """Of each class against the rest."""
        return ranking_metrics.one_vs_rest(log_odds(self.scores, self.scale), self.label_ids)

    @functools.cached_property
    def calibration(self) -> tuple[dict[str, Any], dict[str, Reliability]]:
        """The report's block, and what its errors are resampled from."""
        return calibration.report_calibration(self.scores, self.predicted, self.label_ids, self.scale, self.fitted)

    def take(self, rows: np.ndarray) -> "Answers":
        """The answers of some examples."""
        return dataclasses.replace(self, scores=self.scores[rows], label_ids=self.label_ids[rows])

    def metrics(self) -> dict[str, float]:
        """Every metric that is defined, by name."""
        found = statistics.classification_metrics(self.counts).to_dict()
        kappa = statistics.quadratic_kappa(self.counts) if self.graded else None
        if kappa is not None:
            found["quadratic_kappa"] = kappa
        found |= {f"top{k}_accuracy": float((self.right_ranks < k).mean()) for k in self.top_k}
        ranked = ranking_metrics.numbers(self._ranked(None))
        return found | ranked | {name: float(one.error()[0]) for name, one in self.calibration[1].items()}

    def replicates(self, units: Units, config: BootstrapConfig) -> dict[str, np.ndarray]:
        """`metrics` on every resample, float64 [R] each; NaN where not defined."""
        found = self._count_replicates(units, config)[0]
        errors = self.calibration[1]

        def on_resamples(weights: np.ndarray) -> Mapping[str, np.ndarray]:
            return self._ranked(weights) | {name: one.error(weights) for name, one in errors.items()}

        return found | bootstrap.replicate(units, config, on_resamples)

    def quick_replicates(self, units: Units, config: BootstrapConfig) -> dict[str, np.ndarray]:
        """Those replicates that counts give, without rankings and calibration: name -> float64 [R]."""
        return self._count_replicates(units, config)[0]

    def f1_intervals(self, units: Units, config: BootstrapConfig) -> list[tuple[float, float] | None]:
        """The interval of each class's F1; a resample in which it neither occurs nor is predicted is left out."""
        if units.count < 2:
            return [None] * len(self.labels)
        counts = self._count_replicates(units, config)[1]
        f1 = np.where(counts.sum(axis=1) + counts.sum(axis=2) > 0, statistics.per_class_f1(counts)[2], np.nan)
        return [bootstrap.interval(f1[:, k], config.level) for k in range(len(self.labels))]

    def baseline(self) -> dict[str, Any]:
        """The best constant answer, as a report's ``constant_class``."""
        constant, scores = statistics.best_constant_class(self.counts)
        return {"label": self.labels[constant], "metrics": scores.to_dict()}

    def report(self) -> dict[str, Any]:
        """``constant_class``, ``per_class``, ``confusion``, ``ranking`` and ``calibration``."""
        precision, recall, f1 = statistics.per_class_f1(self.counts)
        per_class: dict[str, dict[str, Any]] = {
            label: {
                "examples": int(self.counts[k].sum()),
                "predicted": int(self.counts[:, k].sum()),
                "precision": float(precision[k]),
                "recall": float(recall[k]),
                "f1": float(f1[k]),
            }
            for k, label in enumerate(self.labels)
        }
        each = [ranking_metrics.numbers(ranking.measure(("auroc", "auprc"))) for ranking in self.rankings]
        binary = len(self.labels) == 2
        return {
            "constant_class": self.baseline(),
            "per_class": per_class,
            "confusion": {"labels": list(self.labels), "rows": "actual", "counts": self.counts.tolist()},
            "ranking": {
                "positive_class": self.labels[-1] if binary else None,
                "average": "the positive class" if binary else "mean over classes, each against the rest",
                "per_class": {
                    label: {name: found.get(name) for name in ("auroc", "auprc")}
                    for label, found in zip(self.labels, each, strict=True)
                },
            },
            "calibration": self.calibration[0],
        }

    def _ranked(self, weights: np.ndarray | None) -> dict[str, np.ndarray]:
        if len(self.labels) == 2:
            return self.rankings[1].measure(tuple(ranking_metrics.MEASURES), weights)
        return ranking_metrics.macro_measures(self.rankings, weights)

    def _count_replicates(self, units: Units, config: BootstrapConfig) -> tuple[dict[str, np.ndarray], np.ndarray]:
        counts = bootstrap.confusion_replicates(self.label_ids, self.predicted, len(self.labels), units, config)
        found = statistics.metrics_of(counts)
        if self.graded:
            found["quadratic_kappa"] = statistics.quadratic_kappa_of(counts)
        if self.top_k:
            ranks = bootstrap.count_replicates(self.right_ranks, len(self.labels), units, config)
            shares = ranks.cumsum(axis=1) / ranks.sum(axis=1, keepdims=True)
            found |= {f"top{k}_accuracy": shares[:, k - 1] for k in self.top_k}
        return found, counts


@dataclasses.dataclass(frozen=True)
class LabelScores:
    """Examples of any number of labels each; a label ranks the examples by their cosine with its prompts.

    Attributes:
        labels: the classes, in order.
        scores: cosines float32 [N, K].
        table: which label each example has, bool [N, K].
    """

    labels: tuple[str, ...]
    scores: np.ndarray
    table: np.ndarray

    @functools.cached_property
    def rankings(self) -> list[Ranking]:
        """Of each label."""
        return [Ranking(self.scores[:, k], self.table[:, k]) for k in range(len(self.labels))]

    def take(self, rows: np.ndarray) -> "LabelScores":
        """The scores of some examples."""
        return dataclasses.replace(self, scores=self.scores[rows], table=self.table[rows])

    def metrics(self) -> dict[str, float]:
        """``auroc`` and ``map``: means over the labels for which they are defined."""
        return ranking_metrics.numbers(_means(self._each(None)))

    def replicates(self, units: Units, config: BootstrapConfig) -> dict[str, np.ndarray]:
        """`metrics` on every resample, float64 [R] each; NaN where not defined."""
        return bootstrap.replicate(units, config, lambda weights: _means(self._each(weights)))

    quick_replicates = replicates

    def label_intervals(self, units: Units, config: BootstrapConfig) -> dict[str, dict[str, Any]]:
        """``auroc_interval`` and ``auprc_interval`` of each label."""

        def flat(weights: np.ndarray) -> dict[str, np.ndarray]:
            each = self._each(weights)
            return {f"{k} {name}": values for k in range(len(each)) for name, values in each[k].items()}

        found = bootstrap.replicate(units, config, flat)
        return {
            label: {
                f"{name}_interval": bootstrap.interval(found[f"{k} {name}"], config.level) if units.count > 1 else None
                for name in ("auroc", "auprc")
            }
            for k, label in enumerate(self.labels)
        }

    def baseline(self) -> dict[str, Any]:
        """What one score for every example gives: half the pairs, and the share of examples that have the label."""
        shares = self.table.mean(axis=0)[self.table.any(axis=0)]
        return {"label": None, "metrics": {"auroc": 0.5} | ({"map": float(shares.mean())} if len(shares) else {})}

    def report(self) -> dict[str, Any]:
        """``constant_class`` and ``per_label``."""
        each = [ranking_metrics.numbers(found) for found in self._each(None)]
        per_label = {
            label: {
                "examples": int(self.table[:, k].sum()),
                "share": float(self.table[:, k].mean()),
                "auroc": each[k].get("auroc"),
                "auprc": each[k].get("auprc"),
            }
            for k, label in enumerate(self.labels)
        }
        return {"constant_class": self.baseline(), "per_label": per_label}

    def _each(self, weights: np.ndarray | None) -> list[dict[str, np.ndarray]]:
        return [ranking.measure(("auroc", "auprc"), weights) for ranking in self.rankings]


def _means(each: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {
        "auroc": ranking_metrics.mean_of_defined([found["auroc"] for found in each]),
        "map": ranking_metrics.mean_of_defined([found["auprc"] for found in each]),
    }
