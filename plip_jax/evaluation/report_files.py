"""The files of an evaluation: ``evaluation.json``, tables, pictures, ``report.md`` and ``report.html``."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plip_jax.evaluation import document, report, wise_ft
from plip_jax.evaluation.pictures import wise_ft_png
from plip_jax.evaluation.report_pictures import Thumbnails, make_pictures
from plip_jax.evaluation.suite import PlannedTask
from plip_jax.evaluation.task import TaskResult

FORMAT_VERSION = 2
"""Of evaluation.json: changes when a reader of the older layout would misread the newer one."""


def tasks_block(
    planned: Sequence[PlannedTask],
    results: Mapping[str, Mapping[str, TaskResult]],
    not_applicable: Mapping[str, Mapping[str, str]],
    weights_hashes: Mapping[str, str],
) -> dict[str, Any]:
    """The ``tasks`` of ``evaluation.json``: by task, then by model; why a model has no result stands beside."""
    tasks: dict[str, Any] = {}
    for item in planned:
        done = {name: found[item.name].report for name, found in results.items() if item.name in found}
        tasks[item.name] = {
            # A task may report under a name of its own (several labels an image).
            "type": next((report["type"] for report in done.values()), item.type_name),
            "data": item.data,
            "split": item.split,
            "published": item.published,
            "first_metric": item.task.metric_names(item.config)[0],
            "models": {
                name: {**found, "hashes": {**found["hashes"], "weights": weights_hashes[name]}}
                for name, found in done.items()
            },
            "not_applicable": {name: why[item.name] for name, why in not_applicable.items() if item.name in why},
        }
    return tasks


def write_report(
    out: Path,
    evaluation: Mapping[str, Any],
    results: Mapping[str, Mapping[str, TaskResult]],
    thumbnails: Thumbnails,
    *,
    sweep: Mapping[str, Any] | None = None,
    tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> list[Path]:
    """Write every file of the report; ``evaluation.json`` last, so that where it stands the rest does too.

    Args:
        out: the folder, made when it is not there; files of an earlier report are replaced.
        evaluation: the content of ``evaluation.json``.
        results: by model and task.
        thumbnails: reads the images of a picture.
        sweep: from `wise_ft.make_sweep`, where there was one.
        tables: more rows by file name.

    Returns:
        The files.
    """
    files: dict[str, bytes] = {}
    for model, found in results.items():
        folder = report.file_prefix(evaluation, model)
        for name, result in found.items():
            files[f"{folder}{name}.csv"] = _csv(result.rows)
    files |= {name: _csv(rows) for name, rows in (tables or {}).items() if rows}
    pictures = make_pictures(evaluation, results, thumbnails)
    if sweep is not None:
        files |= {"wise_ft.csv": _csv(wise_ft.sweep_rows(sweep)), "wise_ft.json": _json(sweep)}
        pictures["wise_ft.png"] = wise_ft_png(sweep)
    files |= pictures
    blocks = report.make_document(evaluation, pictures, sweep)
    files["report.md"] = document.to_markdown(blocks).encode()
    files["report.html"] = document.to_html(blocks, title=f"Evaluation of {', '.join(evaluation['models'])}").encode()
    files["evaluation.json"] = _json(evaluation)
    for name, content in files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
        partial.write_bytes(content)
        partial.replace(path)
    return [out / name for name in files]


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
