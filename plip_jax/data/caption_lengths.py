"""How long a run's captions are: what the number of packed rows is chosen by, before the first batch is made."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from plip_jax.data.packing import text_lengths
from plip_jax.data.records import RecordError, RecordFolder
from plip_jax.data.sampling import Draw, Mixture

SAMPLED_CAPTIONS = 1024
"""Captions that are tokenized before the first batch, at most."""
_READERS = 8  # on a network disk the time is in waiting


class TokenizeFn(Protocol):
    """Texts to int32 [N, context_length], each closed by the id that the text tower pools at."""

    eot_token_id: int

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Encode."""
        ...


def sample_caption_lengths(
    folders: Sequence[RecordFolder], mixture: Mixture, tokenizer: TokenizeFn
) -> tuple[np.ndarray, int]:
    """Live tokens of captions at evenly spaced places of epoch 0.

    A pure function of data and configuration: every process, and a run that resumes, must choose the same shapes.

    Returns:
        int32, at most `SAMPLED_CAPTIONS` of them, fewer where the epoch has fewer or records cannot be read (the batch
        that meets one says so); and the length of a tokenized row.
    """
    count = min(SAMPLED_CAPTIONS, mixture.examples_per_epoch)
    draws = [mixture.draw(0, place * mixture.examples_per_epoch // count) for place in range(count)]

    def read_caption(draw: Draw) -> str | None:
        try:
            captions = folders[draw.source][draw.record].captions
        except RecordError:
            return None
        # Which caption the epoch draws does not matter: any even choice samples the lengths.
        return captions[draw.record % len(captions)] if captions else None

    with ThreadPoolExecutor(_READERS) as pool:
        captions = [caption for caption in pool.map(read_caption, draws) if caption is not None]
    tokens = tokenizer(captions or [""])
    return text_lengths(tokens, tokenizer.eot_token_id)[: len(captions)], tokens.shape[1]
