"""Sizes of CLIP: what a network is made of, and the one table of named sizes.

Owns the configuration dataclasses and ``PRESETS``; builds nothing. The four published sizes are those of
OpenAI's CLIP (Radford et al. 2021, table 19 and the released checkpoints); the two small ones are ours.
"""

import dataclasses
import difflib
import math
from typing import Any, Literal

Activation = Literal["quick_gelu", "gelu"]
"""Of the perceptrons: OpenAI's ``x * sigmoid(1.702 x)``, or the exact GELU (not its tanh form)."""
EotPooling = Literal["first_eot", "argmax"]
"""Where the text tower pools: at the first ``eot_token_id``, or at the first largest id; see `TextConfig`."""


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The image tower: a Vision Transformer with a class token.

    Attributes:
        image_size: side of the square input, pixels.
        patch_size: side of a square patch, pixels; divides ``image_size``.
        width: features of a token.
        depth: number of blocks.
        num_heads: attention heads; divides ``width``.
        mlp_dim: hidden features of the two-layer perceptron.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int

    def __post_init__(self) -> None:
        _check_positive(self)
        _check_divides("vision.patch_size", self.patch_size, "vision.image_size", self.image_size)
        _check_divides("vision.num_heads", self.num_heads, "vision.width", self.width)

    @property
    def num_tokens(self) -> int:
        """Patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The text tower: a causal Transformer pooled at the end-of-text token.

    Attributes:
        context_length: tokens of a padded caption.
        vocab_size: rows of the token embedding.
        width: features of a token.
        depth: number of blocks.
        num_heads: attention heads; divides ``width``.
        mlp_dim: hidden features of the two-layer perceptron.
        eot_token_id: the id of the end-of-text token; read only by ``first_eot`` pooling.
        eot_pooling: ``first_eot`` pools at the first ``eot_token_id`` (HF with eos_token_id 49407);
            ``argmax`` pools at the first largest id (OpenAI, open_clip, HF with eos_token_id 2).
    """

    context_length: int
    vocab_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    eot_token_id: int
    eot_pooling: EotPooling = "first_eot"

    def __post_init__(self) -> None:
        _check_positive(self)
        _check_divides("text.num_heads", self.num_heads, "text.width", self.width)
        _check_choice("text.eot_pooling", self.eot_pooling, ("first_eot", "argmax"))
        if self.eot_token_id >= self.vocab_size:
            raise ValueError(
                f"text.eot_token_id: expected an id below vocab_size {self.vocab_size}, got {self.eot_token_id}"
            )


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Both towers and what they share.

    Attributes:
        embed_dim: features of the joint space.
        vision: the image tower.
        text: the text tower.
        activation: ``quick_gelu`` is x * sigmoid(1.702 x) (OpenAI), ``gelu`` the exact erf form.
        norm_eps: added to the variance in every layer norm.
    """

    embed_dim: int
    vision: VisionConfig
    text: TextConfig
    activation: Activation = "quick_gelu"
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        _check_choice("activation", self.activation, ("quick_gelu", "gelu"))
        if self.embed_dim < 1 or not 0 < self.norm_eps < math.inf:
            raise ValueError(f"expected embed_dim >= 1 and norm_eps > 0, got {self.embed_dim} and {self.norm_eps}")

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict, fit for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CLIPConfig":
        """Inverse of `to_dict`; raises TypeError on a missing or unknown field."""
        values = dict(values)
        return cls(
            vision=VisionConfig(**values.pop("vision")),
            text=TextConfig(**values.pop("text")),
            **values,
        )


def _check_positive(config: Any) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, int) and value < (0 if field.name == "eot_token_id" else 1):
            raise ValueError(f"{type(config).__name__}.{field.name}: expected a positive integer, got {value}")


def _check_divides(name: str, divisor: int, whole_name: str, whole: int) -> None:
    if whole % divisor:
        raise ValueError(f"{name}: expected a divisor of {whole_name} = {whole}, got {divisor}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


# OpenAI's byte-pair vocabulary: 49,408 entries, the last two <|startoftext|> and <|endoftext|>.
_OPENAI_VOCAB_SIZE = 49_408
_OPENAI_EOT = 49_407


def _openai(
    embed_dim: int, image_size: int, patch_size: int, vision_width: int, vision_depth: int, text_width: int
) -> CLIPConfig:
    """Heads are width / 64 and the perceptron four times the width in every published size."""
    return CLIPConfig(
        embed_dim=embed_dim,
        vision=VisionConfig(
            image_size=image_size,
            patch_size=patch_size,
            width=vision_width,
            depth=vision_depth,
            num_heads=vision_width // 64,
            mlp_dim=4 * vision_width,
        ),
        text=TextConfig(
            context_length=77,
            vocab_size=_OPENAI_VOCAB_SIZE,
            width=text_width,
            depth=12,
            num_heads=text_width // 64,
            mlp_dim=4 * text_width,
            eot_token_id=_OPENAI_EOT,
        ),
    )


PRESETS: dict[str, CLIPConfig] = {
    "ViT-B-32": _openai(512, 224, 32, 768, 12, 512),
    "ViT-B-16": _openai(512, 224, 16, 768, 12, 512),
    "ViT-L-14": _openai(768, 224, 14, 1024, 24, 768),
    "ViT-L-14-336": _openai(768, 336, 14, 1024, 24, 768),
    # Ours: what two CPU cores train from scratch in about two minutes (configs/demo.py).
    "demo": CLIPConfig(
        embed_dim=128,
        vision=VisionConfig(image_size=64, patch_size=8, width=128, depth=4, num_heads=4, mlp_dim=512),
        text=TextConfig(
            context_length=32, vocab_size=1024, width=128, depth=2, num_heads=4, mlp_dim=512, eot_token_id=1023
        ),
    ),
    # Ours: the smallest network with every part in it, for tests.
    "tiny": CLIPConfig(
        embed_dim=16,
        vision=VisionConfig(image_size=32, patch_size=16, width=32, depth=2, num_heads=2, mlp_dim=64),
        text=TextConfig(
            context_length=16, vocab_size=600, width=32, depth=2, num_heads=2, mlp_dim=64, eot_token_id=599
        ),
    ),
}
"""Name -> sizes. Another size is a line here.

The numbers of OpenAI's are the features of the joint space, the side of the image, the side of a patch, the image
tower's width and depth, and the text tower's width.
"""


def get_preset(name: str) -> CLIPConfig:
    """Look a preset up by name; a ValueError lists the known ones."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"unknown model preset {name!r}{hint}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
