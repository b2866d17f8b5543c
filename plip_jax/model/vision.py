"""The image tower: patches, a class token, the Transformer, and the projection of the class token."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from plip_jax.model.presets import CLIPConfig
from plip_jax.model.transformer import LayerNorm, Linear, Stack, matmul, normal_param


class PatchEmbedding(nnx.Module):
    """A convolution whose stride is its size, without bias; ``kernel`` is [height, width, channel, out]."""

    def __init__(self, patch_size: int, width: int, *, compute_dtype: str, rngs: nnx.Rngs):
        self.patch_size = patch_size
        self.compute_dtype = compute_dtype
        fan_in = 3 * patch_size**2
        # Variance 1 / (3 fan_in), that of PyTorch's default for a convolution.
        self.kernel = normal_param(rngs, (patch_size, patch_size, 3, width), (3 * fan_in) ** -0.5)

    def __call__(self, pixel_values: Float[Array, "batch side side 3"]) -> Float[Array, "batch patches width"]:
        """Embed each patch."""
        batch, side, _, _ = pixel_values.shape
        grid, patch = side // self.patch_size, self.patch_size
        patches = pixel_values.reshape(batch, grid, patch, grid, patch, 3).transpose(0, 1, 3, 2, 4, 5)
        kernel = self.kernel[...].reshape(-1, self.kernel.shape[-1])
        # One product over flattened patches is the same sum as the convolution, and faster on every backend.
        return matmul(patches.reshape(batch, grid**2, -1), kernel, compute_dtype=self.compute_dtype)


def drop_patches(
    patches: Float[Array, "batch patches width"], share: float, keys: Key[Array, " batch"]
) -> Float[Array, "batch kept width"]:
    """Keep a random subset of each image's patches (Li et al. 2023, FLIP), `kept_patches` of them.

    Each image has a key of its own, so what it keeps does not depend on the batch, or the part of one, it stands in.
    """
    count = patches.shape[1]
    order = jnp.argsort(jax.vmap(lambda key: jax.random.uniform(key, (count,)))(keys), axis=1)
    return jnp.take_along_axis(patches, order[:, : kept_patches(count, share), None], axis=1)


def kept_patches(count: int, share: float) -> int:
    """How many of `count` patches are kept when a share is dropped: the whole part of the rest, at least one."""
    return max(1, int(count * (1 - share)))


class VisionTower(nnx.Module):
    """CLIP's Vision Transformer: norm before and after the blocks, features from the class token."""

    def __init__(self, config: CLIPConfig, *, compute_dtype: str, remat: bool, patch_dropout: float, rngs: nnx.Rngs):
        self.patch_dropout = patch_dropout
        vision = config.vision
        scale = vision.width**-0.5
        self.image_size = vision.image_size
        self.patch_embedding = PatchEmbedding(vision.patch_size, vision.width, compute_dtype=compute_dtype, rngs=rngs)
        self.class_embedding = normal_param(rngs, (vision.width,), scale)
        self.position_embedding = normal_param(rngs, (vision.num_tokens, vision.width), scale)
        self.pre_norm = LayerNorm(vision.width, config.norm_eps)
        self.blocks = Stack(vision, config, compute_dtype=compute_dtype, remat=remat, rngs=rngs)
        self.post_norm = LayerNorm(vision.width, config.norm_eps)
        self.projection = Linear(
            vision.width, config.embed_dim, stddev=scale, compute_dtype=compute_dtype, use_bias=False, rngs=rngs
        )

    def __call__(
        self, pixel_values: Float[Array, "batch side side 3"], keys: Key[Array, " batch"] | None = None
    ) -> Float[Array, "batch embed_dim"]:
        """Features of each image, not normalised; a key for each turns patch dropout on, as in training."""
        if pixel_values.shape[1:] != (self.image_size, self.image_size, 3):
            raise ValueError(
                f"pixel_values: expected [batch, {self.image_size}, {self.image_size}, 3], got {pixel_values.shape}; "
                "preprocess the images to the model's size"
            )
        position = self.position_embedding[...]
        patches = self.patch_embedding(pixel_values) + position[1:]
        if keys is not None and self.patch_dropout:
            patches = drop_patches(patches, self.patch_dropout, keys)
        class_token = self.class_embedding[...] + position[0]
        class_tokens = jnp.broadcast_to(class_token, (patches.shape[0], 1, patches.shape[2]))
        x = jnp.concatenate([class_tokens, patches], axis=1)
        x = self.blocks(self.pre_norm(x))
        return self.projection(self.post_norm(x[:, 0]))
