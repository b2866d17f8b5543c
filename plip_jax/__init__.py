"""plip_jax: train, evaluate and ship a pathology vision-language model in JAX.

The public names are imported on first use, so that ``import plip_jax`` costs nothing and imports no jax.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plip_jax.api import PLIP

__version__ = "0.1.0"
__all__ = ["PLIP", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "PLIP":
        from plip_jax.api import PLIP

        return PLIP
    raise AttributeError(f"module 'plip_jax' has no attribute {name!r}")
