"""What every encoder offers, whatever it is made of: `BaselineEncoder`, and the `Tower` of those that can be trained.

Nothing here knows the tasks: they see an encoder through `task_model.make_model`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from plip_jax.data.image import decode_image
from plip_jax.data.image_settings import ImageSettings, prepare_image

FEATURES_VERSION = 1
"""Part of every key: changed when the same weights and settings give other features (a mistake that was corrected)."""

EncodeText = Callable[[Sequence[str]], np.ndarray]
"""Texts -> float32 [N, D], not normalised."""


@dataclasses.dataclass
class Tower:
    """A network from images to features that can be trained further; what `evaluation.task.ImageTower` describes.

    Attributes:
        params: its weights, a nested dict of arrays; what is not trained is not among them.
        feature_dim: D.
        settings: the preprocessing of its images.
        function: features float32 [B, D] of weights and normalised pixels [B, image_size, image_size, 3]; jittable.
        image_size: side of the square input, pixels.
        mean: of the pixels it was trained on, RGB, in [0, 1].
        std: their standard deviation.
    """

    params: Any
    feature_dim: int
    settings: ImageSettings
    function: Callable[[Any, Any], Any]
    image_size: int = dataclasses.field(init=False)
    mean: tuple[float, float, float] = dataclasses.field(init=False)
    std: tuple[float, float, float] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.image_size, self.mean, self.std = self.settings.image_size, self.settings.mean, self.settings.std

    def pixels(self, image: bytes, name: str) -> np.ndarray:
        """An image file as uint8 [image_size, image_size, 3]; runs in a thread."""
        return prepare_image(decode_image(image, name=name), self.settings)

    def apply(self, params: Any, pixels: Any) -> Any:
        """Features float32 [B, D] of normalised pixels float32 [B, image_size, image_size, 3]; jittable."""
        return self.function(params, pixels)


class BaselineEncoder(Protocol):
    """A model of any kind, ready to encode.

    Attributes:
        name: short, for tables; made from the source unless another was given.
        source: what was asked for.
        key: hash of weights, preprocessing, tokenizer and compute dtype: equal keys, equal features, but for
            the rounding of other devices and batch sizes.
        normalized: whether its features are to be scaled to length one before use. They come as they are.
        computed: false where the features are read from files, and a cache of them would be a copy.
        logit_scale: exp of the learned one, what cosines are multiplied by; None where there is none.
        encode_text: texts -> float32 [N, D], not normalised; None for an image encoder.
        tower: gives the image network for training; None where there is none to train.
    """

    name: str
    source: str
    key: str
    normalized: bool
    computed: bool
    logit_scale: float | None

    @property
    def encode_text(self) -> EncodeText | None: ...  # noqa: D102 # the class says it
    @property
    def tower(self) -> Callable[[], Tower] | None: ...  # noqa: D102 # the same

    def encode_images(self, images: Iterable[bytes], /, *, names: Sequence[str]) -> np.ndarray:
        """Image files to features, float32 [N, D], not normalised, in order.

        Args:
            images: read once, as they are needed; not at all by an encoder that has them by name.
            names: of each image, its id.

        Raises:
            ImageError: an image that cannot be read; the message names it.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Which model this is, fit for JSON."""
        ...


@dataclasses.dataclass(frozen=True)
class OpenOptions:
    """How encoders compute; each takes what concerns it.

    Attributes:
        which: of a workdir's checkpoints, ``latest``, ``best`` or a step.
        weights: of a workdir, ``auto``, ``raw`` or ``ema``.
        tokenizer: of a single file of CLIP's weights, a folder or hub id; what is beside it, or CLIP's own, by default.
        activation: of a single file of CLIP's weights, ``quick_gelu`` or ``gelu``, where it does not say.
        compute_dtype: operands of the matrix products, ``float32`` or ``bfloat16``.
        batch_size: images or texts computed at once.
        mesh: the devices; all of them by default.
        progress: show bars.
    """

    which: Any = "latest"
    weights: Any = "auto"
    tokenizer: str | None = None
    activation: Any = None
    compute_dtype: str = "float32"
    batch_size: int = 64
    mesh: Any = None
    progress: bool = False


def hash_key(kind: str, **parts: Any) -> str:
    """SHA-256 (hex) of all that decides an encoder's features.

    Args:
        kind: of the encoder.
        parts: fit for JSON.
    """
    content = json.dumps({"kind": kind, "features_version": FEATURES_VERSION, **parts}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
