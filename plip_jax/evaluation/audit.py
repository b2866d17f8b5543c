"""The leakage audit of a suite: every set that is scored against the training records, by hash and by embedding."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from plip_jax.evaluation.embeddings import normalized
from plip_jax.evaluation.examples import Examples
from plip_jax.evaluation.leakage import (
    AuditedImages,
    ClosePairsSearch,
    LeakageConfig,
    audit_report,
    audit_rows,
    find_leaks,
)
from plip_jax.evaluation.suite import PlannedTask
from plip_jax.evaluation.task import Model

HashImages = Callable[[Examples], tuple[np.ndarray, np.ndarray]]
"""Examples -> hashes uint64 [N, V] and which of them say nothing, bool [N]; see `plip_jax.data.perceptual_hash`."""


@dataclasses.dataclass(frozen=True)
class AuditConfig(LeakageConfig):
    """Where to look, and when two images count as one.

    Attributes:
        data: folder of the training records; "" for no audit.
        split: of them.
    """

    data: str = ""
    split: str = "train"


@dataclasses.dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        flagged: rows of each scored source with a near-copy in training, int64.
        report: fit for JSON.
        rows: one a pair, for a table.
    """

    flagged: Mapping[tuple[str, str], np.ndarray]
    report: dict[str, Any]
    rows: tuple[dict[str, Any], ...]


def audit_sets(
    training: Examples,
    data: Mapping[tuple[str, str], Examples],
    planned: Sequence[PlannedTask],
    model: Model | None,
    config: AuditConfig,
    *,
    hash_images: HashImages,
    close_pairs: ClosePairsSearch,
) -> Audit:
    """Look for every scored image among the training images.

    Args:
        training: the training records.
        data: the examples by source.
        planned: the tasks; what they score is looked for.
        model: whose embeddings are the second witness; None for the hashes alone.
        config: what counts as a copy.
        hash_images: makes perceptual hashes.
        close_pairs: `plip_jax.data.perceptual_hash.close_pairs`.
    """

    def audited(examples: Examples) -> AuditedImages:
        hashes, is_flat = hash_images(examples)
        features = None if model is None else normalized(model.embed(examples))
        return AuditedImages(examples.ids, hashes, is_flat, features)

    train = audited(training)
    flagged: dict[tuple[str, str], np.ndarray] = {}
    sets: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for source in dict.fromkeys(item.source for item in planned):
        test = audited(data[source])
        leaks = find_leaks(train, test, config, close_pairs=close_pairs)
        flagged[source] = np.flatnonzero(leaks.flagged)
        name = " ".join(source).strip()
        sets[name] = audit_report(leaks, train, test, config)
        rows += [{"set": name, **row} for row in audit_rows(leaks, train, test)]
    method = (
        f"Each scored image was compared with {len(training):,} training images of {config.data} {config.split}: by a "
        f"64-bit perceptual hash, of the training image and its flips and turns, in at most {config.hash_radius} bits, "
        + (f"and by the cosine of the embeddings of {model.name}, at least {config.cosine:g}." if model else "alone.")
    )
    return Audit(flagged, {"method": method, "sets": sets}, tuple(rows))
