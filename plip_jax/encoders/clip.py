"""Any CLIP that `load_model` reads, as an encoder: a workdir, a Hugging Face folder, a hub id."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from plip_jax.api import PLIP
from plip_jax.convert.load import LoadedModel, load_model, settings_of
from plip_jax.data.image_settings import ImageSettings
from plip_jax.encoders.baseline import OpenOptions, Tower, hash_key
from plip_jax.model import clip


class ClipEncoder:
    """A CLIP; the attributes are those of `baseline.BaselineEncoder`.

    Attributes:
        loaded: the model without its parameters.
    """

    normalized = True
    computed = True

    def __init__(self, model: LoadedModel, options: OpenOptions, *, name: str = ""):
        self.name = name or Path(model.source).name
        self.source = model.source
        self.key = hash_key(
            "clip",
            weights=model.weights_hash,
            network=model.config.to_dict(),
            preprocessing=model.preprocessing.to_dict(),
            tokenizer=model.tokenizer.fingerprint,
            compute_dtype=options.compute_dtype,
        )
        self.loaded = dataclasses.replace(model, params={})
        self._plip = PLIP(model, compute_dtype=options.compute_dtype, batch_size=options.batch_size, mesh=options.mesh)
        # As they were loaded: those of `PLIP` may be rounded to the compute dtype, and no tower learns from such.
        self._vision = model.params["vision"]
        self._compute_dtype = options.compute_dtype
        self._progress = options.progress
        self.logit_scale: float | None = float(np.exp(self._plip.logit_scale))

    @classmethod
    def open(cls, source: str, options: OpenOptions, *, name: str = "") -> "ClipEncoder":
        """Load a model; see `load_model` for the errors."""
        told = settings_of(source, tokenizer=options.tokenizer, activation=options.activation)
        return cls(load_model(source, which=options.which, weights=options.weights, **told), options, name=name)

    def encode_images(self, images: Iterable[bytes], /, *, names: Sequence[str]) -> np.ndarray:
        """See `baseline.BaselineEncoder.encode_images`."""
        encoder = self._plip.encoder
        return encoder.encode_images(self._plip.params, images, names=names, normalize=False, progress=self._progress)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Texts to features, float32 [N, D], not normalised, in order."""
        return self._plip.encode_text(texts, normalize=False)

    @property
    def tower(self) -> Callable[[], Tower]:
        """The image tower with its projection, for training."""
        return self._tower

    def _tower(self) -> Tower:
        preprocessing = self.loaded.preprocessing
        model = clip.build(self.loaded.config, compute_dtype=self._compute_dtype)
        return Tower(
            params={"vision": jax.device_put(self._vision)},
            feature_dim=self.loaded.config.embed_dim,
            settings=ImageSettings(preprocessing.image_size, preprocessing.mean, preprocessing.std),
            function=lambda params, pixels: model.encode_image(params, pixels),
        )

    def describe(self) -> dict[str, Any]:
        """Which model this is, fit for JSON."""
        return {
            "kind": "clip",
            **self.loaded.describe(),
            "network": self.loaded.config.to_dict(),
            "preprocessing": self.loaded.preprocessing.to_dict(),
            "compute_dtype": self._compute_dtype,
            "normalized": self.normalized,
        }
