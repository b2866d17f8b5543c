"""The warp on the device against the host's chain in Pillow: the same view but for interpolation."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image

from plip_jax.data.augment import (
    AUGMENTATIONS,
    FILL,
    WARPED_AUGMENTATIONS,
    compose_warps,
    get_augmentation,
    get_warped_augmentation,
)
from plip_jax.data.warp import warp_images

warp = jax.jit(warp_images)


def random_pixels(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def both_ways(name: str, image: Image.Image, size: int, seeds: range) -> tuple[np.ndarray, np.ndarray]:
    """The host's views and the device's, each [len(seeds), size, size, 3], of the same random numbers."""
    host = np.stack([get_augmentation(name)(image, size, np.random.default_rng(seed)) for seed in seeds])
    crops, warps = zip(
        *(get_warped_augmentation(name)(image, size, np.random.default_rng(seed)) for seed in seeds), strict=True
    )
    return host, np.asarray(warp(np.stack(crops), np.stack(warps)))


def test_every_augmentation_has_a_form_for_the_device():
    assert WARPED_AUGMENTATIONS.keys() == AUGMENTATIONS.keys()
    with pytest.raises(ValueError, match=r"unknown augmentation for warp_on_device 'x'; known: plip, light, none"):
        get_warped_augmentation("x")


@pytest.mark.parametrize("name", WARPED_AUGMENTATIONS)
def test_both_forms_draw_the_same_numbers(name: str):
    image = Image.fromarray(random_pixels(70, 50))
    for seed in range(20):
        host, device = np.random.default_rng(seed), np.random.default_rng(seed)
        get_augmentation(name)(image, 24, host)
        crop, coefficients = get_warped_augmentation(name)(image, 24, device)
        assert host.bit_generator.state == device.bit_generator.state
        assert (crop.shape, crop.dtype) == ((24, 24, 3), np.uint8)
        assert (coefficients.shape, coefficients.dtype) == ((8,), np.float32)


@pytest.mark.parametrize("size", [32, 33, 224])
@pytest.mark.parametrize("name", ["none", "light"])
def test_identity_and_flips_are_exact(name: str, size: int):
    host, device = both_ways(name, Image.fromarray(random_pixels(2 * size, size + 9)), size, range(12))
    assert device.dtype == np.float32
    np.testing.assert_array_equal(device, host)
    flips = len({view.tobytes() for view in host})
    assert flips == (1 if name == "none" else 12)  # light's crops differ too


def test_the_homography_is_sampled_as_pillow_does():
    images, coefficients, expected = [], [], []
    for seed in range(16):
        image = Image.fromarray(random_pixels(90, 80, seed)).resize((160, 140), Image.Resampling.BICUBIC)
        crop, warps = get_warped_augmentation("plip")(image, 64, np.random.default_rng(seed))
        shown = Image.fromarray(crop).transform(
            (64, 64), Image.Transform.PERSPECTIVE, warps.tolist(), Image.Resampling.BILINEAR, fillcolor=FILL
        )
        images.append(crop)
        coefficients.append(warps)
        expected.append(np.asarray(shown, np.float32))
    difference = np.abs(np.asarray(warp(np.stack(images), np.stack(coefficients))) - np.stack(expected))
    # Pillow cuts the fraction of a level off. A place within float32's error of the rim may be fill in one of the two.
    assert (difference > 1).mean() < 1e-4
    assert difference.mean() < 0.5


def test_plips_view_has_the_hosts_geometry():
    # Red counts columns, green rows, one level a pixel of the crop, so a difference is a distance; blue marks tissue.
    size = 100
    pixels = np.full((229, 229, 3), 255, np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(229), np.arange(229)[:, None]
    host, device = both_ways("plip", Image.fromarray(pixels), size, range(60))
    tissue = (host[..., 2] == 255) & (device[..., 2] == 255)
    assert tissue.mean() > 0.6
    distance = np.where(tissue, np.abs(device - host)[..., :2].max(-1), 0)
    perspective = np.array([abs(warped(seed, size)[6:]).max() > 0 for seed in range(60)])
    assert 5 < perspective.sum() < 30
    # Half a pixel from the nearest neighbour (Pillow's steps are 16.16 fixed point), and the fraction of a level that
    # Pillow's bilinear cuts off.
    assert 0.4 < distance[~perspective].max() < 0.51
    assert distance[perspective].max() < 1.51
    # Whatever the host shows is shown but for a rim of half a pixel, and more only where a perspective looks out.
    assert ((host[..., 2] == 255) & (device[..., 2] < 255)).mean() < 0.01
    more = ((host[..., 2] == 127) & (device[..., 2] == 255)).mean((1, 2))
    assert more[~perspective].max() < 0.01


def warped(seed: int, size: int) -> np.ndarray:
    image = Image.new("RGB", (229, 229))
    return get_warped_augmentation("plip")(image, size, np.random.default_rng(seed))[1]


def test_steps_compose_from_the_last_to_the_first():
    shift, double = (1, 0, 3, 0, 1, -2), (0.5, 0, 0, 0, 0.5, 0)  # shows what lies 3 to the right; twice as large
    np.testing.assert_array_equal(compose_warps([shift, double]), np.float32([0.5, 0, 3, 0, 0.5, -2, 0, 0]))
    np.testing.assert_array_equal(compose_warps([double, shift]), np.float32([0.5, 0, 1.5, 0, 0.5, -1, 0, 0]))
    np.testing.assert_array_equal(compose_warps([]), np.float32([1, 0, 0, 0, 1, 0, 0, 0]))


def test_what_lies_outside_is_filled_and_the_rim_continues():
    image = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    shifted = np.asarray(warp(image, np.float32([[1, 0, 1, 0, 1, 0, 0, 0]])))[0]
    np.testing.assert_array_equal(shifted[:, 0], image[0, :, 1])
    np.testing.assert_array_equal(shifted[:, 1], np.full((2, 3), 127))
    halved = np.asarray(warp(image, np.float32([[0.5, 0, 0, 0, 0.5, 0, 0, 0]]), 0))[0]
    # Places 0.25 and 0.75: within half a pixel of the rim, and a quarter of the way to the second pixel.
    np.testing.assert_array_equal(halved[0, :, 0], [0, 0.75])


def test_a_sharded_batch_is_warped_where_it_is():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    images = np.stack([random_pixels(16, 16, seed) for seed in range(16)])
    warps = np.stack([warped(seed, 16) for seed in range(16)])
    compiled = jax.jit(warp_images, in_shardings=sharding).lower(images, warps).compile()
    program = compiled.as_text()
    assert "gather(" in program
    assert not any(word in program for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))
    shown = compiled(jax.device_put(images, sharding), jax.device_put(warps, sharding))
    assert shown.sharding.is_equivalent_to(sharding, 4)
    # 1e-4 of a level: one device's program is fused in another order.
    np.testing.assert_allclose(np.asarray(shown), np.asarray(warp(images, warps)), rtol=0, atol=1e-4)
