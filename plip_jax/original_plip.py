"""A class with the names of the original ``plip.plip.PLIP``, for programs written for it.

In such a program change one line: ``from plip_jax.original_plip import PLIP``, in place of ``from plip.plip import
PLIP``. New programs are better served by `plip_jax.PLIP`.

Follows PathologyFoundation/plip, ``plip.py`` (which follows FashionCLIP), in its names, arguments, returned forms and
defaults: features are *not* normalised, a bar is shown, answers are labels and indices. Two bugs of it are fixed:

1. ``_cosine_similarity`` normalised the keys only. What it returned was the cosine times the length of the row of the
   space, so that ``zero_shot_classification`` preferred the label, and a search the image, with the longer feature.
   Here both sides are normalised; answers change where lengths outweighed angles.
2. ``retrieval`` read ``self.image_vectors``, which nothing set: every call ended in an AttributeError. Here it is a
   public attribute, which the user sets: ``plip.image_vectors = plip.encode_images(images, batch_size=32)``.

Smaller differences: ``_nearest_neighbours`` takes lists, as it meant to (``type(x) == List`` is never true); of equal
similarities the lower index comes first, not the higher; paths and PIL images may be mixed in one list, where the first
one decided for all; ``model_hash`` is the hash of the weights, not Python's function ``hash``; ``model`` is a
`plip_jax.PLIP` and no PyTorch module, and there is no ``preprocess``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from plip_jax import api

# What `zero_shot_classification` and `retrieval` compute at once, as in the original.
_BATCH_SIZE = 8


class PLIP:
    """The original's class, on `plip_jax.PLIP`.

    Attributes:
        device: ``cuda``, ``tpu`` or ``cpu``; all devices of it are used.
        model_name: what was asked for.
        model: the `plip_jax.PLIP` that computes.
        model_hash: SHA-256 of the weights.
        image_vectors: float [N, D], what `retrieval` searches; None until it is set.
    """

    def __init__(self, model_name: str | Path, auth_token: str | bool | None = None):
        """Load a model.

        Args:
            model_name: a hub id such as ``vinid/plip``, or any source of `plip_jax.PLIP.from_pretrained`.
            auth_token: not used: a private model is read with the token of ``hf auth login``, or of the environment
                variable HF_TOKEN; without one the hub refuses, and the error says so.
        """
        self.device = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
        self.model_name = model_name
        self.model = api.PLIP.from_pretrained(model_name)
        self.model_hash = self.model.weights_hash
        self.image_vectors: np.ndarray | None = None

    def encode_images(self, images: Sequence[Any], batch_size: int) -> np.ndarray:
        """Encode paths or PIL images: float32 [images, embed_dim], not normalised."""
        return self.model.encode_images(images, batch_size=batch_size, normalize=False, progress=True)

    def encode_text(self, text: Sequence[str], batch_size: int) -> np.ndarray:
        """Encode texts: float32 [texts, embed_dim], not normalised."""
        return self.model.encode_text(text, batch_size=batch_size, normalize=False, progress=True)

    def zero_shot_classification(self, images: Sequence[Any], text_labels: Sequence[str], debug: bool = False) -> list:
        """The label nearest to each image; labels are used as they are, without a template.

        Args:
            images: paths or PIL images.
            text_labels: the prompts, such as ``an H&E image of tumor``.
            debug: print the cosines.
        """
        text_vectors = self.encode_text(text_labels, batch_size=_BATCH_SIZE)
        image_vectors = self.encode_images(images, batch_size=_BATCH_SIZE)
        cosines = self._cosine_similarity(image_vectors, text_vectors)
        if debug:
            print(cosines)
        return [text_labels[index] for index in cosines.argmax(axis=-1)]

    def retrieval(self, queries: Sequence[str], top_k: int = 10) -> np.ndarray:
        """Indices of the images nearest to each text, the best first: int64 [queries, top_k].

        Raises:
            ValueError: `image_vectors` is not set.
        """
        if self.image_vectors is None:
            raise ValueError(
                "retrieval: expected image_vectors to search, got none; set them first: "
                "plip.image_vectors = plip.encode_images(images, batch_size=32)"
            )
        text_vectors = self.encode_text(queries, batch_size=_BATCH_SIZE)
        return self._nearest_neighbours(k=top_k, key_vectors=text_vectors, space_vectors=self.image_vectors)

    def _cosine_similarity(self, key_vectors: Any, space_vectors: Any, normalize: bool = True) -> np.ndarray:
        """Cosine of every key [K, D] with every row of the space [N, D]: [K, N]; else the plain product."""
        keys, space = np.asarray(key_vectors), np.asarray(space_vectors)
        if normalize:
            keys = keys / np.linalg.norm(keys, axis=-1, keepdims=True)
            space = space / np.linalg.norm(space, axis=-1, keepdims=True)
        return keys @ space.T

    def _nearest_neighbours(
        self, k: int, key_vectors: Any, space_vectors: Any, normalize: bool = True, debug: bool = False
    ) -> np.ndarray:
        """Indices of the k rows of the space nearest to each key, the best first: int64 [K, min(k, N)]."""
        del debug  # of the original's signature, which does not use it either
        similarity = self._cosine_similarity(key_vectors, space_vectors, normalize=normalize)
        return np.argsort(-similarity, axis=-1, kind="stable")[:, :k]
