"""Interpolated weights: the formula, its ends to the bit, and what cannot be mixed."""

from typing import Any

import jax
import numpy as np
import pytest
from small_models import make_config, make_params

from plip_jax.training.interpolation import interpolate


def sides() -> tuple[dict[str, Any], dict[str, Any]]:
    config = make_config()
    return make_params(config, 0), make_params(config, 1)


def test_a_quarter_of_the_way_by_hand():
    start = {"tower": {"kernel": np.float32([[0, 4], [8, -2]])}, "logit_scale": np.float32(2)}
    end = {"tower": {"kernel": np.float32([[4, 0], [8, 2]])}, "logit_scale": np.float32(4)}
    found = interpolate(start, end, 0.25)
    np.testing.assert_array_equal(found["tower"]["kernel"], np.float32([[1, 3], [8, -1]]))
    assert found["logit_scale"] == 2.5
    assert {type(leaf) for leaf in jax.tree.leaves(found)} == {np.ndarray}
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}


def test_its_ends_are_the_two_sides_to_the_last_bit():
    start, end = sides()
    start["vision"]["class_embedding"][:3] = [-0.0, np.inf, np.nan]
    end["vision"]["class_embedding"][:3] = [0.0, 1.0, 2.0]
    for alpha, side in ((0, start), (1.0, end)):
        found = interpolate(start, end, alpha)
        assert jax.tree.structure(found) == jax.tree.structure(side)
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(side), strict=True):
            assert ours.tobytes() == theirs.tobytes()
        found["vision"]["class_embedding"][:] = 7  # its own memory
        assert not (side["vision"]["class_embedding"] == 7).any()


def test_weights_of_jax_and_a_weakly_typed_alpha_stay_float32():
    start, end = sides()
    found = interpolate(jax.tree.map(jax.numpy.asarray, start), end, np.float64(1 / 3))
    for ours, first, second in zip(*(jax.tree.leaves(tree) for tree in (found, start, end)), strict=True):
        expected = first.astype(np.float64) * 2 / 3 + second.astype(np.float64) / 3
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, expected, rtol=0, atol=3e-7)  # values up to 4 in float32


def test_a_bias_that_one_side_has_is_kept_and_one_of_both_is_mixed():
    start, end = sides()
    with_bias = {**end, "logit_bias": np.float32(-10)}
    assert interpolate(start, with_bias, 0.25)["logit_bias"] == -10
    assert interpolate(with_bias, start, 0.25)["logit_bias"] == -10
    assert interpolate({**start, "logit_bias": np.float32(-2)}, with_bias, 0.25)["logit_bias"] == -4
    assert "logit_bias" not in interpolate(start, end, 0.25)
    assert "logit_bias" not in start


def test_what_does_not_fit_is_refused():
    start, end = sides()
    for alpha in (-0.1, 1.01, float("nan")):
        with pytest.raises(ValueError, match="alpha: expected a number from 0"):
            interpolate(start, end, alpha)
    del end["text"]["final_norm"]["bias"]
    end["logit_scale"] = np.zeros(2, np.float32)
    end["vision"]["adapter"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="3 parameters differ") as raised:
        interpolate(start, end, 0.5)
    for line in (
        "logit_scale: () at the start, (2,) at the end",
        "text/final_norm/bias: (32,) at the start, absent at the end",
        "vision/adapter: absent at the start, (3,) at the end",
    ):
        assert line in str(raised.value)
