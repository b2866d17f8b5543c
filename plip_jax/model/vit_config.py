"""Sizes of a plain Vision Transformer."""

import dataclasses

from plip_jax.model.presets import Activation, VisionConfig


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """A Vision Transformer (Dosovitskiy et al. 2020), as Hugging Face's ``ViTModel`` has it.

    Attributes:
        vision: sizes.
        activation: ``gelu`` is the exact erf form.
        norm_eps: added to the variance in every layer norm.
    """

    vision: VisionConfig
    activation: Activation = "gelu"
    norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        if self.activation not in ("quick_gelu", "gelu") or not self.norm_eps > 0:
            raise ValueError(
                f"expected activation gelu or quick_gelu and norm_eps > 0, got {self.activation!r} and {self.norm_eps}"
            )
