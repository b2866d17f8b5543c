"""Which texts and images of a split are right answers for each other."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from plip_jax.evaluation import retrieval
from plip_jax.evaluation.examples import Examples


@dataclasses.dataclass(frozen=True)
class Pairing:
    """The texts of a split, and which images and texts are right for each other.

    Attributes:
        text_ids: one a text, none twice.
        texts: T of them.
        images_of_text: for each text the rows of its images, rising, at least one.
        texts_of_image: for each image the rows of its texts, rising.
    """

    text_ids: tuple[str, ...]
    texts: tuple[str, ...]
    images_of_text: list[np.ndarray]
    texts_of_image: list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Caption:
    """A caption that counts.

    Attributes:
        id: the image's id, ``#`` and the caption's number among all captions of the image.
        image: row of its image.
        text: what it says.
    """

    id: str
    image: int
    text: str


def usable_captions(examples: Examples) -> tuple[list[Caption], dict[str, int]]:
    """The captions of a split without blank ones and without those that their own image already has.

    Returns:
        The captions in order, and how many were left out as ``blank`` and as ``repeated_within_image``.
    """
    kept: list[Caption] = []
    left_out = {"blank": 0, "repeated_within_image": 0}
    for image, (name, captions) in enumerate(zip(examples.ids, examples.captions, strict=True)):
        seen: set[str] = set()
        for number, text in enumerate(captions):
            if not text.strip():
                left_out["blank"] += 1
            elif text in seen:
                left_out["repeated_within_image"] += 1
            else:
                seen.add(text)
                kept.append(Caption(f"{name}#{number}", image, text))
    return kept, left_out


def pair_by_id(examples: Examples) -> Pairing:
    """Each caption belongs to its own image only, even where another image has the same caption."""
    return _pair(examples, range(len(examples.ids)), per_image=True)


def pair_by_caption(examples: Examples) -> Pairing:
    """Each distinct caption is one text, and every image that carries it is a right answer."""
    captions, _ = usable_captions(examples)
    first: dict[str, Caption] = {}
    for caption in captions:
        first.setdefault(caption.text, caption)
    row_of = {text: row for row, text in enumerate(first)}
    pairs = np.asarray([(row_of[caption.text], caption.image) for caption in captions], np.int64).reshape(-1, 2)
    return Pairing(
        tuple(caption.id for caption in first.values()),
        tuple(first),
        images_of_text=_collect(pairs[:, 0], pairs[:, 1], len(first)),
        texts_of_image=_collect(pairs[:, 1], pairs[:, 0], len(examples.ids)),
    )


def pair_by_figure(examples: Examples) -> Pairing:
    """Each distinct caption of a figure (a group) is one text, and every image of the figure is a right answer.

    An image without a group is a figure of its own. Captions that two figures share are two texts.
    """
    number: dict[tuple[str, str], int] = {}
    groups = examples.group_ids or ("",) * len(examples.ids)
    keys = (("group", group) if group else ("id", name) for name, group in zip(examples.ids, groups, strict=True))
    return _pair(examples, [number.setdefault(key, len(number)) for key in keys], per_image=False)


def _pair(examples: Examples, set_of_image: Sequence[int], *, per_image: bool) -> Pairing:
    """Pair the texts of each set of images with its images; equal texts of a set are one unless each image's count."""
    captions, _ = usable_captions(examples)
    if not per_image:
        first: dict[tuple[int, str], Caption] = {}
        for caption in captions:
            first.setdefault((set_of_image[caption.image], caption.text), caption)
        captions = list(first.values())
    set_of_text = [str(set_of_image[caption.image]) for caption in captions]
    names = [str(number) for number in set_of_image]
    return Pairing(
        tuple(caption.id for caption in captions),
        tuple(caption.text for caption in captions),
        images_of_text=retrieval.targets_by_key(set_of_text, names),
        texts_of_image=retrieval.targets_by_key(names, set_of_text),
    )


def _collect(keys: np.ndarray, values: np.ndarray, count: int) -> list[np.ndarray]:
    """The values of each key in [0, count), rising."""
    order = np.lexsort((values, keys))
    ends = np.cumsum(np.bincount(keys, minlength=count))
    return np.split(values[order], ends[:-1])


RELEVANCE: dict[str, Callable[[Examples], Pairing]] = {
    "id": pair_by_id,
    "caption": pair_by_caption,
    "figure": pair_by_figure,
}
"""``relevance`` in a config -> who belongs to whom."""
