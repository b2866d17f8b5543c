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
        self._check_length(length)
        x = jnp.take(self.token_embedding[...], tokens, axis=0) + self.position_embedding[:length]
        x = self.blocks(x, causal_mask(length))
        # take_along_axis exports to ONNX with a dynamic batch; fancy indexing does not.
        pooled = jnp.take_along_axis(x, eot_position(tokens, self.config)[:, None, None], axis=1)[:, 0]
        return self.projection(self.final_norm(pooled))

    def encode_packed(
        self,
        tokens: Int[Array, "parts rows length"],
        segments: Int[Array, "parts rows length"],
        positions: Int[Array, "parts rows length"],
        eot: Int[Array, "parts captions"],
    ) -> Float[Array, "parts_x_captions embed_dim"]:
        """Features of captions that share rows, part after part, not normalised.

        Args:
            tokens: captions end to end.
            segments: the number of a token's caption in its row; tokens see tokens of their own number only.
            positions: places in the caption, from 0.
            eot: places of the pooled tokens in the part's flattened rows * length.
        """
        parts, rows, length = tokens.shape
        self._check_length(length)
        x = jnp.take(self.token_embedding[...], tokens, axis=0)
        x = x + jnp.take(self.position_embedding[...], positions, axis=0)
        segments = segments.reshape(parts * rows, 1, length)
        # Padding is a segment too: it sees itself, so that no softmax is over nothing.
        mask = causal_mask(length) & (segments[..., :, None] == segments[..., None, :])
        x = self.blocks(x.reshape(parts * rows, length, -1), mask)
        # Part by part: a gather over all rows at once would fetch rows from other devices.
        pooled = jnp.take_along_axis(x.reshape(parts, rows * length, -1), eot[:, :, None], axis=1)
        # Norm and projection are of single tokens, so only those that count pass them.
        return self.projection(self.final_norm(pooled.reshape(eot.size, -1)))

    def _check_length(self, length: int) -> None:
        if length > self.config.context_length:
            raise ValueError(
                f"tokens: expected at most {self.config.context_length} a row (context_length), got {length}; "
                "truncate with the model's tokenizer"
            )
