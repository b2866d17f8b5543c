"""Images or texts to PLIP's features as steps of a scikit-learn pipeline.

Examples:
    >>> probe = make_pipeline(PLIPImageTransformer("vinid/plip"), LogisticRegression(max_iter=1000))
    >>> probe.fit(paths, labels).predict(other_paths)

Owns what scikit-learn asks of a transformer; the features are `plip_jax.api`'s. A transformer holds the source of its
model and no weights, so that it can be cloned, pickled and searched over. The last model loaded stays in memory for as
long as the process runs, shared by all transformers of its settings: a search over many settings of the classifier
loads and compiles it once (and, with the pipeline's ``memory=FOLDER``, encodes each training fold once). A source whose
files have changed since is read anew after `load_plip.cache_clear()`, or in a new process.

A pickle, and so the key of that ``memory``, has the hash of the model beside its source: what was encoded by other
weights is not taken from the cache, and to pickle a transformer loads its model. Of images given as paths the key has
the paths alone: empty the folder when files of the same names have changed.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

from plip_jax.api import PLIP


@functools.lru_cache(maxsize=1)
def load_plip(source: str | Path, which: Any, weights: Any, compute_dtype: str) -> PLIP:
    """`PLIP.from_pretrained`, once for the same arguments in a row."""
    return PLIP.from_pretrained(source, which=which, weights=weights, compute_dtype=compute_dtype)


class _PLIPTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """What transformers of images and texts share."""

    def __init__(
        self,
        source: str | Path | PLIP = "vinid/plip",
        *,
        which: str | int = "latest",
        weights: str = "auto",
        compute_dtype: str = "float32",
        batch_size: int = 32,
        normalize: bool = True,
        progress: bool = False,
    ):
        self.source = source
        self.which = which
        self.weights = weights
        self.compute_dtype = compute_dtype
        self.batch_size = batch_size
        self.normalize = normalize
        self.progress = progress

    def fit(self, X: Any, y: Any = None) -> Self:
        """Do nothing: the model is trained."""
        return self

    def _encoded(self, encode: Callable[..., np.ndarray], items: Iterable[Any]) -> np.ndarray:
        if isinstance(items, str | bytes | Path):
            raise ValueError(f"X: expected a list, or a one-dimensional array, got one {type(items).__name__}")
        # A list: an array of paths is one image to the encoder, where an array of pixels is many.
        return encode(list(items), batch_size=self.batch_size, normalize=self.normalize, progress=self.progress)

    @property
    def _model(self) -> PLIP:
        if isinstance(self.source, PLIP):
            return self.source
        return load_plip(self.source, self.which, self.weights, self.compute_dtype)

    @property
    def _n_features_out(self) -> int:
        """Read by get_feature_names_out; loads the model."""
        return self._model.encoder.config.embed_dim

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_clone__(self) -> Self:
        # The default copies every argument deeply, and a `PLIP` with it: its weights again, and no compiled towers.
        return type(self)(**self.get_params(deep=False))

    def __getstate__(self) -> Any:
        if isinstance(self.source, PLIP):
            raise TypeError(
                f"{type(self).__name__}: a loaded model cannot be pickled, as n_jobs and a pipeline's memory= need it; "
                f"pass its source ({self.source.source!r}) instead of the model, and every process loads it itself"
            )
        # Not read again: it is there for joblib, which makes the keys of its caches of pickles.
        state: Any = super().__getstate__()
        return {**state, "_made_by": _made_by(self._model)}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.no_validation = True  # X is no array of numbers
        tags.input_tags.two_d_array = False
        return tags


def _made_by(model: PLIP) -> str:
    """SHA-256 (hex) of what decides a model's features."""
    encoder = model.encoder
    parts = [
        model.weights_hash,
        encoder.config.to_dict(),
        encoder.preprocessing.to_dict(),
        encoder.tokenizer.fingerprint,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class PLIPImageTransformer(_PLIPTransformer):
    """Images to features.

    Args:
        source: a hub id, a folder or a training workdir, see `PLIP.from_pretrained`. Or a loaded `PLIP`, which can be
            cloned and not pickled (so ``n_jobs=1`` only, and no ``memory`` of the pipeline); `which`, `weights` and
            `compute_dtype` are its own then.
        which: of a workdir's checkpoints, ``latest``, ``best`` or a step.
        weights: of a workdir, ``raw``, ``ema`` or ``auto``.
        compute_dtype: ``float32``, or ``bfloat16`` for matrix units.
        batch_size: images computed at once.
        normalize: make every row of length one.
        progress: show a bar.
    """

    def transform(self, X: Iterable[Any]) -> np.ndarray:
        """Encode images: float32 [images, embed_dim].

        Args:
            X: paths, PIL images, bytes of image files, or uint8 [height, width, 3]; a list, a one-dimensional array
                (of a table one column, ``table["path"]``), or uint8 [images, height, width, 3].

        Raises:
            ImageError: an image cannot be read; the message names it.
        """
        return self._encoded(self._model.encode_images, X)


class PLIPTextTransformer(_PLIPTransformer):
    """Texts to features; for its arguments see `PLIPImageTransformer`."""

    def transform(self, X: Iterable[str]) -> np.ndarray:
        """Encode texts, a list or a one-dimensional array of strings: float32 [texts, embed_dim]."""
        return self._encoded(self._model.encode_text, X)
