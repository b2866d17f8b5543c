"""Kernels rounded once give what kernels rounded at every pass give."""

import jax
import numpy as np
import pytest
from small_models import make_config, make_params

from plip_jax.model import clip

CONFIG = make_config()
PARAMS = jax.device_put(make_params(CONFIG))


@pytest.mark.parametrize("compute_dtype", clip.COMPUTE_DTYPES)
def test_features_are_those_of_the_float32_parameters(compute_dtype: str) -> None:
    model = clip.build(CONFIG, compute_dtype=compute_dtype)
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(5, CONFIG.vision.image_size, CONFIG.vision.image_size, 3)).astype(np.float32)
    tokens = rng.integers(1, CONFIG.text.eot_token_id + 1, (5, CONFIG.text.context_length), dtype=np.int32)
    tokens[:, -1] = CONFIG.text.eot_token_id
    rounded = model.round_kernels(PARAMS)
    for encode, inputs in ((model.encode_image, pixels), (model.encode_text, tokens)):
        expected, got = jax.jit(encode)(PARAMS, inputs), jax.jit(encode)(rounded, inputs)
        assert got.dtype == np.float32
        # 1e-5 of the largest: the same rounded operands, summed in float32 in another order.
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("compute_dtype", clip.COMPUTE_DTYPES)
def test_rounding_twice_changes_nothing(compute_dtype: str) -> None:
    model = clip.build(CONFIG, compute_dtype=compute_dtype)
    once = model.round_kernels(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, model.round_kernels(once), once)


def test_only_kernels_change_and_none_in_float32() -> None:
    for compute_dtype, changed in (("float32", set()), ("bfloat16", {"kernel"})):
        rounded = clip.build(CONFIG, compute_dtype=compute_dtype).round_kernels(PARAMS)
        found = {
            path[-1].key
            for (path, before), after in zip(
                jax.tree_util.tree_leaves_with_path(PARAMS), jax.tree.leaves(rounded), strict=True
            )
            if before.dtype != after.dtype
        }
        assert found == changed
