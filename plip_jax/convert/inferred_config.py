"""The configuration of a CLIP from nothing but its tensors' shapes, whichever library's names they have.

Owns what the shapes say and what has to be assumed (the number of heads); names and layouts are those of the one table.
"""

import math
from collections.abc import Mapping

import numpy as np

from plip_jax.convert.hub import SourceError
from plip_jax.convert.names import LAYOUTS, TABLE, Column, WeightsError
from plip_jax.model.presets import Activation, CLIPConfig, TextConfig, VisionConfig

# Every published CLIP between these widths has heads of 64 features; narrower ones are not published, and wider image
# towers (ViT-H: 80, g: 88, bigG: 104) differ.
_HEAD_WIDTH = 64
_HEAD_WIDTH_HOLDS = range(256, 1025)


def config_from_tensors(
    tensors: Mapping[str, np.ndarray], column: Column, *, activation: Activation, where: str
) -> CLIPConfig:
    """Make the configuration that the shapes say; heads have 64 features, as in every published size of this width.

    The end-of-text token is the vocabulary's last, and pooling is at the largest id, as in OpenAI's code.

    Raises:
        WeightsError: a tensor that says a size is missing or of another rank.
        SourceError: the number of heads cannot be known.
    """

    def shape(path: str, rank: int) -> tuple[int, ...]:
        return _shape(tensors, column, path, rank, where)

    patch_size, patch_width, channels, vision_width = shape("vision/patch_embedding/kernel", 4)
    num_patches = shape("vision/position_embedding", 2)[0] - 1
    grid = math.isqrt(max(num_patches, 0))
    if channels != 3 or patch_size != patch_width or grid < 1 or grid**2 != num_patches:
        raise WeightsError(
            f"{where}: expected RGB and a square of square patches, got {channels} channels and {num_patches} patches "
            f"of {patch_size} x {patch_width}"
        )
    context_length, text_width = shape("text/position_embedding", 2)
    vocab_size = shape("text/token_embedding", 2)[0]
    heads = {"vision": _num_heads("vision", vision_width, where), "text": _num_heads("text", text_width, where)}
    try:
        return CLIPConfig(
            embed_dim=shape("text/projection/kernel", 2)[1],
            vision=VisionConfig(
                image_size=grid * patch_size,
                patch_size=patch_size,
                width=vision_width,
                depth=_depth(tensors, column, "vision"),
                num_heads=heads["vision"],
                mlp_dim=shape("vision/blocks/mlp/fc1/kernel", 2)[1],
            ),
            text=TextConfig(
                context_length=context_length,
                vocab_size=vocab_size,
                width=text_width,
                depth=_depth(tensors, column, "text"),
                num_heads=heads["text"],
                mlp_dim=shape("text/blocks/mlp/fc1/kernel", 2)[1],
                eot_token_id=vocab_size - 1,
                eot_pooling="argmax",
            ),
            activation=activation,
        )
    except WeightsError:
        raise
    except ValueError as error:
        raise WeightsError(f"{where}: {error}") from None


def _shape(tensors: Mapping[str, np.ndarray], column: Column, path: str, rank: int, where: str) -> tuple[int, ...]:
    """The shape, in our layout, of one layer's tensor."""
    foreign = getattr(_ROWS[path], column)
    name = foreign.name.format(layer=0)
    if name not in tensors or tensors[name].ndim != rank:
        got = f"the shape {tensors[name].shape}" if name in tensors else "none"
        raise WeightsError(f"{where}: expected {name} of {rank} dimensions, got {got}")
    axes = LAYOUTS[foreign.layout]
    theirs = tensors[name].shape
    return theirs if axes is None else tuple(theirs[axis] for axis in axes)


def _depth(tensors: Mapping[str, np.ndarray], column: Column, tower: str) -> int:
    name = getattr(_ROWS[f"{tower}/blocks/mlp/fc1/kernel"], column).name
    return next(layer for layer in range(len(tensors) + 1) if name.format(layer=layer) not in tensors)


def _num_heads(tower: str, width: int, where: str) -> int:
    if width % _HEAD_WIDTH or width not in _HEAD_WIDTH_HOLDS:
        raise SourceError(
            f"{where}: the number of heads of a {tower} tower {width} wide is not known (published CLIPs of 256 to "
            "1,024 have heads of 64): put the model's config.json (Hugging Face's names) or open_clip_config.json "
            "(OpenAI's names) beside the file"
        )
    return width // _HEAD_WIDTH


_ROWS = {row.path: row for row in TABLE}
