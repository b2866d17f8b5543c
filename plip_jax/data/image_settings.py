"""Preprocessing of other networks than CLIP: which filter resizes, and whether the image is cut or stretched.

Owns `ImageSettings`, its reading from a Hugging Face ``preprocessor_config.json`` and the pixels it makes. CLIP's own
transform, short side by bicubic and centre crop, stays in `image`, and is what equal settings here give to the bit.

Source: ``image_processing_vit.py`` and ``image_processing_siglip.py`` of transformers.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from plip_jax.data.image import ImageError, Preprocessing, preprocess_image, resized_size, to_rgb

FILTERS = {filter_.name.lower(): filter_ for filter_ in Image.Resampling}
"""Name -> Pillow's filter, whose number is what Hugging Face's files call ``resample``."""
FITS = ("crop", "stretch")
"""See `ImageSettings`."""

_MAX_RESIZED_PIXELS = 2**26  # as in `image`: a strip of 1 x 20,000 pixels is not made whole


class ImageSettingsError(ValueError):
    """Image settings that cannot be followed; the message names the field."""


@dataclasses.dataclass(frozen=True)
class ImageSettings(Preprocessing):
    """What stands between a decoded image and an image network.

    Attributes:
        resample: key of `FILTERS`.
        fit: ``crop``, the short side resized and the centre square kept; ``stretch``, both sides resized to the square.
    """

    resample: str = "bicubic"
    fit: str = "crop"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resample not in FILTERS:
            raise ImageSettingsError(f"resample: expected one of {', '.join(FILTERS)}, got {self.resample!r}")
        if self.fit not in FITS:
            raise ImageSettingsError(f"fit: expected one of {', '.join(FITS)}, got {self.fit!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, fit for JSON."""
        return {**super().to_dict(), "resample": self.resample, "fit": self.fit}


def image_settings_from_hf(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> ImageSettings:
    """Read ``preprocessor_config.json``.

    Args:
        values: the file's content.
        defaults: what the processor takes for absent ``size``, ``resample``, ``image_mean`` and ``image_std``.

    Raises:
        ImageSettingsError: a step is off that the network needs, or a value that cannot be followed.
    """
    given = {**defaults, **{name: value for name, value in values.items() if value is not None}}
    for field in ("do_resize", "do_rescale", "do_normalize"):
        if given.get(field, True) is not True:
            raise ImageSettingsError(f"expected {field} true, got {given[field]!r}")
    factor = given.get("rescale_factor", 1 / 255)
    if not isinstance(factor, float) or abs(factor * 255 - 1) > 1e-6:
        raise ImageSettingsError(f"rescale_factor: expected 1/255, got {factor!r}")
    side, fit = _size(given["size"], given.get("crop_size"), given.get("do_center_crop", False))
    names = {filter_.value: name for name, filter_ in FILTERS.items()}
    if given["resample"] not in names:
        raise ImageSettingsError(f"resample: expected one of {sorted(names)}, got {given['resample']!r}")
    mean, std = (_three(field, given[field]) for field in ("image_mean", "image_std"))
    try:
        return ImageSettings(side, mean, std, names[given["resample"]], fit)
    except ValueError as error:
        raise ImageSettingsError(str(error)) from None


def prepare_image(image: Image.Image, settings: ImageSettings) -> np.ndarray:
    """Resize as the settings say: uint8 [image_size, image_size, 3], not yet normalised; a writable copy.

    Raises:
        ImageError: an image so long that its resized form would not fit in memory.
    """
    if settings.fit == "crop" and settings.resample == "bicubic":
        return preprocess_image(image, settings)
    if image.mode != "RGB":
        image = to_rgb(image)
    side, filter_ = settings.image_size, FILTERS[settings.resample]
    if settings.fit == "stretch":
        return np.array(image.resize((side, side), filter_))
    width, height = resized_size(*image.size, side)
    if width * height > _MAX_RESIZED_PIXELS:
        raise ImageError(f"expected an image, got a strip of {image.size[0]} x {image.size[1]} pixels; cut it")
    left, top = (width - side) // 2, (height - side) // 2
    return np.array(image.resize((width, height), filter_).crop((left, top, left + side, top + side)))


def _size(size: Any, crop: Any, crops: bool) -> tuple[int, str]:
    """Side and fit from HF's size, of which {"height", "width"} stretches and {"shortest_edge"} needs the crop."""
    # A bare number means both sides in ViT's and SigLIP's processors.
    sides = {"height": size, "width": size} if isinstance(size, int) else size
    if not isinstance(sides, dict):
        raise ImageSettingsError(f"size: expected a number or an object, got {size!r}")
    if set(sides) == {"height", "width"} and sides["height"] == sides["width"] and not crops:
        return _pixels("size", sides["height"]), "stretch"
    if set(sides) == {"shortest_edge"} and crops:
        side = _pixels("size", sides["shortest_edge"])
        if crop in (side, {"height": side, "width": side}):
            return side, "crop"
    raise ImageSettingsError(
        f"expected a square size, or a shortest_edge with a crop_size equal to it, got size {size!r}, "
        f"crop_size {crop!r}, do_center_crop {crops!r}"
    )


def _pixels(field: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= 1 << 14:
        raise ImageSettingsError(f"{field}: expected pixels from 1 to {1 << 14}, got {value!r}")
    return value


def _three(field: str, value: Any) -> tuple[float, float, float]:
    numbers = isinstance(value, list | tuple) and all(
        isinstance(one, int | float) and not isinstance(one, bool) for one in value
    )
    if not numbers or len(value) != 3:
        raise ImageSettingsError(f"{field}: expected three numbers, got {value!r}")
    red, green, blue = (float(one) for one in value)
    return red, green, blue
