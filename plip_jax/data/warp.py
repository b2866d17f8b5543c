"""One homography for each image, on the device: the part of a training view that needs no decoder.

Owns the sampling; which homography comes from `plip_jax.data.augment`. This is the only file of the data folder that
imports jax, and data workers never import it.

Against the host's chain in Pillow (flip, affine by nearest neighbour, perspective bilinear) the geometry is the same,
and two things differ (measured on 64 textbook micrographs, PLIP's views of 224 px):

- Interpolation: bilinear, once, and not rounded to whole levels. Where both show tissue they differ by 3 levels in the
  mean and 140 at an edge (176 where there is a perspective); neighbouring pixels of these images differ by 6.5.
- Where the perspective looks past the rim of the affine's result, the host has lost what lay there and shows the fill;
  here the image is still whole and is shown: 8 % of the pixels in the three views in ten that have a perspective.
"""

import jax
import jax.numpy as jnp

from plip_jax.data.augment import FILL


def warp_images(images: jax.Array, coefficients: jax.Array, fill: float = FILL[0]) -> jax.Array:
    """Show each image through its homography, bilinear: float32 [batch, size, size, 3] in 0..255.

    As Pillow's ``transform(…, PERSPECTIVE, …, BILINEAR)``: a place outside the image is `fill`, and within half a pixel
    of the rim the rim's pixel continues. Identity and flips are exact. Each image is gathered from on its own, so a
    batch that is sharded over its first axis stays where it is.

    Args:
        images: uint8 (or float) [batch, size, size, 3].
        coefficients: float32 [batch, 8], output to input in pixels, as `augment.compose_warps` gives them.
        fill: Value of what lies outside, all channels.
    """
    batch, height, width, channels = images.shape
    x = (jnp.arange(width, dtype=jnp.float32) + 0.5)[None, None, :]
    y = (jnp.arange(height, dtype=jnp.float32) + 0.5)[None, :, None]
    a, b, c, d, e, f, g, h = (column[:, None, None] for column in jnp.moveaxis(coefficients.astype(jnp.float32), 1, 0))
    depth = g * x + h * y + 1
    source_x, source_y = (a * x + b * y + c) / depth, (d * x + e * y + f) / depth
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    left, right, across = _neighbours(source_x, width)
    top, bottom, down = _neighbours(source_y, height)
    pixels = images.reshape(batch, height * width, channels)

    def at(row: jax.Array, column: jax.Array) -> jax.Array:
        places = (row * width + column).reshape(batch, height * width, 1)
        values = jnp.take_along_axis(pixels, places, axis=1, mode="clip")
        return values.reshape(images.shape).astype(jnp.float32)

    across, down = across[..., None], down[..., None]
    upper = at(top, left) * (1 - across) + at(top, right) * across
    lower = at(bottom, left) * (1 - across) + at(bottom, right) * across
    return jnp.where(inside[..., None], upper * (1 - down) + lower * down, jnp.float32(fill))


def _neighbours(place: jax.Array, length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The two pixels whose centres enclose a continuous place, clipped to the image, and the weight of the second."""
    place = jnp.clip(place - 0.5, -1, length)  # far places are filled; here they only must fit an integer
    first = jnp.floor(place)
    index = first.astype(jnp.int32)
    return jnp.clip(index, 0, length - 1), jnp.clip(index + 1, 0, length - 1), place - first
