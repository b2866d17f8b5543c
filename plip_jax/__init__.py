"""plip_jax: train, evaluate and ship a pathology vision-language model in JAX.

The public names are imported on first use, so that ``import plip_jax`` costs nothing and imports no jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plip_jax.answers import DamagedImagesWarning, Hit, Prediction
    from plip_jax.api import PLIP
    from plip_jax.data.examples import open_examples
    from plip_jax.data.image import ImageError
    from plip_jax.embedding_store import open_embeddings

__version__ = "0.1.0"
__all__ = [
    "PLIP",
    "DamagedImagesWarning",
    "Hit",
    "ImageError",
    "Prediction",
    "__version__",
    "open_embeddings",
    "open_examples",
]

# Public name -> the module that has it.
_HOMES = {
    "PLIP": "plip_jax.api",
    "DamagedImagesWarning": "plip_jax.answers",
    "Hit": "plip_jax.answers",
    "Prediction": "plip_jax.answers",
    "ImageError": "plip_jax.data.image",
    "open_embeddings": "plip_jax.embedding_store",
    "open_examples": "plip_jax.data.examples",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'plip_jax' has no attribute {name!r}")
