"""The text tower: token and position embeddings, the causal Transformer, and the projection of the EOT token."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from plip_jax.model.presets import CLIPConfig, TextConfig
from plip_jax.model.transformer import LayerNorm, Linear, Stack, causal_mask, normal_param


def eot_position(tokens: Int[Array, "batch length"], config: TextConfig) -> Int[Array, " batch"]:
    """Index of the token that stands for the caption, by the configuration's pooling convention."""
    if config.eot_pooling == "argmax":
        return jnp.argmax(tokens, axis=-1)
    return jnp.argmax(tokens == config.eot_token_id, axis=-1)


class TextTower(nnx.Module):
    """CLIP's causal text Transformer: features from the end-of-text token after the last norm."""

    def __init__(self, config: CLIPConfig, *, compute_dtype: str, remat: bool, rngs: nnx.Rngs):
        text = config.text
        self.config = text
        # Standard deviations of OpenAI's CLIP.initialize_parameters.
        self.token_embedding = normal_param(rngs, (text.vocab_size, text.width), 0.02)
        self.position_embedding = normal_param(rngs, (text.context_length, text.width), 0.01)
        self.blocks = Stack(text, config, compute_dtype=compute_dtype, remat=remat, rngs=rngs)
        self.final_norm = LayerNorm(text.width, config.norm_eps)
        self.projection = Linear(
            text.width,
            config.embed_dim,
            stddev=text.width**-0.5,
            compute_dtype=compute_dtype,
            use_bias=False,
            rngs=rngs,
        )

    def __call__(self, tokens: Int[Array, "batch length"]) -> Float[Array, "batch embed_dim"]:
        """Features of each caption, not normalised."""
        length = tokens.shape[1]
        if length > self.config.context_length:
            raise ValueError(
                f"tokens: expected at most {self.config.context_length} a row (context_length), got {length}; "
                "truncate with the model's tokenizer"
            )
        x = jnp.take(self.token_embedding[...], tokens, axis=0) + self.position_embedding[:length]
        x = self.blocks(x, causal_mask(length))
        # take_along_axis exports to ONNX with a dynamic batch; fancy indexing does not.
        pooled = jnp.take_along_axis(x, eot_position(tokens, self.config)[:, None, None], axis=1)[:, 0]
        return self.projection(self.final_norm(pooled))
