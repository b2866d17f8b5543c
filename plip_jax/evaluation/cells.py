"""Numbers as the cells of tables, and the published ones to stand beside them."""

import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

NONE = "-"


def number(value: float | None) -> str:
    """Three digits behind the point; ranks and counts without."""
    if value is None or not math.isfinite(value):
        return NONE
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 2):
        return f"{int(value):,}"
    text = f"{value:,.3f}" if abs(value) < 100 else f"{value:,.1f}"
    return "0.000" if text == "-0.000" else text


def cell(value: Any) -> str:
    """A number or a text as a cell; nothing as a dash."""
    return (
        number(value)
        if isinstance(value, int | float) and not isinstance(value, bool)
        else str(value if value is not None else NONE)
    )


def with_interval(report: Mapping[str, Any], metric: str) -> str:
    """A metric's value and interval as a cell."""
    if metric not in report["metrics"]:
        return NONE
    found = report.get("bootstrap", {}).get("intervals", {}).get(metric)
    return number(report["metrics"][metric]) + (f" [{number(found[0])}, {number(found[1])}]" if found else "")


def load_published() -> dict[str, Any]:
    """The papers' own numbers, by set and kind of task, with their source."""
    return json.loads((resources.files("plip_jax.evaluation") / "published.json").read_text(encoding="utf-8"))


def published_scores(key: str, task_type: str) -> dict[str, dict[str, list[float]]]:
    """Published numbers of a set: metric -> whose -> [value] or [value, low, high]."""
    kind = "probe" if task_type in ("linear_probe", "published_probe") else task_type
    found = load_published()["sets"].get(key, {}).get(kind, {})
    return {} if kind == "fine_tune" else found


def published_curves(key: str, task_type: str) -> dict[str, dict[float, float]]:
    """Published numbers of a set against the share of the training data: whose -> share -> value."""
    found = load_published()["sets"].get(key, {}).get("fine_tune", {}) if task_type == "fine_tune" else {}
    return {whose: {float(fraction): value for fraction, value in of.items()} for whose, of in found.items()}


def published_cell(numbers: Sequence[float] | None) -> str:
    """[value] or [value, low, high] as a cell."""
    if not numbers:
        return NONE
    bounds = f" [{numbers[1]:.3f}, {numbers[2]:.3f}]" if len(numbers) == 3 else ""
    return f"{numbers[0]:.3f}{bounds}"
