"""A plain Vision Transformer over a nested dict of float32 parameters (Dosovitskiy et al. 2020).

Made of CLIP's blocks; it differs from CLIP's image tower in the bias of its patches, in having no norm before the
blocks and no projection behind them. Dropout, which the published weights have at 0, is left out.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from plip_jax.model.clip import COMPUTE_DTYPES
from plip_jax.model.transformer import LayerNorm, Stack, normal_param
from plip_jax.model.vision import PatchEmbedding
from plip_jax.model.vit_config import ViTConfig

Params = dict[str, Any]

# Of a network from scratch (the published code's); weights that are loaded replace it.
_INIT_STDDEV = 0.02


class _Network(nnx.Module):
    def __init__(self, model: "ViT", rngs: nnx.Rngs):
        config, vision = model.config, model.config.vision
        self.patch_embedding = PatchEmbedding(
            vision.patch_size, vision.width, compute_dtype=model.compute_dtype, rngs=rngs
        )
        self.patch_bias = nnx.Param(jnp.zeros((vision.width,), jnp.float32))
        self.class_embedding = normal_param(rngs, (vision.width,), _INIT_STDDEV)
        self.position_embedding = normal_param(rngs, (vision.num_tokens, vision.width), _INIT_STDDEV)
        self.blocks = Stack(vision, config, compute_dtype=model.compute_dtype, remat=model.remat, rngs=rngs)
        self.post_norm = LayerNorm(vision.width, config.norm_eps)

    def __call__(self, pixel_values: Float[Array, "batch side side 3"]) -> Float[Array, "batch width"]:
        position = self.position_embedding[...]
        patches = self.patch_embedding(pixel_values) + self.patch_bias[...] + position[1:]
        class_token = self.class_embedding[...] + position[0]
        class_tokens = jnp.broadcast_to(class_token, (patches.shape[0], 1, patches.shape[2]))
        x = self.blocks(jnp.concatenate([class_tokens, patches], axis=1))
        return self.post_norm(x[:, 0])


@dataclasses.dataclass(frozen=True)
class ViT:
    """The pure functions of one configuration; parameters are passed in and never kept.

    Attributes:
        config: sizes.
        compute_dtype: operands of the matrix products, ``float32`` or ``bfloat16``.
        remat: recompute each block's activations in the backward pass instead of keeping them.
    """

    config: ViTConfig
    compute_dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        if self.compute_dtype not in COMPUTE_DTYPES:
            raise ValueError(f"compute_dtype: expected one of {', '.join(COMPUTE_DTYPES)}, got {self.compute_dtype!r}")

    def init(self, key: Array) -> Params:
        """Draw parameters from scratch: float32."""
        params = nnx.to_pure_dict(nnx.state(_Network(self, nnx.Rngs(params=key))))
        return {**params, "blocks": params["blocks"]["stacked"]}

    def abstract_params(self) -> Params:
        """Shapes and dtypes of the parameters (``jax.ShapeDtypeStruct`` leaves)."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def encode_image(
        self, params: Params, pixel_values: Float[Array, "batch side side 3"]
    ) -> Float[Array, "batch width"]:
        """The class token behind the last norm, float32, from pixels already scaled and normalised.

        Raises:
            ValueError: the images are not of the model's size.
        """
        side = self.config.vision.image_size
        if pixel_values.shape[1:] != (side, side, 3):
            raise ValueError(f"pixel_values: expected [batch, {side}, {side}, 3], got {pixel_values.shape}")
        return nnx.merge(_graphdef(self), {**params, "blocks": {"stacked": params["blocks"]}})(pixel_values)


@functools.lru_cache(maxsize=8)
def _graphdef(model: ViT) -> nnx.GraphDef:
    """The static half; abstract, so nothing is allocated."""
    return nnx.split(nnx.eval_shape(lambda: _Network(model, nnx.Rngs(params=0))))[0]
