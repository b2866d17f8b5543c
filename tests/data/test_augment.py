"""PLIP's training view: the geometry against formulas written out here, the ranges, and purity."""

import numpy as np
import pytest
from PIL import Image

from plip_jax.data import augment
from plip_jax.data.augment import (
    AUGMENTATIONS,
    affine_coefficients,
    get_augmentation,
    perspective_coefficients,
    random_affine,
    random_crop,
    random_flip,
    random_perspective,
)
from plip_jax.data.image import Preprocessing, preprocess_image


def random_image(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


class Scripted:
    """Stands in for the Generator: gives the numbers it was made with, in order."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def uniform(self, low, high):
        number = self.numbers.pop(0)
        assert low <= number <= high
        return number

    def random(self):
        return self.numbers.pop(0)

    def integers(self, low, high, size=None, endpoint=False):
        numbers = np.asarray(self.numbers.pop(0))
        assert endpoint
        assert (numbers >= low).all()
        assert (numbers <= np.asarray(high)).all()
        return numbers


def forward_affine(size, angle, shift, scale, shear) -> np.ndarray:
    """3 x 3, from input to output: move the centre to 0, shear x, rotate, scale, move back, shift."""
    centre = np.array([[1, 0, size[0] / 2], [0, 1, size[1] / 2], [0, 0, 1]])
    sheared = np.array([[1, -np.tan(np.deg2rad(shear)), 0], [0, 1, 0], [0, 0, 1]])
    turn = np.deg2rad(angle)
    rotated = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    shifted = np.array([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1]])
    return shifted @ centre @ np.diag([scale, scale, 1]) @ rotated @ sheared @ np.linalg.inv(centre)


@pytest.mark.parametrize(
    ("size", "angle", "shift", "scale", "shear"),
    [
        ((224, 224), 0, (0, 0), 1, 0),
        ((224, 224), 10, (0, 0), 1, 0),
        ((101, 64), -7.5, (5, -3), 0.8, 15),
        ((64, 101), 3, (-6, 4), 1.2, -12),
    ],
)
def test_affine_coefficients_invert_shear_rotation_scale_and_shift(size, angle, shift, scale, shear):
    expected = np.linalg.inv(forward_affine(size, angle, shift, scale, shear))[:2].ravel()
    np.testing.assert_allclose(affine_coefficients(size, angle, shift, scale, shear), expected, rtol=0, atol=1e-10)


def test_a_positive_angle_turns_clockwise_on_the_screen():
    a, b, c, d, e, f = affine_coefficients((10, 10), 90, (0, 0), 1, 0)
    # The top centre of the output comes from the left centre of the input.
    assert a * 5 + b * 0 + c == pytest.approx(0)
    assert d * 5 + e * 0 + f == pytest.approx(5)


def test_affine_takes_the_nearest_pixel_and_fills_with_127():
    image = random_image(60, 60)
    drawn = (8.0, 5.0, -4.0, 1.1, 12.0)
    ours = np.asarray(random_affine(image, Scripted(*drawn)))  # type: ignore[arg-type]  # gives scripted numbers
    back = np.linalg.inv(forward_affine((60, 60), drawn[0], (5, -4), drawn[3], drawn[4]))
    source, expected = np.asarray(image), np.full((60, 60, 3), 127, np.uint8)
    for y in range(60):
        for x in range(60):
            column, row, _ = np.floor(back @ (x + 0.5, y + 0.5, 1)).astype(int)
            if 0 <= column < 60 and 0 <= row < 60:
                expected[y, x] = source[row, column]
    # Pillow steps in 16.16 fixed point: a place on the border of two pixels may fall to the other one.
    assert (ours == expected).all(-1).mean() > 0.995
    assert (expected == 127).all(-1).any()


def test_perspective_coefficients_bring_each_corner_to_its_place():
    corners = ((0, 0), (99, 0), (99, 79), (0, 79))
    moved = ((7, 3), (95, 11), (88, 70), (2, 60))
    a, b, c, d, e, f, g, h = perspective_coefficients(corners, moved)
    for (x, y), corner in zip(moved, corners, strict=True):
        w = g * x + h * y + 1
        assert ((a * x + b * y + c) / w, (d * x + e * y + f) / w) == pytest.approx(corner, abs=1e-9)


def test_perspective_moves_the_corners_inwards_and_fills_with_127():
    image = Image.new("RGB", (100, 100), (0, 200, 0))
    moves = [[15, 15], [0, 0], [15, 0], [0, 15]]  # 15 is the furthest: 0.3 of half of 100
    view = np.asarray(random_perspective(image, Scripted(0.29, moves)))  # type: ignore[arg-type]  # as above
    green = (view == (0, 200, 0)).all(-1)
    grey = (view == (127, 127, 127)).all(-1)
    assert (green | grey).mean() > 0.97  # the rim is blended (bilinear)
    # The quadrilateral (15, 15), (99, 0), (84, 99), (0, 84), by hand: on its left side x = 15 - 15 (y - 15) / 69.
    assert grey[5, 5]
    assert grey[95, 4]
    assert grey[60, 97]
    assert green[17, 20]
    assert green[2, 96]
    assert green[50, 10]
    assert not green[50, 4]


def test_perspective_happens_three_times_in_ten():
    image = random_image(20, 20)
    assert random_perspective(image, Scripted(0.3)) is image  # type: ignore[arg-type]  # as above
    changed = sum(random_perspective(image, np.random.default_rng(seed)) is not image for seed in range(1000))
    assert 250 < changed < 350  # 300 +- 3.5 standard deviations


def test_flip_mirrors_left_and_right_half_the_time():
    image = random_image(6, 4)
    mirrored = random_flip(image, Scripted(0.49))  # type: ignore[arg-type]  # as above
    np.testing.assert_array_equal(np.asarray(mirrored), np.asarray(image)[:, ::-1])
    assert random_flip(image, Scripted(0.5)) is image  # type: ignore[arg-type]  # as above


def test_the_crop_reaches_every_place_including_the_last():
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(8), np.arange(6)[:, None]
    image = Image.fromarray(pixels)
    places = {
        tuple(np.asarray(random_crop(image, 6, 4, np.random.default_rng(seed)))[0, 0, :2].tolist())
        for seed in range(400)
    }
    assert places == {(left, top) for left in range(5) for top in range(3)}


def test_parameters_fill_the_published_ranges(monkeypatch: pytest.MonkeyPatch):
    drawn = []

    def record(size, angle, shift, scale, shear):
        drawn.append((angle, *shift, scale, shear))
        return affine_coefficients(size, angle, shift, scale, shear)

    monkeypatch.setattr(augment, "affine_coefficients", record)
    image = random_image(100, 50)
    for seed in range(500):
        random_affine(image, np.random.default_rng(seed))
    low, high = np.min(drawn, 0), np.max(drawn, 0)
    limits = np.array([10, 10, 5, 0.2, 15])  # degrees, a tenth of 100 and of 50 pixels, 1 +- 0.2, degrees
    middle = np.array([0, 0, 0, 1, 0])
    assert (low >= middle - limits).all()
    assert (high <= middle + limits).all()
    assert (high - low > 1.9 * limits).all()
    shifts = np.array(drawn)[:, 1:3]
    np.testing.assert_array_equal(shifts, shifts.round())  # whole pixels


@pytest.mark.parametrize(("size", "short_side"), [(224, 512), (112, 256), (64, 146)])
def test_the_short_side_keeps_plips_ratio(size: int, short_side: int, monkeypatch: pytest.MonkeyPatch):
    seen = []
    whole = augment.resize_and_crop

    def record(image, short, left, top, side):
        seen.append((short, side))
        return whole(image, short, left, top, side)

    monkeypatch.setattr(augment, "resize_and_crop", record)
    AUGMENTATIONS["plip"](random_image(300, 280), size, np.random.default_rng(0))
    assert seen == [(short_side, size)]


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("shape", [(300, 200), (50, 61), (1, 1), (3, 900)])
def test_every_view_is_a_pure_function_of_the_generator(name: str, shape: tuple[int, int]):
    image, view = random_image(*shape), get_augmentation(name)
    state = np.random.get_state()  # noqa: NPY002 - the global state must not be touched
    first, again, other = (view(image, 48, np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert (first.dtype, first.shape) == (np.uint8, (48, 48, 3))
    np.testing.assert_array_equal(first, again)
    if name != "none" and shape != (1, 1):
        assert (first != other).any()
    assert all(np.array_equal(a, b) for a, b in zip(state, np.random.get_state(), strict=True))  # noqa: NPY002 - as above
    np.testing.assert_array_equal(image, random_image(*shape))  # the image is not written to


def test_none_is_the_evaluation_view_and_grey_images_are_taken():
    image = random_image(90, 70)
    expected = preprocess_image(image, Preprocessing(image_size=32))
    np.testing.assert_array_equal(get_augmentation("none")(image, 32, np.random.default_rng(0)), expected)
    for view in AUGMENTATIONS.values():
        assert view(image.convert("L"), 32, np.random.default_rng(0)).shape == (32, 32, 3)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown augmentation 'plipp'; known: plip, light, none"):
        get_augmentation("plipp")
