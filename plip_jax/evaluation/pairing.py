"""Which texts and images of a split are right answers for each other."""

import dataclasses
from collections.abc import Callable

import numpy as np

from plip_jax.evaluation import retrieval
from plip_jax.evaluation.examples import Examples


@dataclasses.dataclass(frozen=True)
class Pairing:
    """The texts of a split, and which images and texts are right for each other.

    Attributes:
        text_ids: one a text, none twice.
        texts: T of them.
        images_of_text: for each text the rows of its images.
        texts_of_image: for each image the rows of its texts.
    """

    text_ids: tuple[str, ...]
    texts: tuple[str, ...]
    images_of_text: list[np.ndarray]
    texts_of_image: list[np.ndarray]


def pair_by_id(examples: Examples) -> Pairing:
    """Each caption belongs to its own image only, even where another image has the same caption."""
    owners = [name for name, captions in zip(examples.ids, examples.captions, strict=True) for _ in captions]
    texts = tuple(text for captions in examples.captions for text in captions)
    text_ids = tuple(f"{name}#{n}" for name, own in zip(examples.ids, examples.captions, strict=True)
                     for n in range(len(own)))  # fmt: skip
    return Pairing(
        text_ids,
        texts,
        images_of_text=retrieval.targets_by_key(owners, examples.ids),
        texts_of_image=retrieval.targets_by_key(examples.ids, owners),
    )


def pair_by_caption(examples: Examples) -> Pairing:
    """Each distinct caption is one text, and every image that carries it is a right answer."""
    by_id = pair_by_id(examples)
    first: dict[str, int] = {}
    for row, text in enumerate(by_id.texts):
        first.setdefault(text, row)
    texts = tuple(first)
    row_of = {text: row for row, text in enumerate(texts)}
    texts_of_image = [np.unique([row_of[text] for text in own]).astype(np.int64) for own in examples.captions]
    images_of_text: list[list[int]] = [[] for _ in texts]
    for image, rows in enumerate(texts_of_image):
        for row in rows:
            images_of_text[row].append(image)
    return Pairing(
        tuple(by_id.text_ids[row] for row in first.values()),
        texts,
        images_of_text=[np.asarray(rows, np.int64) for rows in images_of_text],
        texts_of_image=texts_of_image,
    )


RELEVANCE: dict[str, Callable[[Examples], Pairing]] = {"id": pair_by_id, "caption": pair_by_caption}
