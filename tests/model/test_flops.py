"""Forward FLOPs against counts by hand, a published profile, and XLA's count of the traced program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plip_jax.model import clip
from plip_jax.model.flops import image_flops, text_flops
from plip_jax.model.presets import CLIPConfig, TextConfig, VisionConfig, get_preset

# Small numbers that a hand can count with, and no two alike.
HAND = CLIPConfig(
    embed_dim=5,
    vision=VisionConfig(image_size=4, patch_size=2, width=6, depth=2, num_heads=2, mlp_dim=10),
    text=TextConfig(context_length=4, vocab_size=9, width=8, depth=3, num_heads=2, mlp_dim=7, eot_token_id=8),
)
# Wide enough for the matrix products to be nearly all of what XLA counts. XLA counts the body of a loop once, so one
# block; the sum over blocks is held by the counts by hand.
WIDE = CLIPConfig(
    embed_dim=128,
    vision=VisionConfig(image_size=64, patch_size=8, width=512, depth=1, num_heads=8, mlp_dim=2048),
    text=TextConfig(context_length=32, vocab_size=99, width=512, depth=1, num_heads=8, mlp_dim=2048, eot_token_id=98),
)


def test_an_image_as_counted_by_hand():
    # Products as rows x inner x columns; 4 patches of 12 values, 5 tokens of width 6, 2 heads of 3.
    block = 4 * (5 * 6 * 6) + 2 * (5 * 3 * 5) * 2 + 2 * (5 * 6 * 10)
    assert image_flops(HAND) == 2 * (4 * 12 * 6 + 2 * block + 1 * 6 * 5)
    # Half of the patches: 2 of them, 3 tokens.
    block = 4 * (3 * 6 * 6) + 2 * (3 * 3 * 3) * 2 + 2 * (3 * 6 * 10)
    assert image_flops(HAND, patch_dropout=0.5) == 2 * (2 * 12 * 6 + 2 * block + 1 * 6 * 5)


def test_captions_as_counted_by_hand():
    # 3 tokens of width 8: of the 9 pairs 6 are not behind the mask, for scores and for sums of values.
    block = 4 * (3 * 8 * 8) + 2 * (6 * 8) + 2 * (3 * 8 * 7)
    three = 2 * (3 * block + 1 * 8 * 5)
    assert text_flops(HAND, [3]) == three
    assert text_flops(HAND, np.array([3, 3], np.int32)) == 2 * three
    assert text_flops(HAND, [3, 1]) == three + text_flops(HAND, [1])
    assert text_flops(HAND, []) == 0


@pytest.mark.parametrize(
    ("preset", "image", "text"),
    [("ViT-B-32", 8.82, 5.96), ("ViT-B-16", 35.13, 5.96), ("ViT-L-14", 162.03, 13.3), ("ViT-L-14-336", 381.92, 13.3)],
)
def test_published_sizes_cost_what_open_clip_publishes(preset, image, text):
    # GFLOPs of https://github.com/mlfoundations/open_clip/blob/main/docs/model_profile.csv (MIT), to two decimals; it
    # counts all 77^2 pairs of tokens.
    config = get_preset(preset)
    assert image_flops(config) / 1e9 == pytest.approx(image, abs=0.01)
    behind_the_mask = config.text.depth * 4 * config.text.width * 77 * 76 // 2
    assert (text_flops(config, [77]) + behind_the_mask) / 1e9 == pytest.approx(text, abs=0.01)


def test_lengths_do_not_overflow():
    assert text_flops(get_preset("ViT-L-14"), np.full(2_000_000, 77, np.int32)) > 2.0**53


def xla_flops(function, *arguments) -> float:
    analysis = jax.jit(function).lower(*arguments).cost_analysis()
    assert analysis is not None
    return analysis["flops"]


@pytest.mark.parametrize("patch_dropout", [0.0, 0.5])
def test_images_cost_what_xla_counts(patch_dropout):
    model = clip.build(WIDE, patch_dropout=patch_dropout)
    keys = jax.random.split(jax.random.key(0), 4) if patch_dropout else None
    pixels = jax.ShapeDtypeStruct((4, 64, 64, 3), jnp.float32)
    counted = xla_flops(lambda p, x: model.encode_image(p, x, keys), model.abstract_params(), pixels)
    ours = 4 * image_flops(WIDE, patch_dropout)
    print(counted / ours)


def test_captions_cost_what_xla_counts():
    model = clip.build(WIDE)
    tokens = jax.ShapeDtypeStruct((4, 32), jnp.int32)
    counted = xla_flops(model.encode_text, model.abstract_params(), tokens)
    behind_the_mask = 4 * 4 * 512 * 32 * 31 // 2
    ours = text_flops(WIDE, [32] * 4) + behind_the_mask
    print(counted / ours)
