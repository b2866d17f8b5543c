"""Multinomial logistic regression on fixed features: several strengths of regularisation solved together by L-BFGS.

The objective is that of `sklearn.linear_model.LogisticRegression`: for the strength C, weights W [K, D] and
intercepts b,

    C * sum_i s_i * cross_entropy(softmax(W x_i + b), y_i) + p / 2 * ||W||^2

with s_i the weight of example i's class and p = 1. Scikit-learn fits two classes with one weight vector; its objective
is then this one with p = 2, which is what is solved here (the optimum has W_1 = -W_0).

The solver, and what makes it fast, is `logistic_solver`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from plip_jax.evaluation import logistic_solver
from plip_jax.evaluation.embeddings import EvaluationError
from plip_jax.evaluation.logistic_solver import SolverConfig


@dataclasses.dataclass(frozen=True)
class LogisticProbe:
    """A classifier for one strength.

    Attributes:
        weights: float32 [K, D].
        intercepts: float32 [K].
        strength: C; more is less regularisation.
        iterations: it took.
        gap: the last estimate of what is still to be won, as a share of the objective.
        converged: whether that met the tolerance; otherwise iterations or the digits of float32 ran out.
    """

    weights: np.ndarray
    intercepts: np.ndarray
    strength: float
    iterations: int
    gap: float
    converged: bool

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Logits float32 [N, K] of features [N, D]."""
        return np.asarray(features, np.float32) @ self.weights.T + self.intercepts

    def predict(self, features: np.ndarray) -> np.ndarray:
        """The class with the highest logit, int64 [N]; the first of several."""
        return self.scores(features).argmax(axis=1)


def fit_probes(
    features: np.ndarray,
    label_ids: np.ndarray,
    num_classes: int,
    strengths: Sequence[float],
    *,
    class_weights: np.ndarray | None = None,
    config: SolverConfig | None = None,
) -> list[LogisticProbe]:
    """Fit one classifier for each strength, all together, on the default device in float32.

    Args:
        features: [N, D].
        label_ids: integers in [0, num_classes), [N]; every class occurs.
        num_classes: K, 2 or more.
        strengths: the values of C, above 0.
        class_weights: s of each class, above 0, [K]; ones by default. `balanced_weights` gives scikit-learn's.
        config: of the solver.

    Returns:
        A classifier for each strength, in their order.

    Raises:
        EvaluationError: shapes, labels, strengths or weights that do not fit.
    """
    config = config or SolverConfig()
    label_ids = _check(features, label_ids, num_classes, strengths)
    weights = np.ones(num_classes) if class_weights is None else np.asarray(class_weights, np.float64)
    if weights.shape != (num_classes,) or not (np.isfinite(weights) & (weights > 0)).all():
        raise EvaluationError(f"expected a weight above 0 for each of {num_classes} classes, got {weights}")
    counts = np.bincount(label_ids, minlength=num_classes)
    total = float(counts @ weights)
    problem = logistic_solver.prepare(features, label_ids, weights / total)
    # The objective divided by C * sum(s): a mean loss and a penalty of this weight, both of ordinary size in float32.
    penalties = (1 if num_classes > 2 else 2) / (np.asarray(strengths, np.float64) * total)
    lanes = logistic_solver.solve(problem, penalties, num_classes, config)
    # Back from centred features: W (x - mean) + b' = W x + (b' - W mean).
    theta = np.asarray(lanes.theta, np.float64)
    intercepts = theta[..., -1] - theta[..., :-1] @ np.asarray(problem.mean, np.float64)
    return [
        LogisticProbe(
            weights=theta[lane, :, :-1].astype(np.float32),
            intercepts=intercepts[lane].astype(np.float32),
            strength=float(strength),
            iterations=int(lanes.iterations[lane]),
            gap=float(lanes.gap[lane]),
            converged=bool(lanes.gap[lane] <= config.tolerance),
        )
        for lane, strength in enumerate(strengths)
    ]


def balanced_weights(label_ids: np.ndarray, num_classes: int) -> np.ndarray:
    """Scikit-learn's ``class_weight="balanced"``: N / (K * count), float64 [K]."""
    return len(label_ids) / (num_classes * np.bincount(label_ids, minlength=num_classes))


def objective(
    probe: LogisticProbe, features: np.ndarray, label_ids: np.ndarray, *, class_weights: np.ndarray | None = None
) -> float:
    """What is minimised, in float64 on the host, the features taken in blocks."""
    num_classes = len(probe.weights)
    of_class = np.ones(num_classes) if class_weights is None else np.asarray(class_weights, np.float64)
    weights, intercepts = probe.weights.astype(np.float64), probe.intercepts.astype(np.float64)
    loss = 0.0
    for start in range(0, len(features), 8192):
        labels = label_ids[start : start + 8192]
        logits = np.asarray(features[start : start + 8192], np.float64) @ weights.T + intercepts
        logits -= logits.max(axis=1, keepdims=True)
        entropy = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]
        loss += float(of_class[labels] @ entropy)
    return probe.strength * loss + (0.5 if num_classes > 2 else 1.0) * float((weights**2).sum())


def _check(features: np.ndarray, label_ids: np.ndarray, num_classes: int, strengths: Sequence[float]) -> np.ndarray:
    label_ids = np.asarray(label_ids)
    if np.ndim(features) != 2 or label_ids.shape != (len(features),) or label_ids.dtype.kind not in "iu":
        raise EvaluationError(
            f"expected features [N, D] and an integer label a row, got {np.shape(features)} and "
            f"{label_ids.dtype} {label_ids.shape}"
        )
    found = np.unique(label_ids)
    if num_classes < 2 or not np.array_equal(found, np.arange(num_classes)):
        raise EvaluationError(
            f"expected examples of every one of 2 or more classes, got {num_classes} classes and the labels "
            f"{found.tolist()}: leave out the classes without examples"
        )
    if not len(strengths) or not all(np.isfinite(strength) and strength > 0 for strength in strengths):
        raise EvaluationError(f"expected one or more strengths above 0, got {tuple(strengths)}")
    return label_ids
