"""Learned gates: a linear judgement on image embeddings, and what it means for a pair.

Owns what a gate is, its file, its score and its consequence (`apply_gates`, `held_by`, `may_show`). How one is trained
is `gate_training`, the program is `gate`. PLIP's authors trained such a classifier of pathology against other images
and published neither it nor its threshold (Huang et al. 2023, "OpenPath").
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.curation.pair import Decision, Pair, drop
from data_prep.curation.rows import write_atomically

FORMAT = "plip_jax gate 1"
ROLES = ("require", "hold")
SCORE_DIGITS = 6
"""Scores are rounded to so many digits before they are compared or kept.

The last bits of a machine's arithmetic decide nothing, and the score that is written down is the one that decided.
"""


class GateError(ValueError):
    """A gate cannot be made, read or used. The message says what was expected, what came, and what to do."""


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a gate did on images whose truth is known.

    Attributes:
        true_positives: Images; positive is at or above the threshold.
        false_positives: Likewise.
        true_negatives: Likewise.
        false_negatives: Likewise.
        confidence: Of the bounds, one-sided, 0-1.
        precision_bound: Lower Clopper-Pearson bound.
        recall_bound: Likewise.
    """

    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int
    confidence: float
    precision_bound: float
    recall_bound: float

    @property
    def precision(self) -> float:
        """Share of what is judged positive that is; 0 where nothing is judged positive."""
        return self.true_positives / max(1, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Share of the positive that is judged so; 0 where there is none."""
        return self.true_positives / max(1, self.true_positives + self.false_negatives)


@dataclasses.dataclass(frozen=True)
class Gate:
    """A linear gate on L2-normalised image embeddings: sigmoid(weights . x + bias), compared with a threshold.

    Attributes:
        name: Of what it finds: "pathology", "screenshot"; a word of the report.
        role: "require" drops what scores below the threshold, "hold" keeps what scores at or above it for review.
        weights: [D].
        bias: Of the logit.
        threshold: Probability, 0-1.
        stated_precision: What the threshold was chosen for.
        held_out: What it then did on the held-out images, with their mixture of positive and negative.
        private: No report shows an image that it ended.
        model: Name of the checkpoint, for people.
        fingerprint: Of its weights and preprocessing, `embeddings.fingerprint_of`; features of another are refused.
        trained_on: Counts, seed, regularisation and shares of the training, for the datasheet.
        version: Of plip_jax that made it.
    """

    name: str
    role: str
    weights: tuple[float, ...]
    bias: float
    threshold: float
    stated_precision: float
    held_out: Counts
    private: bool
    model: str
    fingerprint: str
    trained_on: dict[str, int | float | str]
    version: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise GateError(f"gate {self.name!r}: expected a role of {', '.join(ROLES)}, got {self.role!r}")
        if not self.name.replace("_", "").isalnum():
            raise GateError(f"gate {self.name!r}: expected a name of letters, digits and underscores")
        if not all(map(math.isfinite, (*self.weights, self.bias, self.threshold))) or not self.weights:
            raise GateError(f"gate {self.name!r}: its weights, bias and threshold must be finite numbers")


@dataclasses.dataclass(frozen=True)
class GateSettings:
    """Which gates stand in the way of an image. The published datasets name none: all are ours.

    Attributes:
        require: Files of gates that an image must pass, e.g. pathology.
        hold: Files of gates whose finds wait for a verdict: screenshots, text in the image, labels, barcodes and
            accession numbers, faces, gross and clinical photographs.
        checkpoint: The model that made the gates, as `plip_jax.PLIP.from_pretrained` takes it.
        batch_size: Images encoded at once.
        acknowledge_no_gate: Take images of LAION though no gate stands in their way: nobody chose them as pathology,
            and the score of being unsafe lets some pass.
    """

    require: tuple[str, ...] = ()
    hold: tuple[str, ...] = ()
    checkpoint: str = ""
    batch_size: int = 32
    acknowledge_no_gate: bool = False


def save_gate(gate: Gate, path: Path) -> None:
    """Write a gate as JSON: numbers as text that reads back to the same bits."""
    values = {"format": FORMAT, **dataclasses.asdict(gate)}
    write_atomically(path, (json.dumps(values, indent=1) + "\n").encode())


def load_gate(path: Path) -> Gate:
    """Read a gate.

    Raises:
        GateError: No such file, or it is no gate.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            raise ValueError("another format")
        counts = Counts(**values.pop("held_out"))
        return Gate(**{**values, "weights": tuple(map(float, values["weights"])), "held_out": counts})
    except OSError as error:
        raise GateError(
            f"gate {path} cannot be read ({error}): train one with `python -m data_prep.gate train`"
        ) from error
    except GateError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise GateError(f"{path} is no {FORMAT!r} file ({type(error).__name__}: {error}): train it again") from error


def load_gates(settings: GateSettings) -> tuple[Gate, ...]:
    """Read all gates, those that are required first.

    Raises:
        GateError: One cannot be read, has another role, or they share a name or differ in their model.
    """
    gates = [(role, load_gate(Path(path))) for role in ROLES for path in getattr(settings, role)]
    names = [gate.name for _, gate in gates]
    for role, gate in gates:
        if gate.role != role:
            raise GateError(f"gate {gate.name!r} was trained with --role {gate.role} and is set to {role}: move it")
        if names.count(gate.name) > 1:
            raise GateError(
                f"two gates are called {gate.name!r}: their scores are kept by name; train one under another"
            )
        if gate.fingerprint != gates[0][1].fingerprint:
            first = gates[0][1]
            raise GateError(
                f"gates {first.name!r} ({first.model}) and {gate.name!r} ({gate.model}) are of different models: "
                "train both on the checkpoint of the settings"
            )
    return tuple(gate for _, gate in gates)


def normalized_rows(features: np.ndarray) -> np.ndarray:
    """Return float64 rows of length one.

    Raises:
        GateError: Not a matrix, or a row that is zero or not finite.
    """
    values = np.asarray(features, np.float64)
    if values.ndim != 2:
        raise GateError(f"expected features [N, D], got an array of shape {values.shape}")
    lengths = np.sqrt((values * values).sum(axis=1, keepdims=True))
    if not np.all(np.isfinite(lengths) & (lengths > 0)):
        rows = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0))[:, 0])
        raise GateError(f"{len(rows)} rows of the features are zero or not finite, the first is {rows[0]}")
    return values / lengths


def probability(features: np.ndarray, weights: Sequence[float] | np.ndarray, bias: float) -> np.ndarray:
    """sigmoid(weights . x + bias) of normalised rows, float64 [N], rounded to `SCORE_DIGITS`."""
    # A sum along each row, not a matrix product, whose bits depend on how many rows are computed at once.
    logits = (normalized_rows(features) * np.asarray(weights, np.float64)).sum(axis=1) + bias
    return np.round(0.5 * (1 + np.tanh(logits / 2)), SCORE_DIGITS)


def score(gate: Gate, features: np.ndarray, *, fingerprint: str) -> np.ndarray:
    """Return the probability that each image is what the gate finds: float64 [N].

    Args:
        gate: The gate.
        features: [N, D]; their length does not matter.
        fingerprint: Of the model that made them.

    Raises:
        GateError: The features are another model's, or not of the gate's width.
    """
    if fingerprint != gate.fingerprint:
        raise GateError(
            f"gate {gate.name!r} was trained on features of {gate.model} ({gate.fingerprint}), these are of "
            f"{fingerprint}: use that checkpoint, or train the gate again on this one"
        )
    if len(features) == 0:
        return np.zeros(0)
    if features.ndim != 2 or features.shape[1] != len(gate.weights):
        raise GateError(f"gate {gate.name!r}: expected features [N, {len(gate.weights)}], got {features.shape}")
    return probability(features, gate.weights, gate.bias)


def scores_of(gates: Sequence[Gate], features: np.ndarray, *, fingerprint: str) -> list[dict[str, float]]:
    """Return the scores of each image by the names of the gates; see `score`."""
    columns = [score(gate, features, fingerprint=fingerprint).tolist() for gate in gates]
    names = [gate.name for gate in gates]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)] if gates else [{}] * len(features)


def apply_gates(pair: Pair, scores: Mapping[str, float], gates: Sequence[Gate]) -> Pair | Decision:
    """Note the scores of a pair's image, and end the pair where a required gate does not find what it should.

    A pair that `held_by` names goes on: what becomes of it is the verdict's to say (`verdicts.judge`).

    Args:
        pair: The pair.
        scores: Of its image, by the names of the gates.
        gates: From `load_gates`.
    """
    scored = dataclasses.replace(
        pair, scores={**pair.scores, **{gate.name: float(scores[gate.name]) for gate in gates}}
    )
    for gate in gates:
        value = scored.scores[gate.name]
        if gate.role == "require" and value < gate.threshold:
            return drop(scored, "gate", f"not_{gate.name}", f"score {value:g}, threshold {gate.threshold:g}")
    return scored


def held_by(pair: Pair, gates: Sequence[Gate]) -> tuple[str, ...]:
    """Names of the gates that hold a scored pair for review, in their order."""
    return tuple(
        gate.name for gate in gates if gate.role == "hold" and pair.scores.get(gate.name, 0.0) >= gate.threshold
    )


def may_show(decision: Decision, gates: Sequence[Gate] = (), *, max_safety: float = 0.5) -> bool:
    """Say whether a report may show the image of a decision.

    It may not where it was or would have been held, where a private gate ended it, where a verdict rejected it (a
    person may have seen a face or a name), where it was never judged (`hydrate`, `image`), and where its source scores
    it unsafe.

    Args:
        decision: About a pair; a post has no image.
        gates: Those of the run. Without them, what a gate held is known by its reason only.
        max_safety: Score of being unsafe from which on nothing is shown (LAION's punsafe; LAION's own cut is 0.5).
    """
    pair = decision.pair
    if pair is None or decision.stage in ("source", "thread", "text", "hydrate", "image", "verdict"):
        return False
    if decision.reason.startswith(("held_", "unsafe")) or (pair.safety is not None and pair.safety >= max_safety):
        return False
    if held_by(pair, gates) and decision.stage == "gate":
        return False
    return not any(gate.private and decision.reason == f"not_{gate.name}" for gate in gates)


def lower_bound(successes: int, trials: int, confidence: float) -> float:
    """Lower Clopper-Pearson bound of a share, one-sided (Clopper & Pearson 1934, "The use of confidence limits")."""
    from scipy.stats import beta  # it loads half of scipy, which scoring does not need

    return float(beta.ppf(1 - confidence, successes, trials - successes + 1)) if successes else 0.0


def count(scores: np.ndarray, positive: np.ndarray, threshold: float, *, confidence: float = 0.95) -> Counts:
    """Compare scores [N] at a threshold with the truth, bool [N]."""
    above = scores >= threshold
    hits, false_alarms = int((above & positive).sum()), int((above & ~positive).sum())
    misses = int((~above & positive).sum())
    return Counts(
        true_positives=hits,
        false_positives=false_alarms,
        true_negatives=int((~above & ~positive).sum()),
        false_negatives=misses,
        confidence=confidence,
        precision_bound=lower_bound(hits, hits + false_alarms, confidence),
        recall_bound=lower_bound(hits, hits + misses, confidence),
    )


def describe(gate: Gate) -> dict[str, Any]:
    """What the datasheet says of a gate, fit for JSON: all but its weights."""
    values = dataclasses.asdict(gate)
    del values["weights"], values["bias"]
    return {**values, "precision": gate.held_out.precision, "recall": gate.held_out.recall}
