"""What is close in other ways than the duplicates that were dropped: captions and embeddings. It drops nothing."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.curation.pair import Pair
from data_prep.grouping.duplicates import count_equal_captions, report_close_embeddings
from data_prep.images.embeddings import load_embeddings
from data_prep.images.gates import Gate
from data_prep.text.clean_text import caption_key


def report_close_pairs(
    pairs: Callable[[], Iterable[Pair]], vectors: Path, gates: tuple[Gate, ...], threshold: float
) -> dict[str, Any]:
    """Count equal captions, and images whose embeddings are close.

    Args:
        pairs: Reads the kept pairs anew.
        vectors: Folder of the embeddings that the stage `gate` made.
        gates: Of the run: they say which model the embeddings are of.
        threshold: Least cosine; 1 or more leaves the embeddings out, which take time that grows with their square.
    """
    report: dict[str, Any] = {"captions": count_equal_captions(caption_key(pair.caption) for pair in pairs())}
    if threshold >= 1 or not gates:
        return report
    known: dict[str, np.ndarray] = {}
    for path in sorted(vectors.glob("part-*.npy")):
        known |= load_embeddings(path.with_suffix(""), gates[0].fingerprint)
    of_image = {pair.clean_digest: pair for pair in pairs() if pair.clean_digest in known}
    features = np.stack([known[digest] for digest in of_image]).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    ids = [pair.id for pair in of_image.values()]
    groups = [pair.duplicate_group for pair in of_image.values()]
    return report | {"embeddings": report_close_embeddings(ids, features, threshold, groups)}
