"""The image settings of a Hugging Face folder that is no CLIP: which file they are in, and what a bad one is called."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plip_jax.convert.hf_config import PREPROCESSING_FILES, HFConfigError, find_processor_settings
from plip_jax.data.image_settings import ImageSettings, ImageSettingsError, image_settings_from_hf


def read_image_settings(folder: Path, defaults: Mapping[str, Any], *, image_size: int) -> ImageSettings:
    """Read ``preprocessor_config.json``, or the image processor inside ``processor_config.json`` (transformers 5).

    Args:
        folder: of the model.
        defaults: what its processor takes for absent ``size``, ``resample``, ``image_mean`` and ``image_std``.
        image_size: that the network is of, pixels.

    Raises:
        HFConfigError: neither file, a damaged one, settings that cannot be followed, or another image size.
    """
    found = find_processor_settings(folder)
    if found is None:
        raise HFConfigError(f"{folder}: expected the image settings in {' or '.join(PREPROCESSING_FILES)}, got neither")
    name, values = found
    try:
        settings = image_settings_from_hf(values, defaults)
    except ImageSettingsError as error:
        raise HFConfigError(f"{folder / name}: {error}") from None
    if settings.image_size != image_size:
        raise HFConfigError(
            f"{folder / name}: expected images of image_size = {image_size} pixels, which config.json names, got "
            f"{settings.image_size}"
        )
    return settings
