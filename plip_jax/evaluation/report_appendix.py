"""What stands behind the scores in a report: comparisons, leakage, the WiSE-FT sweep, inputs."""

from collections.abc import Mapping
from typing import Any

from plip_jax.evaluation.cells import NONE, cell, load_published, number, with_interval
from plip_jax.evaluation.document import Block, Bullets, Heading, Paragraph, Table

# The content of evaluation.json.
Evaluation = Mapping[str, Any]


def comparisons(evaluation: Evaluation) -> list[Block]:
    """Pairs of models, where there are two."""
    blocks: list[Block] = []
    if found := evaluation.get("comparisons"):
        rows = tuple(
            (
                row["task"],
                f"{row['a']} against {row['b']}",
                row["metric"].replace("_", " "),
                row["unit"],
                number(row["difference"]),
                NONE if row["interval"] is None else f"[{number(row['interval'][0])}, {number(row['interval'][1])}]",
                _p_value(row["p_value"]),
                _p_value(row["p_holm"]),
                _p_value(row.get("mcnemar", {}).get("p_value")),
            )
            for row in found
        )
        head = ("task", "models", "metric", "unit", "difference", "interval", "p", "p (Holm)", "p (McNemar)")
        caption = "Paired bootstrap of the difference on the same resamples; Holm's correction over each kind of task"
        blocks.append(Table(caption, head, rows, 4))
        least = min(2 / (row["resamples"] + 1) for row in found)
        blocks.append(
            Paragraph(f"No p-value is below {least:.2g}, for the number of resamples. McNemar's are uncorrected.")
        )
        refused = dict.fromkeys(row["mcnemar"]["refused"] for row in found if row.get("mcnemar", {}).get("refused"))
        blocks += [Paragraph(f"No McNemar's test: {why}.") for why in refused]
    if found := evaluation.get("over_seeds"):
        rows = tuple(
            (row["task"], f"{row['a']} against {row['b']}", row["setting"], number(row["statistic"]),
             _p_value(row["p_value"]), ", ".join(map(str, row["seeds"])))
            for row in found
        )  # fmt: skip
        head = ("task", "models", "setting", "t", "p", "seeds")
        blocks.append(Table(f"Student's t over seeds, {found[0]['label']}", head, rows, 3))
    return [Heading(2, "Comparison of the models"), *blocks] if blocks else []


def _p_value(value: float | None) -> str:
    return NONE if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def leakage(evaluation: Evaluation) -> list[Block]:
    """What of the evaluation sets was found in the training data, and the scores without it."""
    audit = evaluation.get("leakage")
    if not audit:
        return []
    blocks: list[Block] = [Heading(2, "Leakage from the training data")]
    if "absent" in audit:
        return [*blocks, Paragraph(f"Not audited: {audit['absent']}")]
    rows = tuple(
        (
            source,
            f"{found['num_test']:,}",
            *(cell(found["flagged"][by]) for by in ("either", "hash", "embedding")),
        )
        for source, found in audit["sets"].items()
    )
    blocks.append(Paragraph(audit["method"]))
    head = ("evaluation set", "examples", "flagged", "by perceptual hash", "by embedding")
    blocks.append(Table("Near-duplicates of training images", head, rows))
    without = evaluation.get("without_flagged") or {}
    lines = tuple(
        (task, model, metric.replace("_", " "), with_interval(evaluation["tasks"][task]["models"][model], metric),
         with_interval(report, metric) if "metrics" in report else report["not_scored"])
        for task, models in without.items()
        for metric in (evaluation["tasks"][task]["first_metric"],)
        for model, report in models.items()
    )  # fmt: skip
    if lines:
        head = ("task", "model", "metric", "all examples", "without the flagged")
        blocks.append(
            Table(
                "The first score of each task with flagged examples, with and without them; the JSON holds every score",
                head,
                lines,
                3,
            )
        )
    return blocks


def wise_ft_sweep(sweep: Mapping[str, Any]) -> list[Block]:
    """A `wise_ft.make_sweep` as a table."""
    names = {
        role: f"{sweep[role]['task']}, {sweep[role]['metric'].replace('_', ' ')}" for role in ("in_domain", "general")
    }
    rows = tuple(
        (
            f"{point['alpha']:g}",
            f"{point['in_domain']:.3f}",
            f"{point['general']:.3f}",
            f"`{point['weights_hash'][:16]}`",
        )
        for point in sweep["points"]
    )
    text = (
        f"From {sweep['start']['source']} (alpha 0) to {sweep['end']['source']} (alpha 1); "
        "`wise_ft.csv` has every metric."
    )
    head = ("alpha", f"in-domain: {names['in_domain']}", f"general: {names['general']}", "weights")
    return [
        Heading(2, "WiSE-FT"), Paragraph(text), Table("Weights between the start and the fine-tuned", head, rows),
    ]  # fmt: skip


def inputs(evaluation: Evaluation) -> list[Block]:
    """What was read, by its hashes, and what it was read with."""
    lines = []
    for name, task in evaluation["tasks"].items():
        report = next(iter(task["models"].values()), None)
        hashes = ", ".join(f"{what} `{value[:16]}`" for what, value in (report or {}).get("hashes", {}).items())
        lines.append(f"{name}: {task['data']} {task['split']}".rstrip() + f": {hashes or 'no model could do it'}")
    versions = ", ".join(f"{name} {version}" for name, version in evaluation["versions"].items())
    blocks: list[Block] = [Heading(2, "Inputs"), Bullets(tuple(lines)), Paragraph(f"Made by {versions}.")]
    if any(task.get("published") for task in evaluation["tasks"].values()):
        published = load_published()
        blocks.append(Paragraph(f"Published numbers: {published['source']}. {published['note']}"))
    return blocks
