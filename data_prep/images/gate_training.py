"""Trains a gate from the embeddings of images that are, and of images that are not, what it shall find.

A logistic regression: its regularisation is chosen on a validation part, its threshold on a held-out part that neither
saw. The threshold is the least whose precision there is the stated one or better: of those, the one of most recall. As
it was picked on these images, their precision is a little flattering; the lower bound beside it is what to quote. Both
hold for the mixture of the held-out images: where one image in fifty is positive, precision is lower.
"""

import dataclasses
import importlib.metadata
from collections.abc import Sequence

import numpy as np

from data_prep.images.gates import SCORE_DIGITS, Gate, GateError, count, normalized_rows, probability

# Inverse strengths of the L2 penalty that are tried (scikit-learn's C); ours. Of equal ones the strongest penalty wins.
REGULARISATIONS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
# Least images of each kind in each part, so that a share means something at all.
_LEAST_OF_A_KIND = 2


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How a gate is trained; ours.

    Attributes:
        precision: What the threshold is chosen for, 0-1.
        least_recall: Share of the held-out positive images that the threshold must let through, 0-1.
        holdout: Share of the groups that the threshold is chosen on, 0-1.
        validation: Share of the groups that the regularisation is chosen on, 0-1.
        seed: Of the parts.
        confidence: Of the lower bounds, one-sided, 0-1.
    """

    precision: float = 0.99
    least_recall: float = 0.1
    holdout: float = 0.3
    validation: float = 0.2
    seed: int = 0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.precision <= 1:
            raise GateError(f"precision: expected above 0 and at most 1, got {self.precision}")
        if not 0 <= self.least_recall <= 1:
            raise GateError(f"least_recall: expected 0 to 1, got {self.least_recall}")
        if min(self.holdout, self.validation) <= 0 or self.holdout + self.validation >= 1:
            raise GateError(
                f"holdout {self.holdout} and validation {self.validation}: expected positive shares that leave some "
                "images to train on"
            )


def train_gate(
    positive: np.ndarray,
    negative: np.ndarray,
    settings: TrainingSettings,
    *,
    name: str,
    model: str,
    fingerprint: str,
    role: str = "require",
    private: bool | None = None,
    groups: Sequence[str] | None = None,
) -> Gate:
    """Train a gate.

    Args:
        positive: Features of what it shall find, [N, D]; their length does not matter.
        negative: Features of what it shall not, [M, D].
        settings: How.
        name: Of what it finds.
        model: Name of the checkpoint that made the features.
        fingerprint: Of the checkpoint.
        role: "require" or "hold".
        private: Whether no report shows what it ends; by default true for "hold".
        groups: N + M names, of the positive and then the negative; images of one group (a slide) are in one part.

    Raises:
        GateError: Too few images, features that do not fit, or a precision that no threshold reaches.
    """
    features, truth = _labelled(positive, negative)
    names = [str(i) for i in range(len(truth))] if groups is None else list(groups)
    if len(names) != len(truth):
        raise GateError(f"groups: expected {len(truth)} names, one an image, got {len(names)}")
    part = _parts(np.asarray(names), truth, settings)
    strength = _best_regularisation(features, truth, part)
    weights, bias = _fit(features[part != "holdout"], truth[part != "holdout"], strength)
    held_out = part == "holdout"
    scores, held_truth = probability(features[held_out], weights, bias), truth[held_out]
    threshold = least_threshold(scores, held_truth, settings.precision, settings.least_recall)
    return Gate(
        name=name,
        role=role,
        weights=tuple(map(float, weights)),
        bias=bias,
        threshold=threshold,
        stated_precision=settings.precision,
        held_out=count(scores, held_truth, threshold, confidence=settings.confidence),
        private=role == "hold" if private is None else private,
        model=model,
        fingerprint=fingerprint,
        trained_on={
            "positive": len(positive),
            "negative": len(negative),
            "groups": len(set(names)),
            "C": strength,
            **dataclasses.asdict(settings),
        },
        version=importlib.metadata.version("plip-jax"),
    )


def least_threshold(scores: np.ndarray, positive: np.ndarray, precision: float, least_recall: float) -> float:
    """Return the least threshold above which the share of the positive is the stated one, half way to the score below.

    All thresholds between two neighbouring scores judge these images alike; the middle is the farthest from both.

    Args:
        scores: [N].
        positive: Truth, bool [N].
        precision: 0-1.
        least_recall: Share of the positive that must be found, 0-1: a threshold that a few images pass has its
            precision by luck.

    Raises:
        GateError: There is none; the message says the best that can be had.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(positive[order])
    shares, total = hits / np.arange(1, len(scores) + 1), int(positive.sum())
    # Images of one score are above a threshold together: a place counts where the next score is another.
    ends = np.flatnonzero(np.diff(ranked, append=-np.inf))
    enough = [at for at in ends if hits[at] and hits[at] >= least_recall * total]
    good = [at for at in enough if shares[at] >= precision]
    if not good:
        best = max(enough or ends, key=lambda at: (shares[at], hits[at]))
        raise GateError(
            f"no threshold has a precision of {precision:g} and a recall of {least_recall:g} on the {len(scores)} "
            f"held-out images: the best precision is {shares[best]:.4f}, at {ranked[best]:g} with {hits[best]} of "
            f"{total} found. State a lower one, or give more or cleaner images (is one in the wrong folder?)"
        )
    least = good[-1]
    if least + 1 == len(ranked):
        return float(ranked[least])
    middle = round((ranked[least] + ranked[least + 1]) / 2, SCORE_DIGITS)
    return float(middle if middle > ranked[least + 1] else ranked[least])


def _labelled(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    for kind, features in (("positive", positive), ("negative", negative)):
        if len(features) < 3 * _LEAST_OF_A_KIND:
            raise GateError(
                f"{len(features)} {kind} images: expected at least {3 * _LEAST_OF_A_KIND}; some hundred are good"
            )
    if positive.shape[1:] != negative.shape[1:]:
        raise GateError(f"positive features are {positive.shape}, negative {negative.shape}: expected one width")
    truth = np.repeat([True, False], [len(positive), len(negative)])
    return normalized_rows(np.concatenate([positive, negative])), truth


def _parts(groups: np.ndarray, truth: np.ndarray, settings: TrainingSettings) -> np.ndarray:
    """Name the part of each image: whole groups, drawn apart by which kinds they hold."""
    part = np.full(len(truth), "train", dtype="<U10")
    order = np.random.default_rng(settings.seed)
    names, group = np.unique(groups, return_inverse=True)
    kinds = np.stack([np.bincount(group, truth == kind, len(names)) > 0 for kind in (True, False)])
    for kind in ((True, False), (False, True), (True, True)):
        drawn = order.permutation(np.flatnonzero((kinds == np.reshape(kind, (2, 1))).all(axis=0)))
        held = round(len(drawn) * settings.holdout)
        validated = round(len(drawn) * settings.validation)
        part[np.isin(group, drawn[:held])] = "holdout"
        part[np.isin(group, drawn[held : held + validated])] = "validation"
    for name in ("train", "validation", "holdout"):
        found = [int((truth[part == name] == kind).sum()) for kind in (True, False)]
        least = 1 if name == "validation" else _LEAST_OF_A_KIND
        if min(found) < least:
            raise GateError(
                f"the part {name!r} has {found[0]} positive and {found[1]} negative images, of {len(names)} groups: "
                f"expected at least {least} of each; give more images or groups"
            )
    return part


def _best_regularisation(features: np.ndarray, truth: np.ndarray, part: np.ndarray) -> float:
    """The strength of least log loss on the validation part, both kinds weighing the same."""
    validation = part == "validation"
    losses = []
    for strength in REGULARISATIONS:
        weights, bias = _fit(features[part == "train"], truth[part == "train"], strength)
        logits = features[validation] @ weights + bias
        errors = np.logaddexp(0, np.where(truth[validation], -logits, logits))
        losses.append(sum(errors[truth[validation] == kind].mean() for kind in (True, False)))
    return REGULARISATIONS[int(np.argmin(np.round(losses, 6)))]


def _fit(features: np.ndarray, truth: np.ndarray, strength: float) -> tuple[np.ndarray, float]:
    from sklearn.linear_model import LogisticRegression  # slow to load

    # Balanced: the folders' sizes say nothing about how common the kinds are among the posts.
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=10_000, tol=1e-6).fit(features, truth)
    return model.coef_[0], float(model.intercept_[0])
