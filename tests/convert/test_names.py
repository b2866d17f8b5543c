"""The one table of names: every column takes a model there and back."""

import numpy as np
import pytest

from plip_jax.convert.names import Column, expected_shapes, from_params, to_params
from plip_jax.model.presets import get_preset


@pytest.mark.parametrize("column", ["hf", "hf_flax", "openai"])
def test_a_column_is_read_and_written_back(column: Column):
    rng = np.random.default_rng(0)
    config = get_preset("tiny")
    shapes = expected_shapes(config, column)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    written = from_params(to_params(tensors, config, column, where="a test"), config, column)
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(written[name], tensor, err_msg=name)


def test_openai_fuses_query_key_and_value():
    config = get_preset("tiny")
    shapes = expected_shapes(config, "openai")
    assert shapes["visual.transformer.resblocks.1.attn.in_proj_weight"] == (96, 32)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    tensors["transformer.resblocks.0.attn.in_proj_bias"] = np.repeat(np.float32([1, 2, 3]), 32)
    attention = to_params(tensors, config, "openai", where="a test")["text"]["blocks"]["attention"]
    for value, part in enumerate(("query", "key", "value"), start=1):
        np.testing.assert_array_equal(attention[part]["bias"][0], np.full(32, value, np.float32))
        np.testing.assert_array_equal(attention[part]["bias"][1], np.zeros(32, np.float32))
