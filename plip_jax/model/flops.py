"""Floating-point operations of a forward pass, counted from the sizes: what model FLOPs utilisation is measured by.

Counted are the matrix products that the mathematics needs, a multiply and an add being two operations (Chowdhery et al.
2022, PaLM, appendix B). Norms, softmax, activations and lookups are not counted, nor is what an implementation computes
besides: padding, dropped patches, pairs of tokens behind the causal mask, recomputed activations. So a faster program
for the same mathematics has the higher utilisation, and wasted work never raises it. A training step needs three times
the forward pass: the backward pass is two products of the same size for each.
"""

from collections.abc import Sequence

import numpy as np

from plip_jax.model.presets import CLIPConfig, TextConfig, VisionConfig
from plip_jax.model.vision import kept_patches


def image_flops(config: CLIPConfig, patch_dropout: float = 0.0) -> float:
    """FLOPs of encoding one image.

    Patches of p x p x 3 values to width w: 6 p^2 w each. Then the blocks, of the kept patches and the class token,
    where every token attends to all t: t^2 pairs. Last the projection of the class token, 2 w e.

    Args:
        config: sizes.
        patch_dropout: share of the patches left out, which need not be embedded either.
    """
    vision = config.vision
    patches = vision.num_tokens - 1
    if patch_dropout:
        patches = kept_patches(patches, patch_dropout)
    tokens = patches + 1
    embedding = 6 * vision.patch_size**2 * vision.width * patches
    blocks = vision.depth * _block_flops(vision, tokens, tokens**2)
    return float(embedding + blocks + 2 * vision.width * config.embed_dim)


def text_flops(config: CLIPConfig, lengths: Sequence[int] | np.ndarray) -> float:
    """FLOPs of encoding captions of these many live tokens, all of them together.

    Attention is causal: a caption of t tokens has t (t + 1) / 2 pairs that may look at each other, and no other pair is
    counted (many counts, open_clip's among them, take t^2: 1.2 % more at 77 tokens of ViT-B/32's text tower). The
    lookups of tokens and positions are no products. Every caption ends in one projection, 2 w e.

    Args:
        config: sizes.
        lengths: live tokens of each caption, its <|endoftext|> included.
    """
    # Exact in int64: a batch of 10^6 captions of 77 tokens has 10^10 pairs.
    counts = np.asarray(lengths, np.int64)
    pairs = int((counts * (counts + 1) // 2).sum())
    blocks = config.text.depth * _block_flops(config.text, int(counts.sum()), pairs)
    return float(blocks + 2 * config.text.width * config.embed_dim * counts.size)


def _block_flops(tower: VisionConfig | TextConfig, tokens: int, pairs: int) -> int:
    """One block: 8 w^2 a token for query, key, value and output, 4 w m for the perceptron; 4 w a pair that attends.

    Those 4 w are the score (2 w over all heads) and the weighted sum of values (2 w).
    """
    return tokens * (8 * tower.width**2 + 4 * tower.width * tower.mlp_dim) + 4 * tower.width * pairs
