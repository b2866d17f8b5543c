"""Which pictures a report has, and their data; `charts` and `pictures` draw them."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from plip_jax.evaluation import charts, pictures
from plip_jax.evaluation.cells import published_curves, published_scores
from plip_jax.evaluation.charts import Curve, Score
from plip_jax.evaluation.report import file_prefix
from plip_jax.evaluation.report_appendix import Evaluation
from plip_jax.evaluation.task import TaskResult

# Ids of a task's images -> uint8 [H, W, 3] each.
Thumbnails = Callable[[str, set[str]], Mapping[str, np.ndarray]]

_DIRECTIONS = ("text_to_image", "image_to_text", "image_to_image")


def make_pictures(
    evaluation: Evaluation, results: Mapping[str, Mapping[str, TaskResult]], thumbnails: Thumbnails
) -> dict[str, bytes]:
    """Draw every picture of a report.

    Args:
        evaluation: the content of ``evaluation.json``.
        results: by model and task.
        thumbnails: reads the images of a picture.

    Returns:
        PNG files by name.
    """
    files: dict[str, bytes] = {}
    groups = _score_groups(evaluation)
    if groups:
        files["scores.png"] = charts.scores_png(groups, title="The first score of each task", axis="score")
    for name, task in evaluation["tasks"].items():
        files |= _task_charts(name, task)
    for model, found in results.items():
        folder = file_prefix(evaluation, model)
        for name, result in found.items():
            if "confusion" in result.report:
                title = f"{_kind(result)}: {name}" + (f", {model}" if folder else "")
                files[f"{folder}{name}_confusion.png"] = pictures.confusion_png(result.report, title=title)
            if result.gallery:
                wanted = {image for row in result.gallery for image in (*row.shown, row.best_right, row.query_image)}
                files[f"{folder}{name}_retrieval.png"] = pictures.gallery_png(
                    result.gallery,
                    thumbnails(name, wanted - {""}),
                    num_candidates=result.report.get("num_candidates", result.report["num_examples"]),
                    title=f"{_kind(result)}: {name}" + (f", {model}" if folder else ""),
                )
    return files


def _kind(result: TaskResult) -> str:
    kind = str(result.report["type"]).replace("_", " ").capitalize()
    return {"Zero shot": "Zero-shot", "Retrieval": "Retrieval, text to image"}.get(kind, kind)


def _score_groups(evaluation: Evaluation) -> dict[str, list[Score]]:
    """The first metric of each task that lies between 0 and 1, with intervals, baseline and published numbers."""
    groups: dict[str, list[Score]] = {}
    for name, task in evaluation["tasks"].items():
        metric = task.get("first_metric")
        scores = []
        for model, report in task["models"].items():
            value = report["metrics"].get(metric)
            if value is None or not -1 <= value <= 1:
                continue
            low, high = report.get("bootstrap", {}).get("intervals", {}).get(metric) or (None, None)
            scores.append(Score(model, value, low, high))
        constant = next((r["constant_class"] for r in task["models"].values() if "constant_class" in r), None)
        for name_of, value in (constant or {"metrics": {}})["metrics"].items():
            # kNN's metrics have their k before the name.
            if scores and (
                metric == name_of or (str(metric).startswith("knn_") and str(metric).endswith(f"_{name_of}"))
            ):
                scores.append(Score("constant class", value, is_baseline=True))
        for whose, numbers in published_scores(task.get("published", ""), task["type"]).get(metric, {}).items():
            low, high = numbers[1:] if len(numbers) == 3 else (None, None)
            if scores:
                scores.append(Score(whose, numbers[0], low, high, is_published=True))
        if scores:
            groups[f"{name}: {str(metric).replace('_', ' ')}"] = scores
    return groups


def _task_charts(name: str, task: Mapping[str, Any]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    panels = _recall_panels(task)
    if panels:
        files[f"{name}_curves.png"] = charts.curves_png(
            panels, title=f"Recall: {name}", x_label="K, images or texts looked at", y_label="recall at K"
        )
    learned = _learning_curves(task)
    if learned:
        files[f"{name}_fractions.png"] = charts.curves_png(
            {"": learned},
            title=f"{task['type'].replace('_', ' ').capitalize()}: {name} (bands: one SD over the seeds)",
            x_label="share of the training data",
            y_label="weighted F1" if task["type"] == "fine_tune" else "macro F1",
        )
    reliability = [
        Curve(model, [b["confidence"] for b in bins], [b["accuracy"] for b in bins])
        for model, report in task["models"].items()
        if (bins := (report.get("calibration") or {}).get("curve"))
    ]
    if reliability:
        files[f"{name}_reliability.png"] = charts.curves_png(
            {"": reliability},
            title=f"Reliability: {name}",
            x_label="mean confidence of the bin",
            y_label="share of right answers",
            is_log_x=False,
            diagonal=True,
        )
    return files


def _recall_panels(task: Mapping[str, Any]) -> dict[str, list[Curve]]:
    """A panel a direction: each model's recall, and chance once."""
    panels: dict[str, list[Curve]] = {}
    for direction in _DIRECTIONS:
        curves, chance = [], None
        for model, report in task["models"].items():
            found = report.get("directions", {}).get(direction) or {}
            if direction == "image_to_image" and report["type"] == "image_retrieval":
                found = report
            if curve := found.get("curve"):
                curves.append(Curve(model, curve["k"], curve["recall"]))
                chance = Curve("chance", curve["k"], curve["random"], is_model=False)
        if curves and chance:
            panels[direction.replace("_", " ")] = [*curves, chance]
    return panels


def _learning_curves(task: Mapping[str, Any]) -> list[Curve]:
    """Score against the share of the training data: a model's mean and spread over seeds, and published points."""
    curves = []
    for model, report in task["models"].items():
        points = report.get("curve") if report["type"] in ("fine_tune", "linear_probe") else None
        if points:
            mean, sd = np.array([p["mean"] for p in points]), np.array([p["sd"] or 0.0 for p in points])
            x = [p["fraction"] for p in points]
            curves.append(Curve(model, x, mean.tolist(), (mean - sd).tolist(), (mean + sd).tolist()))
    if curves:
        published = published_curves(task.get("published", ""), task["type"])
        curves += [
            Curve(f"{whose} (published)", list(of), list(of.values()), is_model=False)
            for whose, of in published.items()
        ]
    return curves
