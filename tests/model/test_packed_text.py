"""Packed captions have the features and gradients of the padded ones, on one device and on eight."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plip_jax import sharding
from plip_jax.data.packing import pack_captions, text_lengths
from plip_jax.model import clip
from plip_jax.model.presets import get_preset
from tests.small_models import make_params

TINY = get_preset("tiny")
MODEL = clip.build(TINY)
EOT = TINY.text.eot_token_id
ROW = TINY.text.context_length
CAPTIONS = 32

LENGTHS = {
    "two tokens each": np.full(CAPTIONS, 2),
    "all full": np.full(CAPTIONS, ROW),
    "one of each length": np.r_[2 : ROW + 1, 2 : ROW + 1, 2, 2],
    "one full among short": np.r_[np.full(CAPTIONS - 1, 2), ROW],
    "random": np.random.default_rng(3).integers(2, ROW + 1, CAPTIONS),
}


@pytest.fixture(scope="module")
def params():
    return on_devices(make_params(TINY), 1)


def on_devices(params, count):
    return jax.device_put(params, sharding.replicated(sharding.make_mesh(jax.devices()[:count])))


def make_tokens(lengths):
    tokens = np.random.default_rng(0).integers(1, 500, (CAPTIONS, ROW)).astype(np.int32)
    tokens[np.arange(ROW) >= np.asarray(lengths)[:, None] - 1] = EOT
    return tokens


def pack(tokens, parts=8, rows=None, devices=1):
    """On a mesh, with as many rows as captions where none are given: many of them then hold padding only."""
    packed = pack_captions(tokens, text_lengths(tokens, EOT), parts, rows or CAPTIONS // parts)
    assert packed is not None
    return sharding.put_batch(sharding.make_mesh(jax.devices()[:devices]), packed)


def loss_and_features(encode):
    """A scalar that depends on every feature differently, with its gradient and the features."""
    weights = jax.random.normal(jax.random.key(7), (CAPTIONS, TINY.embed_dim))

    def loss(params, texts):
        features = encode(params, texts)
        return jnp.sum(features * weights), features

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


PLAIN, PACKED = loss_and_features(MODEL.encode_text), loss_and_features(MODEL.encode_packed_text)


def assert_equal_within(found, expected, bound, name):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert np.linalg.norm(found - expected) <= bound * np.linalg.norm(expected), name


def assert_same(found, expected):
    """1e-5 norm-relative, the project's bound: features caption by caption, gradients parameter by parameter."""
    ((_, features), grads), ((_, reference), reference_grads) = jax.tree.map(np.asarray, (found, expected))
    assert np.isfinite(features).all()
    for caption in range(CAPTIONS):
        assert_equal_within(features[caption], reference[caption], 1e-5, caption)
    paths = jax.tree_util.tree_flatten_with_path(reference_grads["text"])[0]
    largest = max(np.linalg.norm(leaf) for _, leaf in paths)
    for (path, leaf), packed_leaf in zip(paths, jax.tree.leaves(grads["text"]), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith("attention/key/bias"):
            assert np.linalg.norm(packed_leaf - leaf) <= 1e-6 * largest, name  # zero in theory
        else:
            assert_equal_within(packed_leaf, leaf, 1e-5, name)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("name", LENGTHS)
def test_features_and_gradients_equal_the_padded_ones(params, name, devices):
    tokens = make_tokens(LENGTHS[name])
    found = PACKED(on_devices(params, devices), pack(tokens, devices=devices))
    assert_same(found, PLAIN(params, jnp.asarray(tokens)))


def test_tight_rows_and_few_parts_give_the_same(params):
    tokens = make_tokens(LENGTHS["random"])
    lengths = text_lengths(tokens, EOT)
    rows = next(rows for rows in range(1, CAPTIONS) if pack_captions(tokens, lengths, 2, rows))
    assert rows < 0.75 * CAPTIONS / 2
    assert_same(PACKED(params, pack(tokens, 2, rows)), PLAIN(params, jnp.asarray(tokens)))


def test_an_end_of_text_inside_a_caption_ends_it_as_in_the_padded_form(params):
    tokens = make_tokens(LENGTHS["all full"])
    tokens[:, 5] = EOT
    assert_same(PACKED(params, pack(tokens)), PLAIN(params, jnp.asarray(tokens)))


def test_rows_of_padding_alone_make_nothing_that_is_not_a_number(params):
    packed = pack(make_tokens(LENGTHS["two tokens each"]))
    assert (~packed["segments"].any(axis=2)).sum() == 24
    (loss, features), grads = PACKED(params, packed)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, features, grads)))


def test_neighbours_in_a_row_do_not_see_each_other(params):
    packed = pack(make_tokens(np.full(CAPTIONS, 8)))
    reference = PACKED(params, packed)[0][1]
    for caption in (0, 1):  # the two of the first row
        own = 8 * caption + np.arange(7)
        changed_tokens = packed["tokens"].at[0, 0, own].add(1)
        features = PACKED(params, {**packed, "tokens": changed_tokens})[0][1]
        changed = np.flatnonzero((np.asarray(features) != np.asarray(reference)).any(axis=1))
        assert changed.tolist() == [caption]


def test_bfloat16_compute_is_as_close_as_when_padded(params):
    tokens = make_tokens(LENGTHS["random"])
    model = clip.build(TINY, compute_dtype="bfloat16")
    plain = jax.jit(model.encode_text)(params, jnp.asarray(tokens))
    found = jax.jit(model.encode_packed_text)(params, pack(tokens))
    # Operands are rounded to 8 bits at the same places; sums of another length flip a few roundings: 2^-8 each.
    np.testing.assert_allclose(found, plain, atol=0.01 * float(jnp.abs(plain).max()))


def collectives(program) -> set[str]:
    """What devices exchange in a compiled program."""
    return set(re.findall("all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter", program.as_text()))


def test_no_device_needs_another_to_encode_its_parts(params):
    packed = pack(make_tokens(LENGTHS["random"]), parts=16, devices=8)
    program = jax.jit(MODEL.encode_packed_text).lower(on_devices(params, 8), packed).compile()
    assert collectives(program) == set()
    assert program.output_shardings.is_equivalent_to(sharding.split_batch(sharding.make_mesh()), 2)


def test_gradients_need_no_collective_but_the_sum_over_devices(params):
    packed = pack(make_tokens(LENGTHS["random"]), devices=8)
    program = PACKED.lower(on_devices(params, 8), packed).compile()
    assert collectives(program) == {"all-reduce"}


def test_a_row_longer_than_the_context_is_named(params):
    short = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, context_length=ROW // 2))
    with pytest.raises(ValueError, match=f"at most {ROW // 2} a row .* got {ROW}"):
        clip.build(short).encode_packed_text(make_params(short), pack(make_tokens(LENGTHS["random"])))
