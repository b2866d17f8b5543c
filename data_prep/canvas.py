"""The brushes that simulated tissue is painted with, and the dyes it is painted in.

Owns concentration maps of four dyes (haematoxylin, eosin, mucin, red cells) and their way to RGB: absorption by Beer
and Lambert's law, with optical densities near those of Ruifrok and Johnston 2001. What the tissues look like is
`data_prep.tissue`'s. numpy and Pillow only; every random number comes from the Generator passed in.
"""

import dataclasses
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# Lengths are in units of 1/96 of the tile's side, so a tile of any size shows the same field.
FIELD = 96.0
H, E, M, B = range(4)  # haematoxylin, eosin, mucin, red cells (blood)

# Optical density per unit of dye in R, G, B.
_DENSITY = np.array(
    [[0.68, 0.86, 0.36], [0.13, 0.80, 0.44], [0.62, 0.56, 0.30], [0.12, 0.85, 0.80]],
    np.float32,
)
_OVERSAMPLE = 2


@dataclasses.dataclass(frozen=True)
class Stain:
    """How one slide was stained: strength of each dye and the colour shift of each, shared by its tiles."""

    strength: np.ndarray  # float32 [4]
    density: np.ndarray  # float32 [4, 3]
    light: np.ndarray  # float32 [3], the colour of empty glass, 0 to 1


class Canvas:
    """The dye maps of one tile, float32 [4, n, n], and the brushes that the tissues share."""

    def __init__(self, size: int, rng: np.random.Generator):
        self.size = size
        self.unit = size / FIELD  # pixels
        self.rng = rng
        self.dyes = np.zeros((4, size, size), np.float32)
        axis = (np.arange(size, dtype=np.float32) + 0.5) / self.unit
        self.x, self.y = np.meshgrid(axis, axis)

    def noise(self, length: float) -> np.ndarray:
        """Smooth noise, about standard normal, with features of about `length` units."""
        knots = max(2, math.ceil(FIELD / length) + 1)
        grid = self.rng.standard_normal((knots, knots), np.float32)
        return np.asarray(Image.fromarray(grid).resize((self.size, self.size), Image.Resampling.BICUBIC))

    def grain(self) -> np.ndarray:
        """Noise of one pixel, standard normal."""
        return self.rng.standard_normal((self.size, self.size), np.float32)

    def points(self, spacing: float, jitter: float = 0.3, margin: float = 0.0) -> np.ndarray:
        """Places on a shaken hexagonal lattice: [N, 2] of (x, y)."""
        offset = self.rng.uniform(0, spacing, 2)
        columns = np.arange(-margin - spacing, FIELD + margin + spacing, spacing)
        rows = np.arange(-margin - spacing, FIELD + margin + spacing, spacing * 0.87)
        grid_x, grid_y = np.meshgrid(columns, rows)
        grid_x[::2] += spacing / 2
        places = np.stack([grid_x.ravel(), grid_y.ravel()], 1) + offset
        places += self.rng.uniform(-jitter, jitter, places.shape) * spacing
        inside = np.all((places > -margin) & (places < FIELD + margin), axis=1)
        return places[inside]

    def at(self, field: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Values of a map [n, n] at places [N, 2]; places outside take the nearest pixel."""
        column, row = np.clip((places * self.unit).astype(int), 0, self.size - 1).T
        return field[row, column]

    def mask(self, outlines: list[list[float]], values: list[int] | None = None) -> np.ndarray:
        """Fill polygons (flat x, y lists in units), smooth-edged: float32 [n, n] in [0, 1]."""
        scale = self.unit * _OVERSAMPLE
        layer = Image.new("L", (self.size * _OVERSAMPLE, self.size * _OVERSAMPLE))
        draw = ImageDraw.Draw(layer)
        for index, outline in enumerate(outlines):
            draw.polygon([scale * value for value in outline], fill=255 if values is None else values[index])
        return np.asarray(layer.reduce(_OVERSAMPLE), np.float32) / 255

    def blobs(
        self,
        places: np.ndarray,
        radius: float | np.ndarray,
        stretch: float | np.ndarray = 1.0,
        angle: float | np.ndarray = 0.0,
        roughness: float = 0.08,
        corners: int = 10,
    ) -> list[list[float]]:
        """Outlines of ellipses, long axis ``radius * stretch`` at `angle` (radians), with uneven rims."""
        count = len(places)
        turn = np.arange(corners) * (2 * np.pi / corners)
        uneven = 1 + roughness * self.rng.standard_normal((count, corners))
        radius, stretch, angle = (np.broadcast_to(value, (count,))[:, None] for value in (radius, stretch, angle))
        along, across = np.cos(turn) * radius * stretch * uneven, np.sin(turn) * radius * uneven
        x = places[:, :1] + along * np.cos(angle) - across * np.sin(angle)
        y = places[:, 1:] + along * np.sin(angle) + across * np.cos(angle)
        return np.stack([x, y], 2).reshape(count, 2 * corners).tolist()

    def nuclei(
        self,
        places: np.ndarray,
        radius: float,
        stretch: float | np.ndarray = 1.2,
        angle: float | np.ndarray | None = None,
        *,
        dark: float = 1.5,
        vary: float = 0.12,
        vesicular: bool = False,
    ) -> None:
        """Add nuclei with chromatin texture; vesicular ones have a pale inside, a dark rim and a nucleolus."""
        count = len(places)
        if not count:
            return
        if angle is None:
            angle = self.rng.uniform(0, np.pi, count)
        sizes = radius * np.exp(vary * self.rng.standard_normal(count))
        values = np.clip(self.rng.normal(215, 22, count), 120, 255).astype(int).tolist()
        body = self.mask(self.blobs(places, sizes, stretch, angle), values)
        texture = 1 + 0.16 * self.grain() + 0.12 * self.noise(2.2)
        if vesicular:
            inner = self.mask(self.blobs(places, sizes * 0.66, stretch, angle))
            nucleoli = self.mask(self.blobs(places + self.rng.uniform(-0.5, 0.5, places.shape), radius * 0.24))
            texture = texture * (1 - 0.42 * inner) + 0.55 * nucleoli
        self.dyes[H] = self.dyes[H] * (1 - body) + dark * body * texture
        self.dyes[E] *= 1 - 0.6 * body
        self.dyes[M] *= 1 - body

    def cells(self, spacing: float, jitter: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Polygonal cells: (centres, distance to the nearest, how much nearer it is than the second: 0 at a wall)."""
        places = self.points(spacing, jitter, margin=spacing)
        reach = 1.8 * spacing  # farther centres are never the second nearest
        warped_x = self.x + 0.10 * spacing * self.noise(0.7 * spacing)  # walls bend
        warped_y = self.y + 0.10 * spacing * self.noise(0.7 * spacing)
        nearest = np.full((self.size, self.size), reach, np.float32)
        second = nearest.copy()
        for x, y in places.tolist():
            rows = slice(max(0, int((y - reach) * self.unit)), max(0, int((y + reach) * self.unit)))
            columns = slice(max(0, int((x - reach) * self.unit)), max(0, int((x + reach) * self.unit)))
            distance = np.hypot(warped_x[rows, columns] - x, warped_y[rows, columns] - y)
            near, far = nearest[rows, columns], second[rows, columns]
            np.minimum(far, np.maximum(near, distance), out=far)
            np.minimum(near, distance, out=near)
        return places, nearest, second - nearest

    def fibres(self, angle: float, wave: float, wavelength: float, period: float) -> tuple[np.ndarray, np.ndarray]:
        """Parallel strands: (ripple in [-1, 1], local direction in radians); `wave` units of sideways swing."""
        across = self.y * math.cos(angle) - self.x * math.sin(angle)
        swing = wave * self.noise(wavelength)
        field = across + swing
        slope_y, slope_x = np.gradient(field, 1 / self.unit)
        phase = field * (2 * np.pi / period)
        # Two unequal strands whose weights drift: one sine alone looks like a zebra.
        weight = 0.5 + 0.35 * np.tanh(self.noise(15.0))
        ripple = weight * np.sin(phase + 0.9 * self.noise(11.0)) + (1 - weight) * np.sin(
            1.73 * phase + self.noise(18.0)
        )
        return ripple, np.arctan2(-slope_x, slope_y)

    def replace(self, inside: np.ndarray, **levels: float) -> None:
        """Inside a mask, set the dyes h, e, m, b to levels (0 where not named)."""
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        if not len(rows):
            return
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        wanted = np.array([levels.get(name, 0.0) for name in "hemb"], np.float32)[:, None, None]
        part = self.dyes[:, *box]
        part += inside[box] * (wanted - part)


def soft(depth: np.ndarray, width: float) -> np.ndarray:
    """0 outside, 1 inside, a ramp of `width` units between."""
    return np.clip(depth / width + 0.5, 0, 1).astype(np.float32)


def make_stain(level: float, rng: np.random.Generator) -> Stain:
    """Draw a slide's stain around an overall strength `level` (1 is usual)."""
    strength = (level * np.exp(rng.normal(0, (0.07, 0.09, 0.10, 0.05)))).astype(np.float32)
    density = _DENSITY * np.exp(rng.normal(0, 0.07, _DENSITY.shape)).astype(np.float32)
    light = 1 - rng.uniform(0.0, 0.06, 3).astype(np.float32) * np.array([0.6, 1.0, 0.7], np.float32)
    return Stain(strength, density, light)


def stain(dyes: np.ndarray, how: Stain, rng: np.random.Generator) -> Image.Image:
    """Dye maps to an RGB image: absorption, a slightly soft focus and sensor noise."""
    amounts = np.maximum(dyes, 0) * how.strength[:, None, None]
    light = how.light * np.exp(-np.tensordot(amounts, how.density, (0, 0)))
    image = Image.fromarray((light * 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.25, 0.6)) * dyes.shape[1] / FIELD))
    noisy = np.asarray(image, np.float32) + rng.standard_normal((*dyes.shape[1:], 1), np.float32) * 2
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
