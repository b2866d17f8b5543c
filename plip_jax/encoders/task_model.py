"""The glue between encoders and tasks: `make_model`."""

from collections.abc import Sequence

import jax
import numpy as np

from plip_jax.encoders.baseline import BaselineEncoder
from plip_jax.evaluation.embedding_cache import EmbeddingCache, compute_embeddings
from plip_jax.evaluation.embeddings import Embeddings
from plip_jax.evaluation.examples import Examples
from plip_jax.evaluation.task import Model


def make_model(encoder: BaselineEncoder, cache: EmbeddingCache | None = None, *, name: str = "") -> Model:
    """What tasks may ask of an encoder. Each split is embedded once for all tasks of this model.

    Args:
        encoder: of any kind.
        cache: where embeddings are kept between runs; None for nowhere. Those that are read from files are not
            kept, nor those of a run on several hosts.
        name: of the model among those compared; the encoder's by default.
    """
    # Encoding needs all hosts at once: where one found an entry and another did not, they would wait for ever.
    kept = cache if encoder.computed and jax.process_count() == 1 else None
    # By identity, with the examples held so that no other can take their place.
    known: dict[int, tuple[Examples, Embeddings]] = {}

    def embed(examples: Examples) -> Embeddings:
        if examples.origin is not None:
            whole, rows = examples.origin
            return embed(whole).take(rows)
        if id(examples) not in known:
            if kept is None:
                embeddings = compute_embeddings(examples, encoder.normalized, encoder.encode_images)
            else:
                embeddings = kept.get_or_compute(examples, encoder.key, encoder.normalized, encoder.encode_images)
            known[id(examples)] = examples, embeddings
        return known[id(examples)][1]

    compute_text = encoder.encode_text

    def encode_text(texts: Sequence[str]) -> np.ndarray:
        assert compute_text is not None  # else this function is not given away
        return compute_text(texts) if kept is None else kept.get_or_compute_text(texts, encoder.key, compute_text)

    return Model(
        name=name or encoder.name,
        embed=embed,
        encode_text=None if compute_text is None else encode_text,
        logit_scale=encoder.logit_scale,
        tower=encoder.tower,
    )
