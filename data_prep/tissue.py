"""Draws H&E-like tissue: one function a tissue, one table of them.

Owns the pictures; the brushes are `data_prep.canvas`'s, and what is drawn, in which words and for which split
is `data_prep.simulate`'s. Lengths are in units of 1/96 of the tile's side; a lymphocyte's nucleus is about 4.5.
Nothing here claims to be anatomy: the tissues look different in the ways their names promise, and no more.
"""

import math
from collections.abc import Callable

import numpy as np

from data_prep.canvas import FIELD, B, Canvas, E, H, M, soft


def draw_adipose(canvas: Canvas, variant: str) -> None:
    """Empty cells with thin walls and flattened nuclei in them."""
    spacing = 15.0 if variant == "small" else 29.0
    _, _, gap = canvas.cells(spacing, 0.26)
    width = 1.5 + 0.35 * canvas.noise(14.0)
    wall = np.exp(-((gap / width) ** 2))
    canvas.dyes[E] = 0.03 + 0.62 * wall * (1 + 0.15 * canvas.noise(5.0))
    canvas.dyes[H] = 0.10 * wall
    corner = canvas.points(20.0, 0.5)
    corner = corner[canvas.at(gap, corner) < 1.6]
    canvas.nuclei(corner, 1.2, 2.4, dark=1.4)


def draw_stroma(canvas: Canvas, variant: str) -> None:
    """Wavy collagen with spindle nuclei."""
    _fill_stroma(canvas, dense=variant == "dense")


def draw_smooth_muscle(canvas: Canvas, variant: str) -> None:
    """Fascicles: straight red fibres with cigar-shaped nuclei, or their cross sections."""
    rng = canvas.rng
    if variant == "crosswise":
        places, nearest, gap = canvas.cells(8.5, 0.27)
        body = 1 - np.exp(-((gap / 1.1) ** 2))
        canvas.dyes[E] = body * (0.92 + 0.10 * canvas.noise(9.0) + 0.05 * canvas.grain()) - 0.03 * nearest * body
        canvas.dyes[H] = 0.10 + 0.03 * canvas.noise(20.0)
        canvas.nuclei(places[rng.random(len(places)) < 0.42], 1.7, 1.15, dark=1.35)
        return
    ripple, direction = canvas.fibres(rng.uniform(0, np.pi), 2.2, 45.0, 6.5)
    cleft = np.clip(-4 * (ripple + 0.62), 0, 1)
    canvas.dyes[E] = (0.88 + 0.14 * ripple + 0.07 * canvas.noise(3.0)) * (1 - 0.55 * cleft)
    canvas.dyes[H] = 0.12 + 0.03 * canvas.noise(20.0)
    places = canvas.points(12.5, 0.45)
    canvas.nuclei(places, 1.25, rng.uniform(3.4, 5.2, len(places)), canvas.at(direction, places), dark=1.25, vary=0.08)


def draw_lymphocytes(canvas: Canvas, variant: str) -> None:
    """Small round dark nuclei: sheets, or a follicle with a pale centre."""
    canvas.dyes[E] = 0.30 + 0.05 * canvas.noise(8.0)
    canvas.dyes[H] = 0.16 + 0.05 * canvas.noise(10.0)
    places = canvas.points(5.9, 0.24)
    if variant == "follicle":
        centre = canvas.rng.uniform(36, 60, 2)
        distance = np.hypot(*(places - centre).T) + canvas.rng.normal(0, 1.5, len(places))
        pale = soft(28 - np.hypot(canvas.x - centre[0], canvas.y - centre[1]), 5.0)
        canvas.dyes[H] -= 0.07 * pale
        large = canvas.points(8.6, 0.28)
        large = large[np.hypot(*(large - centre).T) < 25]
        canvas.nuclei(large, 2.5, 1.2, dark=0.95, vesicular=True)
        places = places[distance > 26]
    canvas.nuclei(places, 2.15, 1.08, dark=1.75, vary=0.09)


def draw_mucus(canvas: Canvas, variant: str) -> None:
    """Pale blue pools with wisps; with or without floating clusters of cells."""
    wisps, _ = canvas.fibres(canvas.rng.uniform(0, np.pi), 9.0, 30.0, 11.0)
    canvas.dyes[M] = 0.30 + 0.07 * wisps + 0.10 * canvas.noise(22.0) + 0.03 * canvas.noise(3.0)
    canvas.dyes[E] = 0.02 + 0.12 * np.exp(-((canvas.noise(30.0) / 0.05) ** 2))
    if variant == "floating":
        centres = canvas.points(36.0, 0.25)
        radii = canvas.rng.uniform(6, 9.5, len(centres))
        clusters = canvas.mask(canvas.blobs(centres, radii, 1.25, 0.5, 0.12, 14))
        canvas.replace(clusters, h=0.20, e=0.55)
        canvas.nuclei(_inside(canvas, clusters, 5.6), 2.1, 1.2, dark=1.3)


def draw_necrosis(canvas: Canvas, variant: str) -> None:
    """Granular pink debris, with nuclear dust or with the ghosts of cells."""
    clumps = canvas.noise(7.0) + 0.7 * canvas.noise(3.2)
    canvas.dyes[E] = np.maximum(0.05, 0.55 + 0.17 * clumps + 0.11 * canvas.grain())
    canvas.dyes[H] = np.maximum(0.0, 0.10 + 0.05 * canvas.noise(14.0) + 0.05 * canvas.grain())
    if variant == "ghosts":
        _, nearest, gap = canvas.cells(9.5, 0.26)
        canvas.dyes[E] *= 1 - 0.62 * np.exp(-((gap / 1.3) ** 2))
        canvas.dyes[H] += 0.20 * np.exp(-((nearest / 2.3) ** 2))
        return
    dust = canvas.points(5.4, 0.5)
    dust = dust[canvas.at(canvas.noise(24.0), dust) > -0.25]
    canvas.nuclei(dust, 0.85, 1.3, dark=1.7, vary=0.4)


def draw_normal_mucosa(canvas: Canvas, variant: str) -> None:
    """Regular crypts with basal nuclei and goblet cells in a cellular lamina propria; cut across or lengthwise."""
    rng = canvas.rng
    canvas.dyes[E] = 0.34 + 0.07 * canvas.noise(7.0)
    canvas.dyes[H] = 0.10 + 0.03 * canvas.noise(9.0)
    canvas.nuclei(canvas.points(8.0, 0.42), 1.6, 1.25, dark=1.4)
    turn = rng.uniform(0, np.pi)
    if variant == "crosswise":
        centres, half = canvas.points(35.0, 0.07, margin=16), 0.0
    else:
        spots = np.arange(-2, 3) * 31.0 + rng.uniform(-8, 8)
        centres, half = 48 + np.stack([-np.sin(turn) * spots, np.cos(turn) * spots], 1), 90.0
    bend = 2.2 * canvas.noise(45.0)
    goblets, nuclei = [], []
    for centre in centres:
        radius = 13.5 * rng.uniform(0.9, 1.08)
        _fill_crypt(canvas, centre, radius, half, turn, bend)
        goblets.append(_ring(rng, centre, radius * 0.58, 5.6, half, turn))
        nuclei.append(_ring(rng, centre, radius * 0.87, 3.7, half, turn))
    across = np.array([-math.sin(turn), math.cos(turn)])
    goblet, nucleus = np.concatenate(goblets), np.concatenate(nuclei)
    goblet = goblet[rng.random(len(goblet)) < 0.85]
    for ring in (goblet, nucleus):
        ring[:, :2] -= canvas.at(bend, ring[:, :2])[:, None] * across
    canvas.replace(canvas.mask(canvas.blobs(goblet[:, :2], 2.2, 1.45, goblet[:, 2])) * 0.9, m=0.26, e=0.02)
    canvas.nuclei(nucleus[:, :2], 1.35, 1.35, nucleus[:, 2], dark=1.45, vary=0.08)


def draw_adenocarcinoma(canvas: Canvas, variant: str) -> None:
    """Atypical epithelium in reactive stroma: irregular glands, cribriform islands or solid nests."""
    rng = canvas.rng
    _fill_stroma(canvas, dense=True)
    spacing, low, high = {"glands": (44, 17, 21), "cribriform": (72, 34, 38), "solid": (50, 19, 23)}[variant]
    centres = canvas.points(spacing, 0.12, margin=16)
    islands = canvas.mask([_lobes(rng, centre, rng.uniform(low, high)) for centre in centres])
    holes = np.zeros((0, 2))
    if variant == "glands":
        holes = centres
    elif variant == "cribriform":
        holes = canvas.points(18.5, 0.12)
        holes = holes[_nearest(holes, centres)[0] < 27]
    low, high = (6.0, 9.0) if variant == "glands" else (3.8, 5.6)
    lumens = canvas.mask([_lobes(rng, hole, rng.uniform(low, high)) for hole in holes])
    canvas.replace(islands, h=0.30, e=0.55)
    canvas.dyes[H] += islands * 0.06 * canvas.noise(6.0)
    canvas.replace(lumens, e=0.06, m=0.04)
    places = _inside(canvas, islands * (1 - lumens), 6.2, 0.26)
    # Nuclei of a gland stand like the spokes of a wheel.
    angle = _nearest(places, centres)[1] if variant == "glands" else None
    stretch = 1.2 if variant == "solid" else 1.45
    canvas.nuclei(places, 2.3, stretch, angle, dark=1.5, vary=0.2, vesicular=True)


def draw_vessel(canvas: Canvas, variant: str) -> None:
    """A vessel with a muscular wall in loose stroma, full of red cells or empty; or many capillaries."""
    rng = canvas.rng
    _fill_stroma(canvas, dense=False)
    if variant == "capillaries":
        centres = canvas.points(25.0, 0.22, margin=4)
        radii, wall = rng.uniform(4.6, 6.6, len(centres)), 1.2
    else:
        centres = rng.uniform(40, 56, (1, 2))
        radii, wall = rng.uniform(20, 25, 1), rng.uniform(7.5, 10)
    lumens, lining, media = np.zeros_like(canvas.x), [], []
    for centre, radius in zip(centres, radii.tolist(), strict=True):
        distance = np.hypot(canvas.x - centre[0], canvas.y - centre[1]) + 0.06 * radius * canvas.noise(26.0)
        rings = np.sin(distance * (2 * np.pi / 4.2)) if variant != "capillaries" else 0.0
        canvas.replace(soft(radius + wall - distance, 1.0), h=0.10, e=0.85)
        canvas.dyes[E] += 0.10 * rings * soft(radius + wall - distance, 1.0)
        lumens = np.maximum(lumens, soft(radius - distance, 1.0))
        lining.append(_ring(rng, centre, radius + 0.3, 8.0, 0.0, 0.0))
        media.append(_ring(rng, centre, radius + wall * 0.55, 7.0, 0.0, 0.0))
    canvas.replace(lumens, e=0.01)
    inner, outer = np.concatenate(lining), np.concatenate(media)
    canvas.nuclei(inner[:, :2], 0.85, 2.6, inner[:, 2] + np.pi / 2, dark=1.5)
    if variant != "capillaries":
        canvas.nuclei(outer[:, :2], 1.0, 3.2, outer[:, 2] + np.pi / 2, dark=1.25)
    if variant != "empty":
        places = _inside(canvas, lumens, 4.4, 0.22)
        discs = canvas.mask(canvas.blobs(places, 2.15, 1.08, 0.4, 0.05)) * lumens
        canvas.replace(discs, b=0.95)
        canvas.dyes[B] -= 0.22 * discs * canvas.mask(canvas.blobs(places, 0.9))


# name of the tissue -> (brush, its variants)
TISSUES: dict[str, tuple[Callable[[Canvas, str], None], tuple[str, ...]]] = {
    "adipose": (draw_adipose, ("small", "large")),
    "lymphocytes": (draw_lymphocytes, ("sheets", "follicle")),
    "mucus": (draw_mucus, ("acellular", "floating")),
    "smooth_muscle": (draw_smooth_muscle, ("lengthwise", "crosswise")),
    "stroma": (draw_stroma, ("loose", "dense")),
    "necrosis": (draw_necrosis, ("dust", "ghosts")),
    "normal_mucosa": (draw_normal_mucosa, ("crosswise", "lengthwise")),
    "adenocarcinoma": (draw_adenocarcinoma, ("glands", "cribriform", "solid")),
    "vessel": (draw_vessel, ("full", "empty", "capillaries")),
}

# Where a second tissue may lie, and around which figures: in the middle it would cover them.
LAYOUTS = ("edge", "corner", "band", "centre")
CENTRAL = (("lymphocytes", "follicle"), ("vessel", "full"), ("vessel", "empty"))


def draw_tile(
    primary: tuple[str, str], second: tuple[str, str] | None, layout: str, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw one tissue, and a second one in part of the field: dye maps, float32 [4, size, size]."""
    dyes = _draw(primary, size, rng)
    if second is not None:
        region = _region(Canvas(size, rng), layout)
        dyes = dyes + region * (_draw(second, size, rng) - dyes)
    return dyes


def _draw(tissue: tuple[str, str], size: int, rng: np.random.Generator) -> np.ndarray:
    canvas = Canvas(size, rng)
    brush, variants = TISSUES[tissue[0]]
    if tissue[1] not in variants:
        raise ValueError(f"variant of {tissue[0]}: expected one of {', '.join(variants)}, got {tissue[1]!r}")
    brush(canvas, tissue[1])
    return canvas.dyes


def _region(canvas: Canvas, layout: str) -> np.ndarray:
    """Where the second tissue lies, about a quarter of the field, with a wavy border: float32 [n, n]."""
    rng = canvas.rng
    angle = rng.uniform(0, 2 * np.pi)
    along = (canvas.x - 48) * math.cos(angle) + (canvas.y - 48) * math.sin(angle)
    wavy = 4.0 * canvas.noise(26.0)
    if layout == "edge":
        side = (canvas.x, canvas.y, FIELD - canvas.x, FIELD - canvas.y)[rng.integers(4)]
        depth = rng.uniform(25, 31) - side
    elif layout == "corner":
        corner_x, corner_y = (FIELD * float(side) for side in rng.integers(2, size=2))
        depth = rng.uniform(47, 54) - np.hypot(canvas.x - corner_x, canvas.y - corner_y)
    elif layout == "band":
        depth = rng.uniform(11, 14) - np.abs(along)
    elif layout == "centre":
        depth = rng.uniform(23, 28) - np.hypot(canvas.x - 48, canvas.y - 48)
    else:
        raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
    return soft(depth + wavy, 1.2)


def _inside(canvas: Canvas, mask: np.ndarray, spacing: float, jitter: float = 0.3) -> np.ndarray:
    places = canvas.points(spacing, jitter)
    return places[canvas.at(mask, places) > 0.6]


def _fill_stroma(canvas: Canvas, *, dense: bool) -> None:
    rng = canvas.rng
    ripple, direction = canvas.fibres(rng.uniform(0, np.pi), 6.5, 26.0, 7.5 if dense else 11.0)
    if dense:
        canvas.dyes[E] = 0.52 + 0.17 * ripple + 0.06 * canvas.noise(4.0)
    else:
        strands = np.maximum(0, ripple) ** 3
        canvas.dyes[E] = 0.13 + 0.34 * strands + 0.04 * canvas.noise(6.0)
    canvas.dyes[H] = 0.04 + 0.02 * canvas.noise(12.0)
    places = canvas.points(14.0 if dense else 18.0, 0.45)
    stretch = rng.uniform(2.8, 4.6, len(places))
    canvas.nuclei(places, 1.05, stretch, canvas.at(direction, places), dark=1.35, vary=0.15)


def _fill_crypt(canvas: Canvas, centre: np.ndarray, radius: float, half: float, turn: float, bend: np.ndarray) -> None:
    """Cytoplasm and lumen of one crypt; `half` stretches the round section along `turn` into a tube."""
    along = (canvas.x - centre[0]) * math.cos(turn) + (canvas.y - centre[1]) * math.sin(turn)
    across = (canvas.y - centre[1]) * math.cos(turn) - (canvas.x - centre[0]) * math.sin(turn)
    distance = np.hypot(np.maximum(np.abs(along) - half, 0), across + bend)
    canvas.replace(soft(radius - distance, 1.0), h=0.12, e=0.40)
    canvas.replace(soft(radius * 0.20 - distance + 0.8 * canvas.noise(14.0), 1.2), e=0.05, m=0.12)


def _ring(
    rng: np.random.Generator, centre: np.ndarray, radius: float, spacing: float, half: float, turn: float
) -> np.ndarray:
    """Places `spacing` apart on a circle, or on both sides of a tube: [N, 3] of (x, y, outward angle)."""
    if half:
        step = np.arange(-70, 70, spacing) + rng.uniform(0, spacing)
        side = np.repeat([radius, -radius], len(step))
        step = np.tile(step, 2) + rng.normal(0, 0.25, len(side))
        x = centre[0] + step * math.cos(turn) - side * math.sin(turn)
        y = centre[1] + step * math.sin(turn) + side * math.cos(turn)
        return np.stack([x, y, np.full(len(x), turn + np.pi / 2)], 1)
    count = max(4, round(2 * np.pi * radius / spacing))
    angle = np.arange(count) * (2 * np.pi / count) + rng.normal(0, 0.06, count) + rng.uniform(0, 1)
    return np.stack([centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle), angle], 1)


def _lobes(rng: np.random.Generator, centre: np.ndarray, radius: float, uneven: float = 0.14) -> list[float]:
    """The outline of an irregular closed shape."""
    turn = np.arange(28) * (2 * np.pi / 28)
    rim = np.ones(28)
    for order in (2, 3, 5):
        rim += uneven / order**0.5 * rng.normal() * np.cos(order * turn + rng.uniform(0, 2 * np.pi))
    x, y = centre[0] + radius * rim * np.cos(turn), centre[1] + radius * rim * np.sin(turn)
    return np.stack([x, y], 1).ravel().tolist()


def _nearest(places: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each place, the distance to the nearest centre and the angle seen from it."""
    offset = places[:, None] - centres
    distance = np.hypot(offset[..., 0], offset[..., 1])
    row, best = np.arange(len(places)), distance.argmin(1)
    return distance[row, best], np.arctan2(offset[row, best, 1], offset[row, best, 0])
