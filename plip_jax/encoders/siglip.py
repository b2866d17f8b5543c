"""Any Hugging Face SigLIP as an encoder; it runs in PyTorch (`plip_jax.convert.siglip`), on one host."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm

from plip_jax.batching import Batcher
from plip_jax.convert.hub import SourceError, hub_folder
from plip_jax.convert.siglip import SIGLIP_FILES, SIGLIP_WEIGHTS, Siglip
from plip_jax.data.image_settings import prepare_image
from plip_jax.encoders.baseline import OpenOptions, hash_key


class SiglipEncoder:
    """A SigLIP; the attributes are those of `baseline.BaselineEncoder`."""

    normalized = True
    computed = True
    tower = None

    def __init__(self, source: str, options: OpenOptions, *, name: str = ""):
        """Load the model; see `Siglip` for the errors."""
        if jax.process_count() > 1:
            raise SourceError(f"{source}: SigLIP runs in PyTorch on one host, got {jax.process_count()} processes")
        self.name = name or Path(source).name
        self.source = source
        self._siglip = Siglip(hub_folder(source, SIGLIP_FILES, SIGLIP_WEIGHTS), options.compute_dtype)
        self.logit_scale: float | None = self._siglip.logit_scale
        self._description = {
            "kind": "siglip",
            "source": source,
            "weights_hash": self._siglip.weights_hash,
            "tokenizer_hash": self._siglip.tokenizer_hash,
            "network": self._siglip.config,
            "preprocessing": self._siglip.settings.to_dict(),
            "context_length": self._siglip.context_length,
            "compute_dtype": options.compute_dtype,
            "normalized": self.normalized,
        }
        parts = {part: value for part, value in self._description.items() if part not in ("kind", "source")}
        self.key = hash_key("siglip", **parts)
        self._batcher = Batcher(options.batch_size, options.mesh)
        self._progress = options.progress

    def encode_images(self, images: Iterable[bytes], /, *, names: Sequence[str]) -> np.ndarray:
        """See `baseline.BaselineEncoder.encode_images`."""
        settings = self._siglip.settings
        batches = self._batcher.image_batches(
            tqdm.tqdm(images, desc="images", unit="image", disable=not self._progress),
            names,
            to_pixels=lambda image: prepare_image(image, settings),
            side=settings.image_size,
        )
        return self._joined([self._siglip.image_features(share[:count]) for count, share in batches])

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Texts to features, float32 [N, D], not normalised, in order."""
        size = self._batcher.batch_size
        parts = [texts[start : start + size] for start in range(0, len(texts), size)]
        return self._joined([self._siglip.text_features(part) for part in parts])

    def describe(self) -> dict[str, Any]:
        """Which model this is, fit for JSON."""
        return dict(self._description)

    def _joined(self, features: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.zeros((0, self._siglip.feature_dim), np.float32), *features])
