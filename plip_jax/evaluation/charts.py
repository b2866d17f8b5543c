"""Charts of scores: intervals beside each other, retrieval curves, fine-tuning curves, reliability.

matplotlib ``Figure`` objects without pyplot, so that drawing one changes nothing in the process and needs no
display. A model keeps its colour and its marker in every chart of a report; published numbers are hollow, so that
nobody takes them for ours.
"""

import dataclasses
import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

TEXT, QUIET, GRID = "#1f2328", "#57606a", "#eaeef2"
_DPI = 110
# After Okabe and Ito, dark enough on white and told apart by the colour-blind; the markers need no colour.
_STYLES = (("#0072b2", "o"), ("#d55e00", "s"), ("#007a5a", "^"), ("#a0417a", "D"), ("#5d5d5d", "v"), ("#7a5c00", "P"))


@dataclasses.dataclass(frozen=True)
class Score:
    """One value in a chart.

    Attributes:
        name: of the model, or of whose number it is.
        value: the score.
        low: lower end of its interval; None for none.
        high: upper end.
        is_published: drawn hollow.
        is_baseline: of no model (the constant class): a grey cross.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    is_published: bool = False
    is_baseline: bool = False


_DASHES = ("--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)))


def styles_of(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each name, in order."""
    return dict(zip(names, itertools.cycle(_STYLES), strict=False))


def scores_png(groups: Mapping[str, Sequence[Score]], *, title: str, axis: str) -> bytes:
    """Draw scores with intervals, a group of lines for each task.

    Args:
        groups: by task, in order; the constant class and published numbers are scores like others.
        title: the line on top.
        axis: what is scored.
    """
    lines = sum(len(scores) + 1 for scores in groups.values())
    height = 1.3 + 0.27 * lines
    figure = Figure(figsize=(9.2, height))
    axes = figure.add_axes((0.36, 0.55 / height, 0.61, 1 - 1.15 / height))
    models = [s.name for scores in groups.values() for s in scores if not (s.is_published or s.is_baseline)]
    styles = styles_of(list(dict.fromkeys(models)))
    place, ticks, names = 0.0, [], []
    for task, scores in groups.items():
        axes.text(-0.55, place, task, fontsize=9.5, fontweight="bold", color=TEXT, va="center",
                  transform=axes.get_yaxis_transform())  # fmt: skip
        for score in scores:
            place += 1
            style = (QUIET, "o") if score.is_published else (QUIET, "x") if score.is_baseline else styles[score.name]
            _draw_score(axes, place, score, style)
            ticks.append(place)
            names.append(score.name + (" (published)" if score.is_published else ""))
        place += 1
    axes.set_yticks(ticks, names, fontsize=9)
    axes.set_ylim(place - 0.4, -0.6)
    values = [v for scores in groups.values() for s in scores for v in (s.value, s.low, s.high) if v is not None]
    axes.set_xlim(min(0.0, *values) - 0.02, max(1.0, *values) + 0.02)
    axes.set_xlabel(axis, fontsize=9.5, color=TEXT)
    _quiet_frame(axes)
    axes.grid(axis="x", color=GRID)
    figure.text(0.015, 1 - 0.14 / height, title, fontsize=12, color=TEXT, va="top")
    return png(figure)


def _draw_score(axes: Axes, place: float, score: Score, style: tuple[str, str]) -> None:
    colour, marker = style
    if score.low is not None and score.high is not None:
        axes.plot([score.low, score.high], [place, place], color=colour, linewidth=1.8, solid_capstyle="butt")
    face = "white" if score.is_published else colour
    axes.plot([score.value], [place], marker=marker, markersize=6, color=colour, markerfacecolor=face)


@dataclasses.dataclass(frozen=True)
class Curve:
    """A line in a chart.

    Attributes:
        name: of the model, or of what is no model (chance, published).
        x: of its points.
        y: of its points.
        low: lower edge of a band around it; empty for none.
        high: upper edge.
        is_model: False draws it dashed and grey.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    is_model: bool = True


def curves_png(
    panels: Mapping[str, Sequence[Curve]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    is_log_x: bool = True,
    diagonal: bool = False,
) -> bytes:
    """Draw curves, a panel for each group.

    Args:
        panels: by name, in order, at most three fit.
        title: the line on top.
        x_label: of the abscissa.
        y_label: of the ordinate.
        is_log_x: a logarithmic abscissa.
        diagonal: draw y = x.
    """
    looks = _looks_of([curve for curves in panels.values() for curve in curves])
    width = max(1.2 + 4.2 * len(panels), 5.4)
    columns = max(1, int(width / 2.4))  # of the legend; a name takes about so many inches
    legend = 0.24 * -(-len(looks) // columns)
    height = 4.1 + legend
    figure = Figure(figsize=(width, height))
    figure.text(0.015, 1 - 0.12 / height, title, fontsize=12, color=TEXT, va="top")
    bottom = (0.7 + legend) / height
    grid = figure.add_gridspec(
        1, len(panels), left=0.75 / width, right=0.98, top=1 - 0.75 / height, bottom=bottom, wspace=0.16
    )
    for column, (name, curves) in enumerate(panels.items()):
        axes = figure.add_subplot(grid[0, column])
        if diagonal:
            axes.plot([0, 1], [0, 1], color="#c8ccd1", linewidth=1)
        for curve in curves:
            if len(curve.low):
                axes.fill_between(
                    curve.x, curve.low, curve.high, color=looks[curve.name]["color"], alpha=0.15, linewidth=0
                )
            axes.plot(curve.x, curve.y, markevery=max(1, len(curve.x) // 8), **looks[curve.name])
        if is_log_x:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axes.set_ylim(-0.02, 1.02)
        axes.set_title(name, fontsize=10, color=TEXT, loc="left")
        axes.set_xlabel(x_label, fontsize=9.5, color=TEXT)
        if column == 0:
            axes.set_ylabel(y_label, fontsize=9.5, color=TEXT)
        _quiet_frame(axes)
        axes.grid(color=GRID)
    handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    figure.legend(handles=handles, loc="lower left", ncols=columns, fontsize=9, frameon=False,
                  bbox_to_anchor=(0.01, 0.0))  # fmt: skip
    return png(figure)


def _looks_of(curves: Sequence[Curve]) -> dict[str, dict[str, Any]]:
    """How each curve is drawn, by name: models in colour with a marker, all else grey and dashed, each its own way."""
    styles = styles_of(list(dict.fromkeys(curve.name for curve in curves if curve.is_model)))
    others = dict.fromkeys(curve.name for curve in curves if not curve.is_model)
    looks: dict[str, dict[str, Any]] = {
        name: {"color": colour, "marker": marker, "linestyle": "-", "markerfacecolor": colour}
        for name, (colour, marker) in styles.items()
    }
    for name, dashes in zip(others, itertools.cycle(_DASHES), strict=False):
        looks[name] = {"color": QUIET, "marker": "", "linestyle": dashes, "markerfacecolor": "white"}
    return {name: {**look, "linewidth": 1.8, "markersize": 5} for name, look in looks.items()}


def _quiet_frame(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, color="#c8ccd1", labelcolor=TEXT)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#c8ccd1")


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, white behind."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white")
    return buffer.getvalue()
