"""Settings of other image processors: pixels equal transformers' Pillow processors to the bit; odd settings refused."""

import numpy as np
import pytest
from PIL import Image

from plip_jax.data.image import ImageError, Preprocessing, normalize_pixels, preprocess_image
from plip_jax.data.image_settings import ImageSettings, ImageSettingsError, image_settings_from_hf, prepare_image

DEFAULTS = {"size": 224, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def random_image(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def make_processor(kind: str, **settings):
    """transformers' processor on Pillow; its default backend since version 5 is torchvision."""
    pytest.importorskip("torch", reason="the processors' module needs it")
    try:
        if kind == "vit":
            from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil as Processor
        else:
            from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil as Processor
    except ImportError:  # transformers 4
        from transformers import SiglipImageProcessor, ViTImageProcessor

        Processor = ViTImageProcessor if kind == "vit" else SiglipImageProcessor
    return Processor(**settings)


@pytest.mark.parametrize("kind", ["vit", "siglip"])
@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize(("width", "height"), [(64, 64), (50, 83), (40, 20)])
def test_pixels_are_those_of_transformers(kind, resample, width, height):
    values = {
        "size": {"height": 48, "width": 48},
        "resample": resample,
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.5] * 3,
    }
    image = random_image(width, height)
    expected = make_processor(kind, **values)(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    settings = image_settings_from_hf(values, DEFAULTS)
    ours = normalize_pixels(prepare_image(image, settings), settings)
    # 1e-6: (x / 255 - mean) / std in float32 against (x * (1 / 255) - mean) / std; a level of a pixel would be 8e-3.
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_clips_own_settings_are_clips_own_transform():
    image = random_image(70, 55)
    settings = ImageSettings(32)
    np.testing.assert_array_equal(prepare_image(image, settings), preprocess_image(image, Preprocessing(32)))
    assert settings.to_dict() == {**Preprocessing(32).to_dict(), "resample": "bicubic", "fit": "crop"}


def test_the_short_side_is_resized_by_the_filter_and_the_centre_kept():
    image = random_image(70, 40)
    pixels = prepare_image(image, ImageSettings(20, resample="bilinear"))
    whole = np.asarray(image.resize((35, 20), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(pixels, whole[:, 7:27])
    grey = prepare_image(random_image(70, 40, "L"), ImageSettings(20, resample="bilinear"))
    assert (grey.shape, grey.dtype) == ((20, 20, 3), np.uint8)
    with pytest.raises(ImageError, match="strip of 1 x 900000"):
        prepare_image(Image.new("RGB", (1, 900_000)), ImageSettings(20, resample="bilinear"))


def test_absent_fields_are_the_processors_defaults_and_a_crop_is_understood():
    assert image_settings_from_hf({}, DEFAULTS) == ImageSettings(224, (0.5,) * 3, (0.5,) * 3, "bilinear", "stretch")
    cropped = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}
    assert image_settings_from_hf(cropped, DEFAULTS).fit == "crop"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"do_normalize": False}, "expected do_normalize true, got False"),
        ({"rescale_factor": 1.0}, "rescale_factor: expected 1/255"),
        ({"size": {"height": 32, "width": 48}}, "expected a square size"),
        ({"size": {"shortest_edge": 32}}, "crop_size None"),
        ({"size": {"shortest_edge": 36}, "crop_size": 32, "do_center_crop": True}, "expected a square size"),
        ({"size": 0}, "size: expected pixels"),
        ({"resample": 9}, "resample: expected one of"),
        ({"image_mean": [0.5]}, "image_mean: expected three numbers"),
        ({"image_std": [0.5, 0.5, 0.0]}, "std: expected positive values"),
    ],
)
def test_what_cannot_be_followed_is_named(values, message):
    with pytest.raises(ImageSettingsError, match=message):
        image_settings_from_hf(values, DEFAULTS)
