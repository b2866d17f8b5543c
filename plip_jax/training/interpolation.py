"""Interpolation between two weights of one network: WiSE-FT (Wortsman et al. 2022, https://arxiv.org/abs/2109.01903).

Fine-tuning raises accuracy on its own domain and costs accuracy elsewhere; weights between those it started from and
those it ended at often keep most of both.
"""

from typing import Any

import jax
import numpy as np

# A loss's own weight: CLIP's starting weights have none where the run was trained with SigLIP's loss.
_OF_ONE_SIDE = ("logit_bias",)


def check_alpha(alpha: float) -> None:
    """Refuse an alpha outside [0, 1] (ValueError): beyond the two weights is extrapolation."""
    if not 0 <= alpha <= 1:  # a NaN too
        raise ValueError(f"alpha: expected a number from 0 (start) to 1 (end), got {alpha}")


def interpolate(start: dict[str, Any], end: dict[str, Any], alpha: float) -> dict[str, Any]:
    """``(1 - alpha) * start + alpha * end`` in float32, leaf by leaf; ``logit_scale``, in log space, as any other.

    A ``logit_bias`` that one side alone has is kept from that side. At 0 and at 1 the weights are those of a side, to
    the last bit.

    Args:
        start: the weights that fine-tuning started from, a nested dict of arrays.
        end: those it ended at, of the same network.
        alpha: the share of ``end``, 0 to 1.

    Returns:
        A nested dict of float32 numpy arrays.

    Raises:
        ValueError: alpha outside [0, 1], or parameters that only one side has or that differ in shape; all are listed.
    """
    check_alpha(alpha)
    for name in _OF_ONE_SIDE:
        if name in start and name not in end:
            end = {**end, name: start[name]}
        elif name in end and name not in start:
            start = {**start, name: end[name]}
    _check_same_tree(start, end)

    def mix(first: Any, second: Any) -> np.ndarray:
        first, second = np.asarray(first, np.float32), np.asarray(second, np.float32)
        if alpha in (0, 1):  # a sum would lose the sign of a zero, and make a NaN of an infinity
            return np.array(second if alpha else first)
        # asarray: a product of scalars is no array any more
        return np.asarray(np.float32(1 - alpha) * first + np.float32(alpha) * second)

    return jax.tree.map(mix, start, end)


def _check_same_tree(start: Any, end: Any) -> None:
    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {jax.tree_util.keystr(path, simple=True, separator="/"): np.shape(leaf) for path, leaf in leaves}

    ours, theirs = shapes(start), shapes(end)
    faults = [
        f"{path}: {ours.get(path, 'absent')} at the start, {theirs.get(path, 'absent')} at the end"
        for path in sorted(ours.keys() | theirs.keys())
        if ours.get(path) != theirs.get(path)
    ]
    if faults:
        raise ValueError(
            f"weights of two different networks cannot be interpolated, {len(faults)} parameters differ:\n  "
            + "\n  ".join(faults)
        )
