"""A validation part of a training split: whole units, every class on both sides where that can be, seeded."""

import numpy as np

from plip_jax.evaluation.embeddings import EvaluationError
from plip_jax.evaluation.examples import Examples
from plip_jax.evaluation.units import choose_units


def hold_out(examples: Examples, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split rows into a part for fitting and a part for choosing.

    Units (patients, slides, groups) stay whole. They are visited in a seeded order within the class of most of their
    examples, and taken for choosing until that class has its share.

    Args:
        examples: of the training split.
        share: of the examples to hold out, in (0, 1).
        seed: of the order.

    Returns:
        Rows for fitting and rows held out, int64, both rising.

    Raises:
        EvaluationError: a side would be empty, or the share is not in (0, 1).
    """
    if not 0 < share < 1:
        raise EvaluationError(f"expected a share in (0, 1) to hold out, got {share}")
    units = choose_units(examples)
    classes, class_of = np.unique(np.asarray(examples.labels), return_inverse=True)
    counts = np.zeros((units.count, len(classes)), np.int64)
    np.add.at(counts, (units.of_item, class_of), 1)
    main_class = counts.argmax(axis=1)
    order = np.random.default_rng(seed).permutation(units.count)
    held_units = np.zeros(units.count, bool)
    for number in range(len(classes)):
        mine = order[main_class[order] == number]
        before = np.cumsum(counts[mine].sum(axis=1)) - counts[mine].sum(axis=1)
        held_units[mine[before < share * counts[mine].sum()]] = len(mine) > 1  # a lone unit stays for fitting
    held = held_units[units.of_item]
    if held.all() or not held.any():
        raise EvaluationError(
            f"{len(examples)} examples of {units.count} {units.kind} units cannot be split for validation: name a "
            "validation split of its own"
        )
    return np.flatnonzero(~held), np.flatnonzero(held)
