"""The numbers of an ``evaluation.json`` that a model card shows, each with what speaks against it.

Owns the choice of the numbers and their caveats; the file's layout is `report_files`'s, the card's text is
`plip_jax.model_card`'s. No path is taken from the file: what a set is called is its name in the configuration.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

# Above a share's or a score's bound by the rounding of a sum, and no more.
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Leak:
    """What the comparison with the training images found in a set.

    Attributes:
        flagged: images that look like one of training.
        examples: images of the set.
    """

    flagged: int
    examples: int

    @property
    def share(self) -> float:
        """Flagged of all, 0 to 1."""
        return self.flagged / max(self.examples, 1)


@dataclasses.dataclass(frozen=True)
class Score:
    """One number of one task.

    Attributes:
        task: its name in the report.
        type: its kind.
        dataset: the name of the set; the task's where the configuration has none.
        split: of the data; empty where they have none.
        metric: as the report names it.
        value: finite.
        interval: low and high; None where none was made.
        level: of the interval.
        unit: that was resampled; empty where none was.
        examples: how many.
        constant: the same metric of an answer that is always the largest class; None where there is none.
        warning: of the interval; empty for none.
        leak: of the set; None where the training images were not compared.
        without_flagged: the value without the flagged images; None where none are, or it was not computed.
    """

    task: str
    type: str
    dataset: str
    split: str
    metric: str
    value: float
    interval: tuple[float, float] | None
    level: float
    unit: str
    examples: int
    constant: float | None
    warning: str
    leak: Leak | None
    without_flagged: float | None

    @property
    def is_too_narrow(self) -> bool:
        """Whether the interval promises more than it holds, by the evaluation's own words."""
        return "too narrow" in self.unit or "too narrow" in self.warning


def scores_of(evaluation: Mapping[str, Any], name: str) -> list[Score]:
    """A task's first metric and all that have an interval; every one where the evaluation made no intervals.

    Args:
        evaluation: the content of ``evaluation.json``.
        name: of the model in it.
    """
    scores: list[Score] = []
    configs = (evaluation.get("config") or {}).get("tasks") or {}
    for task_name, task in evaluation["tasks"].items():
        report = task["models"].get(name)
        if report is None:
            continue
        bootstrap = report.get("bootstrap") or {}
        intervals = bootstrap.get("intervals") or {}
        without = ((evaluation.get("without_flagged") or {}).get(task_name) or {}).get(name) or {}
        for metric, value in report["metrics"].items():
            if value is None or not math.isfinite(value):
                continue
            if intervals and metric != task["first_metric"] and not intervals.get(metric):
                continue
            found = intervals.get(metric)
            remaining = (without.get("metrics") or {}).get(metric)
            scores.append(
                Score(
                    task=task_name,
                    type=task["type"],
                    dataset=(configs.get(task_name) or {}).get("set") or task_name,
                    split=task.get("split") or "",
                    metric=metric,
                    value=_bounded(value),
                    interval=None if not found else (_bounded(found[0]), _bounded(found[1])),
                    level=bootstrap.get("level", 0.95),
                    unit=bootstrap.get("unit", ""),
                    examples=report["num_examples"],
                    constant=report.get("constant_class", {}).get("metrics", {}).get(metric),
                    warning=bootstrap.get("warning") or "",
                    leak=_leak(evaluation, task),
                    without_flagged=None if remaining is None else _bounded(remaining),
                )
            )
    return scores


def first_prompts(evaluation: Mapping[str, Any]) -> Sequence[str]:
    """A prompt without a comma of each class of the first zero-shot task, else the class's name; empty for none."""
    for task in evaluation["tasks"].values():
        for report in task["models"].values() if task["type"] == "zero_shot" else ():
            if classes := report.get("prompts", {}).get("classes"):
                return [
                    next((name for name in (*names, label) if "," not in name), label.replace(",", ""))
                    for label, names in classes.items()
                ]
    return ()


def _bounded(value: float) -> float:
    """1.0000000000000002, as sums of shares come out, is 1."""
    return 1.0 if 1 < value < 1 + _ROUNDING else float(value)


def _leak(evaluation: Mapping[str, Any], task: Mapping[str, Any]) -> Leak | None:
    sets = (evaluation.get("leakage") or {}).get("sets") or {}
    # As the audit names a set: its data and split.
    found = sets.get(f"{task.get('data') or ''} {task.get('split') or ''}".strip())
    return None if found is None else Leak(found["flagged"]["either"], found["num_test"])
