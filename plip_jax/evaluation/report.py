"""What a person reads: an ``evaluation.json`` as a document of tables and pictures (`document` writes it).

A section a kind of task, a table a section or a task, every number with its interval and the unit that was resampled,
the constant class beside every classifier, published numbers marked as theirs, and what was absent at the end.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from plip_jax.evaluation.cells import (
    NONE,
    cell,
    number,
    published_cell,
    published_curves,
    published_scores,
    with_interval,
)
from plip_jax.evaluation.document import Block, Bullets, Heading, Paragraph, Picture, Table
from plip_jax.evaluation.report_appendix import Evaluation, comparisons, inputs, leakage, wise_ft_sweep

_SWEEP = "In-domain score against general score, a point an alpha"

# Sections in order: task types, the heading, and the metrics worth a column where a report has them; of a type that is
# not here, every metric is shown behind them.
_CLASSIFICATION = ("weighted_f1", "macro_f1", "balanced_accuracy", "mcc", "accuracy")
SECTIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("zero_shot", "Zero-shot", (*_CLASSIFICATION, "quadratic_kappa", "auroc", "auprc", "ece")),
    ("zero_shot_multi_label", "Zero-shot, several labels an image", ("auroc", "map")),
    ("linear_probe", "Linear probe (L-BFGS, strength chosen on validation)", _CLASSIFICATION),
    ("published_probe", "Linear probe, published protocol (SGD)", ("macro_f1", *_CLASSIFICATION)),
    ("few_shot", "Few-shot", ()),
    ("fine_tune", "Fine-tuning", ("weighted_f1", "macro_f1")),
    ("retrieval", "Retrieval between text and image", ()),
    ("image_retrieval", "Image retrieval", ()),
)


def make_document(
    evaluation: Evaluation, pictures: Mapping[str, bytes], sweep: Mapping[str, Any] | None = None
) -> list[Block]:
    """Lay a report out.

    Args:
        evaluation: the content of ``evaluation.json``.
        pictures: PNG files by name, from `report_pictures.make_pictures`.
        sweep: from `wise_ft.make_sweep`, where there was one.
    """
    blocks: list[Block] = [Heading(1, f"Evaluation of {', '.join(evaluation['models'])}")]
    blocks += [Bullets(tuple(f"{name}: {_model_line(model)}" for name, model in evaluation["models"].items()))]
    if evaluation["config"].get("note"):
        blocks.append(Paragraph(evaluation["config"]["note"]))
    blocks.append(Paragraph(_how_to_read(evaluation)))
    blocks += picture(pictures, "scores.png", alt="Every task's first score of every model, with its interval")
    known = {task_type for task_type, _, _ in SECTIONS}
    others = dict.fromkeys(task["type"] for task in evaluation["tasks"].values() if task["type"] not in known)
    sections = [*SECTIONS, *((kind, kind.replace("_", " ").capitalize(), ()) for kind in others)]
    for task_type, heading, columns in sections:
        tasks = {name: task for name, task in evaluation["tasks"].items() if task["type"] == task_type}
        if tasks:
            blocks += [Heading(2, heading), *_section(evaluation, tasks, columns, pictures)]
    blocks += [*comparisons(evaluation), *leakage(evaluation)]
    if sweep is not None:
        blocks += [*wise_ft_sweep(sweep), *picture(pictures, "wise_ft.png", alt=_SWEEP)]
    if evaluation["absent"]:
        blocks += [
            Heading(2, "Absent"),
            Paragraph("Not measured, because the data are not here:"),
            Bullets(tuple(f"{name}: {why}" for name, why in evaluation["absent"].items())),
        ]
    return [*blocks, *inputs(evaluation)]


def _how_to_read(evaluation: Evaluation) -> str:
    bootstrap = evaluation["config"].get("bootstrap") or {}
    if not bootstrap.get("resamples"):
        return "No intervals were asked for (bootstrap.resamples is 0)."
    return (
        f"Brackets: {bootstrap['level']:.0%} bootstrap intervals ({bootstrap['resamples']:,} resamples, percentile; "
        f'seed {bootstrap["seed"]}) over the unit that each table names. Where it is "patch-level: too narrow", none '
        "tells which patches belong together, and the true interval is wider. Rows marked published are the paper's."
    )


def _model_line(model: Mapping[str, Any]) -> str:
    step = "" if model.get("step") is None else f", step {model['step']:,}"
    average = ", moving average" if model.get("weights") == "ema" else ""
    mixed = model.get("mixed_from")
    origin = f", {mixed['alpha']:g} of the way from {mixed['start']['source']} (WiSE-FT)" if mixed else ""
    return f"{model['source']}, weights `{model['weights_hash'][:16]}`{step}{average}{origin}"


def _section(
    evaluation: Evaluation, tasks: Mapping[str, Any], columns: Sequence[str], pictures: Mapping[str, bytes]
) -> list[Block]:
    blocks: list[Block] = []
    if columns:
        blocks.append(_summary(evaluation, tasks, columns))
    for name, task in tasks.items():
        blocks.append(Heading(3, name))
        if task["not_applicable"]:
            blocks.append(Bullets(tuple(f"{model}: {why}" for model, why in task["not_applicable"].items())))
        if not task["models"]:
            continue
        if task["type"] == "retrieval":
            blocks += _retrieval_tables(name, task)
        elif task["type"] == "few_shot":
            blocks.append(_few_shot_table(name, task))
        elif not columns:
            blocks.append(_all_metrics(name, task))
        blocks += _fraction_table(task)
        blocks += _notes(task)
        for model in task["models"]:
            prefix = f"{model}: " if len(task["models"]) > 1 else ""
            for file, what in _files_of(evaluation, name, model):
                blocks += picture(pictures, file, alt=f"{prefix}{what}")
        for ending, what in _TASK_PICTURES.items():
            blocks += picture(pictures, f"{name}_{ending}.png", alt=f"{name}: {what}")
    return blocks


_TASK_PICTURES = {
    "curves": "recall at each cut-off against chance",
    "fractions": "score against the share of the training data",
    "reliability": "share of right answers against the confidence of the model",
}


def _files_of(evaluation: Evaluation, task: str, model: str) -> list[tuple[str, str]]:
    """Pictures of one model's result, and what they show."""
    folder = file_prefix(evaluation, model)
    return [
        (f"{folder}{task}_confusion.png", f"confusion matrix of {task}"),
        (f"{folder}{task}_retrieval.png", f"queries of {task} and the images found for them"),
    ]


def _summary(evaluation: Evaluation, tasks: Mapping[str, Any], columns: Sequence[str]) -> Table:
    """One table for a section: a row a model, the constant class and the published numbers."""
    shown = [
        c
        for c in dict.fromkeys(columns)
        if any(c in r["metrics"] for t in tasks.values() for r in t["models"].values())
    ]
    rows: list[tuple[str, ...]] = []
    for name, task in tasks.items():
        for model, report in task["models"].items():
            unit = report.get("bootstrap", {}).get("unit", NONE)
            cells = [with_interval(report, metric) for metric in shown]
            rows.append((name, model, unit, f"{report['num_examples']:,}", *cells))
        constant = next((r["constant_class"] for r in task["models"].values() if "constant_class" in r), None)
        if constant:
            cells = [number(constant["metrics"].get(metric)) for metric in shown]
            rows.append((name, _constant_name(constant), "", "", *cells))
        for whose, scores in _published_rows(task).items():
            cells = [published_cell(scores.get(metric)) for metric in shown]
            rows.append((name, f"{whose} (published)", "", "", *cells))
    head = ("task", "answer", "unit of the intervals", "examples", *(metric.replace("_", " ") for metric in shown))
    return Table("Scores with their intervals, the constant class, and published numbers", head, tuple(rows), 3)


def _constant_name(constant: Mapping[str, Any]) -> str:
    """The baseline: always the largest class, or of several labels an image no answer at all."""
    return "one score for all" if constant["label"] is None else f"always {constant['label']}"


def _published_rows(task: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Whose -> metric -> numbers."""
    by_name: dict[str, dict[str, list[float]]] = {}
    for metric, of in published_scores(task.get("published", ""), task["type"]).items():
        for whose, numbers in of.items():
            by_name.setdefault(whose, {})[metric] = numbers
    return by_name


def _all_metrics(name: str, task: Mapping[str, Any]) -> Table:
    """Every metric of a task, a column a model."""
    models = list(task["models"])
    metrics = list(dict.fromkeys(metric for report in task["models"].values() for metric in report["metrics"]))
    published = _published_rows(task)
    rows = tuple(
        (metric.replace("_", " "),
         *(with_interval(task["models"][model], metric) for model in models),
         *(published_cell(scores.get(metric)) for scores in published.values()))
        for metric in metrics
    )  # fmt: skip
    report = next(iter(task["models"].values()))
    unit = report.get("bootstrap", {}).get("unit")
    caption = f"{name}: {report['num_examples']:,} examples" + (f"; intervals: {unit}" if unit else "")
    return Table(caption, ("metric", *models, *(f"{whose} (published)" for whose in published)), rows)


def _fraction_table(task: Mapping[str, Any]) -> list[Block]:
    """Scores by the share of the training data, where a task learned from several; published ones beside ours."""
    columns: dict[str, dict[float, str]] = {}
    for model, report in task["models"].items():
        for point in report.get("curve") or () if task["type"] in ("fine_tune", "linear_probe") else ():
            bounds = "" if point["low"] is None else f" [{number(point['low'])}, {number(point['high'])}]"
            spread = "" if point["sd"] is None else f", SD {number(point['sd'])}"
            columns.setdefault(model, {})[point["fraction"]] = f"{number(point['mean'])}{bounds}{spread}"
    if not columns:
        return []
    for whose, of in published_curves(task.get("published", ""), task["type"]).items():
        columns[f"{whose} (published)"] = {fraction: number(value) for fraction, value in of.items()}
    fractions = sorted({fraction for of in columns.values() for fraction in of})
    rows = tuple((f"{fraction:.0%}", *(of.get(fraction, NONE) for of in columns.values())) for fraction in fractions)
    metric = "weighted F1" if task["type"] == "fine_tune" else "macro F1"
    return [Table(f"Mean {metric} over the seeds, its interval, SD over the seeds", ("training data", *columns), rows)]


def _few_shot_table(name: str, task: Mapping[str, Any]) -> Table:
    """A row a method and model; kNN's intervals are over test units, SimpleShot's over episodes."""
    rows = []
    for model, report in task["models"].items():
        episodes = report.get("episodes", {}).get("metrics", {})
        methods = [metric.removesuffix("_macro_f1") for metric in report["metrics"] if metric.endswith("_macro_f1")]
        for method in methods:
            cells = []
            for score in ("macro_f1", "weighted_f1", "balanced_accuracy"):
                metric = f"{method}_{score}"
                drawn = episodes.get(metric)
                bounds = f" [{number(drawn['low'])}, {number(drawn['high'])}]" if drawn else ""
                cells.append(f"{number(report['metrics'][metric])}{bounds}" if drawn else with_interval(report, metric))
            over = (
                "over episodes" if f"{method}_macro_f1" in episodes else report.get("bootstrap", {}).get("unit", NONE)
            )
            rows.append((method.replace("_", " "), model, over, *cells))
    head = ("method", "model", "intervals", "macro f1", "weighted f1", "balanced accuracy")
    return Table(f"{name}: nearest neighbours, and class means of so many shots a class", head, tuple(rows), 3)


def _retrieval_tables(name: str, task: Mapping[str, Any]) -> list[Block]:
    """A row a model and direction; a table of the published numbers beneath."""
    rows, cut_offs, unit = [], [], None
    for model, report in task["models"].items():
        unit = report.get("bootstrap", {}).get("unit")
        for direction, found in report["directions"].items():
            cut_offs = list(found["recall"])
            cells = [
                f"{with_interval(report, f'{direction}_recall@{k}')} ({recall['fold']:,.1f}x)"
                for k, recall in found["recall"].items()
            ]
            median = with_interval(report, f"{direction}_median_rank")
            counts = (f"{found['num_queries']:,}", f"{found['num_candidates']:,}")
            rows.append((direction.replace("_", " "), model, *counts, median, *cells))
    if not rows:
        return []
    caption = f"{name}: recall (fold over a random order)" + (f"; intervals: {unit}" if unit else "")
    head = ("direction", "model", "queries", "candidates", "median rank", *(f"R@{k}" for k in cut_offs))
    blocks: list[Block] = [Table(caption, head, tuple(rows), 2)]
    if published := _published_rows(task):
        metrics = list(dict.fromkeys(metric for scores in published.values() for metric in scores))
        blocks.append(
            Table(
                f"{name}: published numbers",
                ("whose", *(metric.replace("_", " ") for metric in metrics)),
                tuple((whose, *(published_cell(of.get(m)) for m in metrics)) for whose, of in published.items()),
            )
        )
    return blocks


def _notes(task: Mapping[str, Any]) -> list[Block]:
    """What the numbers alone do not say; the same for all models but for the calibration and the sensitivity."""
    blocks: list[Block] = []
    report = next(iter(task["models"].values()))
    if report.get("missing_classes"):
        blocks.append(
            Paragraph(f"No examples of {', '.join(report['missing_classes'])} (they could still be predicted).")
        )
    blocks += [Paragraph(f"{text[:1].upper()}{text[1:]}") for text in report.get("notes", ())]
    for key, caption in _MODEL_TABLES.items():
        rows = [(model, found[key]) for model, found in task["models"].items() if found.get(key)]
        columns = list(dict.fromkeys(k for _, of in rows for k, v in of.items() if isinstance(v, int | float | str)))
        if columns:
            cells = tuple((model, *(cell(values.get(column)) for column in columns)) for model, values in rows)
            blocks.append(Table(caption, ("model", *(c.replace("_", " ") for c in columns)), cells))
    blocks += _sensitivity(task)
    blocks += _strata(task)
    return blocks


# Blocks of a model's report whose numbers and texts are a row of a table.
_MODEL_TABLES = {
    "calibration": "Calibration at the learned scale, and with a temperature where validation examples are named",
    "duplicates": "Duplicates: they tie, and a tie counts against the model",
}


def _sensitivity(task: Mapping[str, Any]) -> list[Block]:
    """How far prompts matter: median, minimum and maximum over all of them, none singled out."""
    rows = []
    for model, report in task["models"].items():
        found = report.get("prompt_sensitivity")
        for metric in _CLASSIFICATION if found else ():
            if spread := found["metrics"].get(metric):
                bounds = spread.get("median_interval")
                median = number(spread["median"]) + (f" [{number(bounds[0])}, {number(bounds[1])}]" if bounds else "")
                ends = (number(spread["minimum"]), number(spread["maximum"]))
                rows.append((model, metric.replace("_", " "), str(found["num_variants"]), median, *ends))
    if not rows:
        return []
    head = ("model", "metric", "prompts", "median", "minimum", "maximum")
    return [Table("Prompt sensitivity: every prompt file and every template alone", head, tuple(rows), 2)]


def _strata(task: Mapping[str, Any]) -> list[Block]:
    """Scores by organ, grade, magnification or what else the task was split by."""
    blocks: list[Block] = []
    for model, report in task["models"].items():
        found = report.get("by")
        if not found:
            continue
        strata = found["strata"]
        columns = [m for m in (*_CLASSIFICATION, "auroc", "map") if any(m in of["metrics"] for of in strata.values())]
        rows = tuple(
            (value, f"{of['num_examples']:,}", *(with_interval(of, metric) for metric in columns))
            for value, of in strata.items()
        )
        head = (found["attribute"], "examples", *(metric.replace("_", " ") for metric in columns))
        blocks.append(Table(f"{model}, by {found['attribute']}", head, rows))
    return blocks


def file_prefix(evaluation: Evaluation, model: str) -> str:
    """Where a model's own files are: a folder of its own where there are several models."""
    return f"{model}/" if len(evaluation["models"]) > 1 else ""


def picture(pictures: Mapping[str, bytes], name: str, *, alt: str) -> list[Block]:
    """The picture of this name, where there is one."""
    return [Picture(name, pictures[name], alt)] if name in pictures else []
