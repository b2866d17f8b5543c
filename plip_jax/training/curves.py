"""The picture of a run: its curves, drawn from ``metrics.jsonl``."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plip_jax.training.logging import headlines, read_metrics

CURVES_FILE = "curves.png"


def draw_curves(workdir: Path) -> Path | None:
    """Draw loss, accuracy, rate, evaluations and speed of a run into ``curves.png``; None without metrics."""
    # Slow to import, and wanted once a run.
    from matplotlib.figure import Figure

    lines = read_metrics(workdir)
    trained = [line for line in lines if "loss" in line]
    if not trained:
        return None
    evaluated = sorted({name for line in lines for name in line if name.startswith("eval/")})
    figure = Figure(figsize=(15, 7), layout="constrained")
    axes = figure.subplots(2, 3)
    _plot(axes[0, 0], trained, ["loss"], "Contrastive loss of the batch")
    _plot(axes[0, 1], trained, ["image_to_text_accuracy", "text_to_image_accuracy"], "Accuracy within the batch")
    _plot(axes[1, 0], trained, ["learning_rate"], "Learning rate")
    _plot(axes[1, 1], lines, headlines(evaluated), "Held-out evaluation", marker="o", none="no evaluation set")
    _plot(axes[0, 2], trained, ["pairs_per_second"], "Pairs a second")
    _plot(axes[1, 2], trained, ["mfu", "live_token_share", "data_wait_share"], "MFU, live tokens, waiting for data")
    axes[0, 2].set_ylim(bottom=0)
    axes[1, 2].set_ylim(0, 1)
    figure.suptitle(f"{workdir.name}: {trained[-1]['step']} steps")
    path = workdir / CURVES_FILE
    temporary = path.with_suffix(".tmp")
    figure.savefig(temporary, dpi=120, format="png")
    os.replace(temporary, path)
    return path


def _plot(
    axes: Any,
    lines: Sequence[dict[str, Any]],
    names: Sequence[str],
    title: str,
    marker: str = "",
    none: str = "not measured",
) -> None:
    for name in names:
        points = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), int | float)]
        if points:
            label = name.removeprefix("eval/").replace("_", " ")
            axes.plot(*zip(*points, strict=True), marker=marker, markersize=4, label=label, linewidth=1.4)
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    if len(names) > 1 or marker:
        if axes.lines:
            axes.legend(fontsize=8)
        else:
            axes.text(0.5, 0.5, none, ha="center", va="center", transform=axes.transAxes)
