"""CLIP as pure functions over a plain nested dict of float32 parameters (Radford et al. 2021).

Owns the bridge between the NNX modules and everything that moves: outside this folder nobody sees flax. The paths of
the parameters are part of the checkpoint format and frozen by tests/model/parameter_paths.json.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from plip_jax.model.presets import CLIPConfig
from plip_jax.model.products import round_kernel
from plip_jax.model.text import TextTower
from plip_jax.model.transformer import default_logit_scale
from plip_jax.model.vision import VisionTower

Params = dict[str, Any]
COMPUTE_DTYPES = ("float32", "bfloat16")


class _Network(nnx.Module):
    """Both towers and the temperature: the root of the parameter tree."""

    def __init__(self, model: "CLIP", rngs: nnx.Rngs):
        common: dict[str, Any] = {"compute_dtype": model.compute_dtype, "remat": model.remat, "rngs": rngs}
        self.vision = VisionTower(model.config, patch_dropout=model.patch_dropout, **common)
        self.text = TextTower(model.config, **common)
        # An explicit dtype: a weakly typed scalar makes the train step compile more than once.
        self.logit_scale = nnx.Param(jnp.asarray(default_logit_scale(), jnp.float32))


@dataclasses.dataclass(frozen=True)
class CLIP:
    """The pure functions of one configuration; parameters are passed in and never kept.

    Attributes:
        config: sizes.
        compute_dtype: operands of the matrix products, ``float32`` or ``bfloat16``.
        remat: recompute each block's activations in the backward pass instead of keeping them.
        patch_dropout: share of an image's patches left out in training; see `encode_image`.
    """

    config: CLIPConfig
    compute_dtype: str = "float32"
    remat: bool = False
    patch_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.compute_dtype not in COMPUTE_DTYPES:
            raise ValueError(f"compute_dtype: expected one of {', '.join(COMPUTE_DTYPES)}, got {self.compute_dtype!r}")
        if not 0 <= self.patch_dropout < 1:
            raise ValueError(f"patch_dropout: expected a share of at least 0 and below 1, got {self.patch_dropout}")

    def init(self, key: Array) -> Params:
        """Draw parameters for training from scratch: float32 on the default device; jit it to place them elsewhere."""
        return _plain(nnx.state(_Network(self, nnx.Rngs(params=key))))

    def abstract_params(self) -> Params:
        """Shapes and dtypes of the parameters (``jax.ShapeDtypeStruct`` leaves)."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def encode_image(
        self,
        params: Params,
        pixel_values: Float[Array, "batch side side 3"],
        keys: Key[Array, " batch"] | None = None,
    ) -> Float[Array, "batch embed_dim"]:
        """Image features, not normalised, float32, from pixels already scaled and normalised.

        With a key for each image, patches are dropped as in training; without keys, none is.

        Raises:
            ValueError: the images are not of the model's size.
        """
        return self.tower("vision", params)(pixel_values, keys)

    def encode_text(self, params: Params, tokens: Int[Array, "batch length"]) -> Float[Array, "batch embed_dim"]:
        """Text features, not normalised, float32, from token ids of at most ``context_length`` a row.

        Raises:
            ValueError: a row is longer than the context.
        """
        return self.tower("text", params)(tokens)

    def encode_packed_text(self, params: Params, packed: Mapping[str, Array]) -> Float[Array, "captions embed_dim"]:
        """Text features of captions packed into rows, equal to those of `encode_text` in the order of the captions.

        Args:
            params: of the model.
            packed: int32 "tokens", "segments" and "positions" [parts, rows, length] and "eot" [parts, captions]; see
                `TextTower.encode_packed`. A part needs no other, so parts may lie on different devices.

        Raises:
            ValueError: a row is longer than the context.
        """
        return self.tower("text", params).encode_packed(
            packed["tokens"], packed["segments"], packed["positions"], packed["eot"]
        )

    def round_kernels(self, params: Params) -> Params:
        """Parameters for many forward passes and no gradient: what each pass would round to the compute dtype, once.

        Takes arrays on devices and leaves them where they are; features are the same. Only `encode_image`,
        `encode_text` and `encode_packed_text` of this compute dtype and backend understand the result.
        """

        def rounded(path: Any, leaf: Array) -> Array:
            return round_kernel(leaf, self.compute_dtype) if path[-1].key == "kernel" else leaf

        return jax.tree_util.tree_map_with_path(rounded, params)

    def tower(self, name: str, params: Params) -> Any:
        """The ``vision`` or ``text`` tower as an NNX module that holds the parameters, to look at its parts."""
        return nnx.merge(_graphdefs(self)[name], _nested(params[name]))


@functools.lru_cache(maxsize=32)
def _graphdefs(model: CLIP) -> dict[str, nnx.GraphDef]:
    """The static half of each tower; abstract, so nothing is allocated."""
    network = nnx.eval_shape(lambda: _Network(model, nnx.Rngs(params=0)))
    return {"vision": nnx.split(network.vision)[0], "text": nnx.split(network.text)[0]}


def _plain(state: Any) -> Params:
    """NNX state to the plain dict; the stack's inner name is an implementation detail and left out of the paths."""
    params = nnx.to_pure_dict(state)
    for tower in ("vision", "text"):
        params[tower]["blocks"] = params[tower]["blocks"]["stacked"]
    return params


def _nested(tower: Params) -> Params:
    return {**tower, "blocks": {"stacked": tower["blocks"]}}


def build(
    config: CLIPConfig, *, compute_dtype: str = "float32", remat: bool = False, patch_dropout: float = 0.0
) -> CLIP:
    """The functions of a configuration; see `CLIP` for the settings and the ValueError."""
    return CLIP(config, compute_dtype, remat, patch_dropout)
