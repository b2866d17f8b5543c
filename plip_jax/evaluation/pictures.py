"""Pictures with images or cells: a confusion matrix, the images retrieved for queries, a WiSE-FT sweep.

Pictures are matplotlib ``Figure`` objects without pyplot, so that drawing one changes nothing in the process and
needs no display.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plip_jax.evaluation import statistics
from plip_jax.evaluation.charts import QUIET, TEXT, png
from plip_jax.evaluation.task import GalleryRow

_RIGHT, _WRONG = "#1a7f37", "#c8ccd1"


def confusion_png(report: Mapping[str, Any], *, title: str) -> bytes:
    """Draw a classification report's confusion matrix: counts, shaded by the share of each actual class."""
    labels = report["confusion"]["labels"]
    names = report.get("prompts", {}).get("classes", {label: [label] for label in labels})
    counts = np.asarray(report["confusion"]["counts"])
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    longest = max(len(line) for label in labels for line in _wrapped(label, 14))
    cell = max(0.62, 0.2 + 0.075 * longest)  # inches; a column holds its label
    width, height = max(cell * len(labels), 2.6), max(0.6 * len(labels), 1.6)
    figure = Figure(figsize=(width + 3.0, height + 1.75))
    axes = figure.add_axes(
        (2.75 / (width + 3.0), 0.7 / (height + 1.75), width / (width + 3.0), height / (height + 1.75))
    )
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(*counts.shape):
        if totals[row, 0]:
            color = "white" if shares[row, column] > 0.55 else (TEXT if counts[row, column] else "#9aa0a6")
            axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=color, fontsize=9)
        elif column == 0:
            axes.text(-0.4, row, "no examples in the data", va="center", color=QUIET, fontsize=9, style="italic")
    ticks = range(len(labels))
    axes.set_xticks(ticks, ["\n".join(_wrapped(label, 14)) for label in labels], fontsize=9)
    rows = [_row_name(label, names[label][0], int(total)) for label, total in zip(labels, totals[:, 0], strict=True)]
    axes.set_yticks(ticks, rows, fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(len(labels) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(labels) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    # Of the matrix itself: where a report means over several seeds, the matrix is of one of them.
    metrics = statistics.classification_metrics(counts)
    constant, of_constant = statistics.best_constant_class(counts)
    lines = (
        f"model: weighted F1 {metrics.weighted_f1:.3f}, balanced accuracy {metrics.balanced_accuracy:.3f}",
        f"always {labels[constant]}: weighted F1 {of_constant.weighted_f1:.3f}, "
        f"balanced accuracy {of_constant.balanced_accuracy:.3f}",
        "rows: actual class (examples), columns: predicted class; shade: share of the row",
    )
    left, inch = 0.15 / figure.get_figwidth(), 1 / figure.get_figheight()
    figure.text(left, 1 - 0.14 * inch, title, fontsize=12, color=TEXT, va="top")
    figure.text(left, 1 - 0.4 * inch, "\n".join(lines), fontsize=9, color=QUIET, va="top", linespacing=1.3)
    return png(figure)


def gallery_png(
    gallery: Sequence[GalleryRow], images: Mapping[str, np.ndarray], *, num_candidates: int, title: str
) -> bytes:
    """Draw each query with its best images; right ones are framed and ticked.

    Args:
        gallery: the queries.
        images: uint8 [H, W, 3] by id: every shown image, the best right answer of each query, and the query itself
            where it is an image.
        num_candidates: images that were searched.
        title: the line on top.
    """
    num_shown = max(len(row.shown) for row in gallery)
    figure = Figure(figsize=(3.1 + 1.35 * (num_shown + 1.2), 0.8 + 1.62 * len(gallery)))
    grid = figure.add_gridspec(
        len(gallery),
        num_shown + 3,
        width_ratios=[2.2, *[1.0] * num_shown, 0.1, 1.0],
        left=0.015,
        right=0.985,
        top=1 - 0.85 / figure.get_figheight(),
        bottom=0.12 / figure.get_figheight(),
        wspace=0.08,
        hspace=0.22,
    )
    top = 1 - 0.12 / figure.get_figheight()
    figure.text(0.015, top, title, fontsize=12, color=TEXT, va="top")
    what = "image" if gallery[0].query_image else "caption"
    drawn = f"1 {what}" if len(gallery) == 1 else f"{len(gallery)} {what}s"
    note = (
        f"{drawn} drawn with a fixed seed, {num_candidates:,} images searched. Right answers are framed; "
        "where none is among the best, the first one stands at the right with its rank."
    )
    note = "\n".join(textwrap.wrap(note, int(figure.get_figwidth() / 0.07)))  # inches a character of 9 points
    figure.text(0.015, top - 0.26 / figure.get_figheight(), note, fontsize=9, color=QUIET, va="top")
    for line, row in enumerate(gallery):
        _draw_query(figure.add_subplot(grid[line, 0]), row, images.get(row.query_image))
        for column, name in enumerate(row.shown):
            is_right = name in row.right
            axes = figure.add_subplot(grid[line, column + 1])
            _draw_image(axes, images[name], f"{column + 1}" + (" ✓" if is_right else ""), is_right=is_right)
        if not set(row.shown) & set(row.right):
            axes = figure.add_subplot(grid[line, num_shown + 2])
            _draw_image(axes, images[row.best_right], f"{row.rank:,} ✓", is_right=True)
    return png(figure)


def wise_ft_png(sweep: Mapping[str, Any]) -> bytes:
    """Draw a `wise_ft.make_sweep`: the in-domain metric against the general one, a point an alpha."""
    figure = Figure(figsize=(6.6, 5.6))
    axes = figure.add_axes((0.12, 0.11, 0.84, 0.71))
    general, in_domain = ([point[role] for point in sweep["points"]] for role in ("general", "in_domain"))
    axes.plot(general, in_domain, color=_WRONG, linewidth=1.6, zorder=1)
    alphas = [point["alpha"] for point in sweep["points"]]
    axes.scatter(general, in_domain, c=alphas, cmap="viridis_r", vmin=-0.15, vmax=1, s=52, zorder=2)
    for alpha, x, y in zip(alphas, general, in_domain, strict=True):
        name = {0.0: "0: start", 1.0: "1: fine-tuned"}.get(alpha, f"{alpha:g}")
        beside = axes.annotate(name, (x, y), xytext=(8, 6), textcoords="offset points", fontsize=9, color=TEXT)
        beside.set_path_effects([patheffects.withStroke(linewidth=3, foreground="white")])  # readable on the line
    axes.set_xlabel(f"general: {_axis_name(sweep['general'])}", fontsize=10, color=TEXT)
    axes.set_ylabel(f"in-domain: {_axis_name(sweep['in_domain'])}", fontsize=10, color=TEXT)
    axes.margins(x=0.26, y=0.12)  # room for the names of the outermost points
    axes.grid(color="#eaeef2")
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, color=_WRONG)
    axes.spines[:].set_color(_WRONG)
    figure.text(0.02, 0.975, "WiSE-FT: weights between the start and the fine-tuned", fontsize=12, color=TEXT, va="top")
    start, end = (_short(sweep[side]["source"]) for side in ("start", "end"))
    note = f"start: {start}\nfine-tuned: {end}\nbeside each point: alpha, the share of the fine-tuned"
    figure.text(0.02, 0.925, note, fontsize=9, color=QUIET, va="top", linespacing=1.3)
    return png(figure)


def _axis_name(axis: Mapping[str, str]) -> str:
    better = " (lower is better)" if axis["metric"].endswith("rank") else ""
    return f"{axis['task']}, {axis['metric'].replace('_', ' ')}{better}"


def _short(source: str) -> str:
    """The end of a long path: what tells two runs apart."""
    return source if len(source) <= 72 else f"…{source[-71:]}"


def _row_name(label: str, class_name: str, total: int) -> str:
    is_said = label.replace("_", " ").lower() in class_name.lower()
    name = class_name if is_said else f"{class_name}, {label}"
    return "\n".join(_wrapped(f"{name} ({total:,})", 32))


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text.replace("_", " "), width) or [text]


def _draw_query(axes: Axes, row: GalleryRow, image: np.ndarray | None) -> None:
    axes.axis("off")
    if image is None:
        lines = textwrap.wrap(textwrap.shorten(row.query, 150, placeholder=" …"), 38)
    else:
        inset = axes.inset_axes((0, 0.32, 0.5, 0.68))
        inset.imshow(image, interpolation="lanczos")
        inset.set_axis_off()
        axes.text(0, 0.24, textwrap.shorten(row.query, 44, placeholder=" …"), fontsize=8, color=TEXT, va="top",
                  transform=axes.transAxes)  # fmt: skip
        lines = []
    axes.text(0, 0.98, "\n".join(lines), fontsize=9, color=TEXT, va="top", transform=axes.transAxes)
    note = f"first right answer: rank {row.rank:,}" + (f" ({len(row.right)} right)" if len(row.right) > 1 else "")
    axes.text(0, 0.02, note, fontsize=8, color=QUIET, va="bottom", transform=axes.transAxes)


def _draw_image(axes: Axes, image: np.ndarray, caption: str, *, is_right: bool) -> None:
    axes.imshow(image, interpolation="lanczos")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(caption, fontsize=8, pad=3, color=_RIGHT if is_right else QUIET)
    for spine in axes.spines.values():
        spine.set(linewidth=3 if is_right else 0.8, color=_RIGHT if is_right else _WRONG)
