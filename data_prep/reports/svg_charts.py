"""Small charts as inline SVG: the same numbers give the same text, and nothing is loaded from anywhere.

Each chart says in words what it shows (`label`, for those who do not see it). Colours stand in the charts themselves,
for not every program that prints a page applies its style sheet to them, and never carry a meaning alone.
"""

import html
from collections.abc import Sequence

from data_prep.reports.funnel import Step

KEPT_COLOUR, DROPPED_COLOUR = "#0b6e75", "#e3b6a6"
_INK, _FAINT, _AXIS, _GRID, _MEDIAN = "#1f2328", "#59636e", "#818b98", "#e3e8ed", "#9a3412"
_WIDTH = 860  # pixels, as all lengths here
_ROW = 22
_LETTER = 7.4  # a wide estimate of a letter of 12 pixels
_MAX_LABEL = 30  # letters


def bar_chart(items: Sequence[tuple[str, int]], *, label: str, width: int = _WIDTH) -> str:
    """Horizontal bars, one an item, with names at the left and numbers behind the bars."""
    left = 12 + _LETTER * max((min(len(name), _MAX_LABEL) for name, _ in items), default=0)
    scale = (width - left - 70) / (max((value for _, value in items), default=0) or 1)
    parts = []
    for row, (name, value) in enumerate(items):
        top = row * _ROW
        parts.append(_text(left - 8, top + 15, _shortened(name), anchor="end"))
        parts.append(_rect(KEPT_COLOUR, left, top + 4, value * scale, _ROW - 7))
        parts.append(_text(left + value * scale + 6, top + 15, f"{value:,}", colour=_FAINT))
    return _svg(width, len(items) * _ROW, label, parts)


def step_chart(steps: Sequence[Step], *, label: str, width: int = _WIDTH) -> str:
    """The stages of a funnel: what each kept beside what it dropped, both as parts of what came into the first."""
    left, right = 88, 200
    scale = (width - left - right) / (max((step.taken for step in steps), default=0) or 1)
    parts = []
    for row, step in enumerate(steps):
        top, dropped = row * _ROW, step.taken - step.kept
        parts.append(_text(left - 8, top + 15, step.stage, anchor="end"))
        parts.append(_rect(KEPT_COLOUR, left, top + 4, step.kept * scale, _ROW - 7))
        parts.append(_rect(DROPPED_COLOUR, left + step.kept * scale, top + 4, dropped * scale, _ROW - 7))
        lost = f", {dropped:,} dropped" if dropped else ""
        parts.append(_text(left + step.taken * scale + 6, top + 15, f"{step.kept:,} kept{lost}", colour=_FAINT))
    return _svg(width, len(steps) * _ROW, label, parts)


def column_chart(
    items: Sequence[tuple[str, int]],
    *,
    label: str,
    width: int = _WIDTH,
    height: int = 170,
    median: tuple[float, str] | None = None,
) -> str:
    """Columns over an axis.

    Args:
        items: Name and value of each; a column without a name has no tick.
        label: What the chart shows.
        width: Pixels.
        height: Pixels.
        median: Place of a line, counted in columns from the left edge of the first, and its words.
    """
    left, right, top, bottom = 58, 10, 20, 24
    base = height - bottom
    greatest = max((value for _, value in items), default=0) or 1
    scale = (base - top) / greatest
    step = (width - left - right) / max(len(items), 1)
    parts = []
    for value in _round_numbers(greatest):
        y = base - value * scale
        parts.append(_line(_GRID, left, y, width - right, y))
        parts.append(_text(left - 6, y + 4, f"{value:,}", anchor="end", colour=_FAINT))
    gap = min(1.5, step * 0.2)
    for place, (name, value) in enumerate(items):
        x = left + place * step
        if value:
            parts.append(_rect(KEPT_COLOUR, x + gap / 2, base - value * scale, step - gap, value * scale))
        if name:
            parts.append(_line(_AXIS, x + step / 2, base, x + step / 2, base + 4))
            parts.append(_text(x + step / 2, base + 16, name, anchor="middle", colour=_FAINT))
    parts.append(_line(_AXIS, left, base, width - right, base))
    if median is not None:
        x = left + median[0] * step
        parts.append(_line(_MEDIAN, x, top - 8, x, base))
        near_right = x > width - right - _LETTER * len(median[1]) - 8
        parts.append(_text(x - 5 if near_right else x + 5, top - 6, median[1], anchor="end" if near_right else "start"))
    return _svg(width, height, label, parts)


def _round_numbers(greatest: int) -> range:
    """One to four round numbers up to the greatest value."""
    step = 1
    while greatest // step > 4:
        step = step * 5 // 2 if str(step)[0] == "2" else step * 2
    return range(step, greatest + 1, step)


def _svg(width: int, height: int, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg role="img" aria-label="{html.escape(label)}" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="system-ui, sans-serif" font-size="12">{"".join(parts)}</svg>'
    )


def _rect(colour: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect fill="{colour}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _line(colour: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line stroke="{colour}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, words: str, *, anchor: str = "start", colour: str = _INK) -> str:
    return f'<text fill="{colour}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'


def _shortened(name: str) -> str:
    return name if len(name) <= _MAX_LABEL else f"{name[: _MAX_LABEL - 1]}…"
