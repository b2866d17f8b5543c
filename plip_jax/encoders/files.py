"""Embeddings that another program wrote, as an encoder; the layout is `plip_jax.convert.embedding_files`'s."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plip_jax.convert.embedding_files import read_embedding_files
from plip_jax.encoders.baseline import EncodeText, OpenOptions, hash_key


class FilesEncoder:
    """A table of embeddings; the attributes are those of `baseline.BaselineEncoder`."""

    computed = False
    tower: Callable[[], Any] | None = None

    def __init__(self, source: str, options: OpenOptions, *, name: str = ""):
        """Read the files; see `read_embedding_files` for the errors."""
        del options  # nothing is computed
        self._files = read_embedding_files(source)
        self.name = name or self._files.name or Path(source).stem
        self.source = source
        self.normalized = self._files.normalized
        self.logit_scale = self._files.logit_scale
        hashes = [table.hash for table in (self._files.images, self._files.texts) if table is not None]
        self.key = hash_key("files", tables=hashes)
        self._description = {
            "kind": "files",
            "source": source,
            "weights_hash": self.key,  # the tables stand for the weights
            "images": len(self._files.images.rows),
            "texts": 0 if self._files.texts is None else len(self._files.texts.rows),
            "feature_dim": int(self._files.images.features.shape[1]),
            "logit_scale": self.logit_scale,
            "normalized": self.normalized,
        }

    def encode_images(self, images: Iterable[bytes], /, *, names: Sequence[str]) -> np.ndarray:
        """The rows of these ids, float32 [N, D]; no image is read.

        Raises:
            EmbeddingFilesError: ids that are not there.
        """
        del images
        return self._files.images.take(names, what="image ids")

    @property
    def encode_text(self) -> EncodeText | None:
        """Looks texts up; None where the files hold none."""
        texts = self._files.texts
        return None if texts is None else lambda wanted: texts.take(wanted, what="texts")

    def describe(self) -> dict[str, Any]:
        """Which files these are, fit for JSON."""
        return dict(self._description)
