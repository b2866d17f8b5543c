"""Random training views of a decoded image.

Owns PLIP's training transform and the tables of transforms by name. Each is a pure function of the image, the size
and the Generator it is handed: the pipeline seeds that from (seed, epoch, index). The geometry is that of
torchvision's PIL transforms (RandomCrop, RandomHorizontalFlip, RandomAffine, RandomPerspective); the numbers
are PLIP's (its training code's image transform); the order in which parameters are drawn is ours.

`AUGMENTATIONS` make the whole view here. `WARPED_AUGMENTATIONS` draw the same numbers, stop at the crop and say the
rest as one homography, which `plip_jax.data.warp` applies on the device.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from PIL import Image

from plip_jax.data.image import Preprocessing, preprocess_image, resize_and_crop, resized_size, to_rgb

Augmentation = Callable[[Image.Image, int, np.random.Generator], np.ndarray]
"""(image, size, rng) -> uint8 [size, size, 3]."""
WarpedAugmentation = Callable[[Image.Image, int, np.random.Generator], tuple[np.ndarray, np.ndarray]]
"""(image, size, rng) -> uint8 [size, size, 3] and a homography, float32 [8]."""
Entry = TypeVar("Entry")

RESIZE_RATIO = 512 / 224
"""PLIP resizes the short side to 512 and crops 224; other sizes keep the ratio, so a crop shows as much tissue."""
FLIP_PROBABILITY = 0.5
"""Of the horizontal flip; `augment_light` flips vertically with the same."""
ROTATION_DEGREES = 10.0
"""To either side."""
TRANSLATION = 0.1
"""Of the side, in either direction along each axis."""
SCALE = (0.8, 1.2)
"""The least and the greatest factor."""
SHEAR_DEGREES = 15.0
"""To either side, along x only, as torchvision reads a single number."""
DISTORTION = 0.3
"""Corners move inwards by up to this part of half the side."""
DISTORTION_PROBABILITY = 0.3
"""Of the perspective."""
FILL = (127, 127, 127)
"""RGB of what lies outside the image."""

Corners = Sequence[tuple[float, float]]
"""(x, y) of top left, top right, bottom right, bottom left."""


def augment_plip(image: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    """PLIP's training view: uint8 [size, size, 3].

    Resize (bicubic, short side ``round(size * 512 / 224)``), random crop, horizontal flip, affine (nearest, as
    RandomAffine's default), perspective (bilinear, as RandomPerspective's default); what falls outside is 127.
    """
    image = random_crop(_as_rgb(image), round(size * RESIZE_RATIO), size, rng)
    image = random_flip(image, rng)
    image = random_affine(image, rng)
    return np.array(random_perspective(image, rng))


def augment_none(image: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    """The evaluation view, resize and centre crop: uint8 [size, size, 3]. Draws nothing from `rng`."""
    del rng
    return preprocess_image(image, Preprocessing(image_size=size))


def augment_light(image: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    """For small images seen few times: uint8 [size, size, 3].

    Resize (short side ``round(size * 1.15)``), random crop, horizontal and vertical flip: tissue has no up or down.
    """
    image = random_crop(_as_rgb(image), round(size * 1.15), size, rng)
    image = random_flip(image, rng)
    if _draw_flip(rng):
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return np.array(image)


def warped_plip(image: Image.Image, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """PLIP's view as its crop, uint8 [size, size, 3], and the homography of the rest, float32 [8].

    Flip, affine and perspective by the same random numbers as `augment_plip`, interpolated once instead of twice.
    """
    image = random_crop(_as_rgb(image), round(size * RESIZE_RATIO), size, rng)
    steps = [_mirror_x(size)] if _draw_flip(rng) else []
    steps.append(_draw_affine((size, size), rng))
    perspective = _draw_perspective((size, size), rng)
    if perspective is not None:
        steps.append(perspective)
    return np.array(image), compose_warps(steps)


def warped_none(image: Image.Image, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`augment_none` and the identity, float32 [8]."""
    return augment_none(image, size, rng), compose_warps([])


def warped_light(image: Image.Image, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`augment_light` as its crop, uint8 [size, size, 3], and its two flips, float32 [8]; they are exact."""
    image = random_crop(_as_rgb(image), round(size * 1.15), size, rng)
    steps = [_mirror_x(size)] if _draw_flip(rng) else []
    if _draw_flip(rng):
        steps.append((1, 0, 0, 0, -1, size))
    return np.array(image), compose_warps(steps)


AUGMENTATIONS: dict[str, Augmentation] = {"plip": augment_plip, "light": augment_light, "none": augment_none}
"""Name in ``data.augmentation`` -> the whole view. Another one is a function and a line here."""
WARPED_AUGMENTATIONS: dict[str, WarpedAugmentation] = {"plip": warped_plip, "light": warped_light, "none": warped_none}
"""The same names -> the view's crop, and the homography of the rest."""


def get_augmentation(name: str) -> Augmentation:
    """Look an augmentation up by name; a ValueError lists the known ones."""
    return _look_up(name, AUGMENTATIONS, "augmentation")


def get_warped_augmentation(name: str) -> WarpedAugmentation:
    """Look up the form that leaves flip, affine and perspective to the device; a ValueError lists the known ones."""
    return _look_up(name, WARPED_AUGMENTATIONS, "augmentation for warp_on_device")


def random_crop(image: Image.Image, short_side: int, size: int, rng: np.random.Generator) -> Image.Image:
    """Resize the short side to `short_side` >= `size` and cut a square of `size` at a uniform whole-pixel place."""
    width, height = resized_size(*image.size, short_side)
    top = int(rng.integers(0, height - size, endpoint=True))
    left = int(rng.integers(0, width - size, endpoint=True))
    return resize_and_crop(image, short_side, left, top, size)


def random_flip(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Mirror left and right with probability `FLIP_PROBABILITY`."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if _draw_flip(rng) else image


def random_affine(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Rotate, shift (whole pixels), scale and shear about the centre; nearest neighbour."""
    coefficients = _draw_affine(image.size, rng)
    return image.transform(
        image.size, Image.Transform.AFFINE, coefficients, resample=Image.Resampling.NEAREST, fillcolor=FILL
    )


def random_perspective(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """With probability `DISTORTION_PROBABILITY`, draw every corner inwards by a random amount; bilinear."""
    coefficients = _draw_perspective(image.size, rng)
    if coefficients is None:
        return image
    return image.transform(
        image.size, Image.Transform.PERSPECTIVE, coefficients, resample=Image.Resampling.BILINEAR, fillcolor=FILL
    )


def _draw_flip(rng: np.random.Generator) -> bool:
    return rng.random() < FLIP_PROBABILITY


def _draw_affine(size: tuple[int, int], rng: np.random.Generator) -> tuple[float, ...]:
    width, height = size
    angle = rng.uniform(-ROTATION_DEGREES, ROTATION_DEGREES)
    shift_x = round(rng.uniform(-TRANSLATION * width, TRANSLATION * width))
    shift_y = round(rng.uniform(-TRANSLATION * height, TRANSLATION * height))
    scale = rng.uniform(*SCALE)
    shear = rng.uniform(-SHEAR_DEGREES, SHEAR_DEGREES)
    return affine_coefficients((width, height), angle, (shift_x, shift_y), scale, shear)


def _draw_perspective(size: tuple[int, int], rng: np.random.Generator) -> tuple[float, ...] | None:
    if rng.random() >= DISTORTION_PROBABILITY:
        return None
    width, height = size
    reach_x, reach_y = int(DISTORTION * (width // 2)), int(DISTORTION * (height // 2))
    moves = rng.integers(0, (reach_x, reach_y), size=(4, 2), endpoint=True).tolist()
    corners = ((0, 0), (width - 1, 0), (width - 1, height - 1), (0, height - 1))
    moved = [(abs(x - dx), abs(y - dy)) for (x, y), (dx, dy) in zip(corners, moves, strict=True)]
    return perspective_coefficients(corners, moved)


def affine_coefficients(
    size: tuple[int, int], angle: float, shift: tuple[float, float], scale: float, shear: float
) -> tuple[float, float, float, float, float, float]:
    """Pillow's (a, b, c, d, e, f): the output at (x, y) shows the input at (a x + b y + c, d x + e y + f).

    Coordinates are continuous: the centre of the first pixel is (0.5, 0.5).

    The inverse of T C R S C^-1 with C the shift to the image's centre (size / 2), T the `shift`, R the clockwise
    rotation by `angle` times the shear along x, S the `scale` (torchvision's ``_get_inverse_affine_matrix`` for
    PIL images).

    Args:
        size: (width, height), pixels.
        angle: degrees, clockwise on the screen.
        shift: (right, down), pixels.
        scale: above 1 enlarges.
        shear: degrees, along x.
    """
    turn, slant = math.radians(angle), math.tan(math.radians(shear))
    cos, sin = math.cos(turn), math.sin(turn)
    # R = [[cos, -cos * slant - sin], [sin, -sin * slant + cos]] has determinant 1.
    a, b = (cos - sin * slant) / scale, (cos * slant + sin) / scale
    d, e = -sin / scale, cos / scale
    centre_x, centre_y = size[0] / 2, size[1] / 2
    from_x, from_y = -centre_x - shift[0], -centre_y - shift[1]
    return a, b, a * from_x + b * from_y + centre_x, d, e, d * from_x + e * from_y + centre_y


def perspective_coefficients(corners: Corners, moved: Corners) -> tuple[float, ...]:
    """Pillow's eight coefficients of the view in which each of `corners` appears at its place in `moved`.

    The output at (x, y) shows the input at ((a x + b y + c) / w, (d x + e y + f) / w) with w = g x + h y + 1; four
    points give eight equations.
    """
    rows, targets = [], []
    for (x, y), (source_x, source_y) in zip(moved, corners, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -source_x * x, -source_x * y])
        rows.append([0, 0, 0, x, y, 1, -source_y * x, -source_y * y])
        targets += [source_x, source_y]
    return tuple(np.linalg.solve(np.asarray(rows, np.float64), np.asarray(targets, np.float64)).tolist())


def compose_warps(steps: Iterable[Sequence[float]]) -> np.ndarray:
    """One homography for steps applied one after the other: float32 [8], Pillow's PERSPECTIVE coefficients.

    The output at (x, y) shows the input at ((a x + b y + c) / w, (d x + e y + f) / w) with w = g x + h y + 1, pixels;
    coordinates are continuous, the centre of the first pixel is (0.5, 0.5).

    Args:
        steps: 6 (affine) or 8 (perspective) coefficients each, the first step first; none is the identity.
    """
    whole = np.eye(3)
    for step in steps:
        coefficients = [*step, 0, 0][:8]
        # From the output back to the input: the last step's map comes first, so it stands rightmost.
        whole = whole @ np.array([*coefficients, 1]).reshape(3, 3)
    return (whole / whole[2, 2]).ravel()[:8].astype(np.float32)


def _mirror_x(size: int) -> tuple[float, ...]:
    return (-1, 0, size, 0, 1, 0)


def _look_up(name: str, table: Mapping[str, Entry], kind: str) -> Entry:
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(table)}")
    return table[name]


def _as_rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else to_rgb(image)
