"""``python -m plip_jax.evaluate``: any checkpoint -> ``evaluation.json``, tables and pictures.

Owns the command line, opening the data, and the files of a report. What is measured is in `plip_jax.evaluation`;
a task is a block of the config: its ``type``, its ``data`` and ``split``, and the settings of its type.
"""

import argparse
import csv
import dataclasses
import functools
import io
import itertools
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import config_dict

from plip_jax import __version__
from plip_jax.api import Encoder
from plip_jax.config_file import parse_config_args
from plip_jax.convert.load import LoadedModel, add_model_flags, interpolate_models, load_model, parse_alpha
from plip_jax.data.examples import open_examples
from plip_jax.data.image import ImageError, Preprocessing, decode_image, preprocess_image
from plip_jax.evaluation import report, suite, wise_ft
from plip_jax.evaluation.embeddings import EvaluationError
from plip_jax.evaluation.examples import Examples
from plip_jax.evaluation.task import TaskResult

# Of evaluation.json: changes when a reader of the older layout would misread the newer one.
FORMAT_VERSION = 1

DEFAULT_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
_VERSIONED = ("jax", "flax", "numpy", "pillow")
# Side of an image in a picture, pixels; a report is looked at on a screen.
_THUMBNAIL = Preprocessing(image_size=192)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """The config file's fields.

    Attributes:
        tasks: by name; each with ``type``, ``data``, ``split`` and the settings of its type.
        batch_size: images or texts computed at once.
        compute_dtype: operands of the matrix products.
        allow_absent: report a task without data as absent, and go on.
    """

    tasks: Mapping[str, Mapping[str, Any]]
    batch_size: int = 64
    compute_dtype: str = "float32"
    allow_absent: bool = False


def plan(config: EvaluateConfig) -> tuple[list[suite.PlannedTask], dict[str, str]]:
    """What can be run, and what is absent.

    Raises:
        EvaluationError: a wrong task, an absent one unless ``allow_absent``, or nothing to run.
    """
    planned, absent = suite.plan_tasks(config.tasks)
    listed = "; ".join(f"{name}: {reason}" for name, reason in absent.items())
    if absent and not config.allow_absent:
        raise EvaluationError(f"{listed}; or report such sets as absent with --config.allow_absent=true")
    if not planned:
        raise EvaluationError(f"nothing to evaluate: {listed or 'config.tasks is empty'}")
    return planned, absent


def _name_bad_images(data: Iterable[Examples], error: ImageError) -> str:
    """The encoder knows an image by its place; say which records cannot be read, all of them."""
    reasons = []
    for record in itertools.chain.from_iterable(examples.records for examples in data):
        try:
            decode_image(record.image, name=record.id)
        except ImageError as reason:
            reasons.append(str(reason))
    if not reasons:
        return str(error)
    more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    return f"{len(reasons)} images cannot be read: {'; '.join(reasons[:5])}{more}"


def make_evaluation(
    model: LoadedModel,
    config: EvaluateConfig,
    planned: Sequence[suite.PlannedTask],
    absent: Mapping[str, str],
    results: Mapping[str, TaskResult],
) -> dict[str, Any]:
    """The content of ``evaluation.json``."""
    tasks: dict[str, Any] = {}
    for item in planned:
        found = results[item.name].report
        hashes = {**found["hashes"], "weights": model.weights_hash}
        tasks[item.name] = {**found, "data": item.data, "split": item.split, "hashes": hashes}
    return {
        "format_version": FORMAT_VERSION,
        "model": {
            **model.describe(),
            "network": model.config.to_dict(),
            "preprocessing": model.preprocessing.to_dict(),
        },
        "versions": {"plip_jax": __version__, **{name: metadata.version(name) for name in _VERSIONED}},
        "config": dataclasses.asdict(config),
        "tasks": tasks,
        "absent": dict(absent),
    }


def write_report(
    out: Path,
    evaluation: Mapping[str, Any],
    results: Mapping[str, TaskResult],
    data: Mapping[str, Examples],
    sweep: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write every file of the report; ``evaluation.json`` last, so that where it stands the rest does too.

    Args:
        out: the folder, made when it is not there; files of an earlier report are replaced.
        evaluation: from `make_evaluation`.
        results: by task.
        data: by task; read for the images of a picture.
        sweep: from `wise_ft.make_sweep`, where there was one.

    Returns:
        The files.
    """
    files: dict[str, bytes] = {}
    for name, result in results.items():
        files[f"{name}.csv"] = _csv(result.rows)
        if result.report["type"] == "zero_shot":
            files[f"{name}_confusion.png"] = report.confusion_png(result.report, title=f"Zero-shot: {name}")
        if result.gallery:
            wanted = {image for row in result.gallery for image in (*row.shown, row.best_right)}
            files[f"{name}_retrieval.png"] = report.gallery_png(
                result.gallery,
                _thumbnails(data[name], wanted),
                num_candidates=len(data[name].ids),
                title=f"Retrieval, text to image: {name}",
            )
    if sweep is not None:
        files["wise_ft.csv"] = _csv(wise_ft.sweep_rows(sweep))
        files["wise_ft.png"] = report.wise_ft_png(sweep)
        files["wise_ft.json"] = _json(sweep)
    files["report.md"] = _markdown(evaluation, sweep).encode()
    files["evaluation.json"] = _json(evaluation)
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        partial = out / f".{name}.partial-{os.getpid()}"
        partial.write_bytes(content)
        partial.replace(out / name)
    return [out / name for name in files]


def _markdown(evaluation: Mapping[str, Any], sweep: Mapping[str, Any] | None) -> str:
    text = report.markdown(evaluation)
    return text if sweep is None else f"{text}\n{report.wise_ft_markdown(sweep)}"


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _thumbnails(examples: Examples, wanted: set[str]) -> dict[str, np.ndarray]:
    found = ((index, name) for index, name in enumerate(examples.ids) if name in wanted)
    return {
        name: preprocess_image(decode_image(examples.records[index].image, name=name), _THUMBNAIL)
        for index, name in found
    }


def _run(flags: argparse.Namespace, config: EvaluateConfig) -> None:
    planned, absent = plan(config)
    axes = wise_ft.choose_axes(planned, flags.in_domain, flags.general) if flags.wise_ft_from else None
    out: Path = flags.out
    if out.exists() and not out.is_dir():  # before minutes of computing
        raise EvaluationError(f"--out {out}: expected a folder, or a name that is free, got a file")
    data = suite.open_data(planned, open_examples)
    for name, reason in absent.items():
        print(f"{name}: absent ({reason})")
    for item in planned:
        print(f"{item.name}: {len(data[item.source].ids):,} examples of {' '.join(item.source)}".rstrip())
    end = load_model(flags.checkpoint, which=flags.which, weights=flags.weights)
    print(f"model: {end.weights_file} of {end.source} (sha256 {end.weights_hash[:16]}…)", flush=True)
    sweep = None
    if axes is None:
        model = end
        (results,) = (found for _, found in evaluate_models([end], config, planned, data))
    else:
        start = load_model(flags.wise_ft_from)
        print(f"start: {start.weights_file} of {start.source} (sha256 {start.weights_hash[:16]}…)", flush=True)
        # The last one, the fine-tuned model itself where 1 is among the alphas, is what the report is of.
        mixed = (end if alpha == 1 else interpolate_models(start, end, alpha) for alpha in flags.alphas)
        found = evaluate_models(mixed, config, planned, data)
        points = [(alpha, one.weights_hash, of) for alpha, (one, of) in zip(flags.alphas, found, strict=True)]
        sweep = wise_ft.make_sweep(axes, start.describe(), end.describe(), points)
        model, results = found[-1]
    evaluation = make_evaluation(model, config, planned, absent, results)
    files = write_report(out, evaluation, results, {item.name: data[item.source] for item in planned}, sweep)
    print(f"\n{_markdown(evaluation, sweep)}")
    for path in files:
        print(f"wrote {path}")


def evaluate_models(
    models: Iterable[LoadedModel],
    config: EvaluateConfig,
    planned: Sequence[suite.PlannedTask],
    data: Mapping[tuple[str, str], Examples],
) -> list[tuple[LoadedModel, dict[str, TaskResult]]]:
    """Evaluate models of one network; every image is read and decoded once for all of them.

    Their parameters are on the devices together, and on the host one after the other.

    Args:
        models: the last one's tokenizer and preprocessing are used, which all of them share.
        config: how to compute.
        planned: the tasks.
        data: by source.

    Returns:
        Each model, without its parameters, and its results by task.

    Raises:
        EvaluationError: images that cannot be read; all of them are named.
    """
    encoder: Encoder | None = None
    placed, kept = [], []
    for model in models:
        encoder = encoder or Encoder(
            model.config,
            model.tokenizer,
            model.preprocessing,
            compute_dtype=config.compute_dtype,
            batch_size=config.batch_size,
        )
        placed.append(encoder.put_params(model.params))
        kept.append(dataclasses.replace(model, params={}))
    if encoder is None:
        return []
    try:
        results = suite.evaluate_models(
            planned,
            data,
            encode_images=functools.partial(encoder.encode_images_of, placed, progress=sys.stderr.isatty()),
            encode_texts=[functools.partial(encoder.encode_text, params) for params in placed],
        )
    except ImageError as error:
        raise EvaluationError(_name_bad_images(data.values(), error)) from error
    return list(zip(kept, results, strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit status: 0, 1 where data or model do not fit, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(prog="plip-jax evaluate", description="Evaluate a checkpoint.")
    add_model_flags(parser)
    parser.add_argument("--out", required=True, type=Path, help="folder for evaluation.json, tables and pictures")
    _add_wise_ft_flags(parser)
    flags, config = parse_config_args(parser, argv)
    if not flags.wise_ft_from and (flags.alphas or flags.in_domain or flags.general):
        parser.error("--alphas, --in-domain and --general need --wise-ft-from START")
    flags.alphas = flags.alphas or DEFAULT_ALPHAS
    try:
        _run(flags, _read_config(config))
    except (ValueError, OSError) as error:
        print(f"plip-jax evaluate: {error}", file=sys.stderr)
        return 1
    return 0


def _add_wise_ft_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("WiSE-FT", "evaluate the weights between a start and the checkpoint, too")
    group.add_argument(
        "--wise-ft-from", metavar="START", help="what fine-tuning started from: workdir, Hugging Face folder or hub id"
    )
    group.add_argument(
        "--alphas",
        type=_parse_alphas,
        help="shares of the checkpoint, commas between; all these weights are on the devices at once "
        f"(default: {','.join(f'{alpha:g}' for alpha in DEFAULT_ALPHAS)})",
    )
    for name, what, default in (
        ("--in-domain", "the metric of what was trained on", "the first retrieval task"),
        ("--general", "the metric of all else", "the first other task that is no retrieval"),
    ):
        group.add_argument(name, metavar="TASK[/METRIC]", default="", help=f"{what} (default: {default})")


def _parse_alphas(text: str) -> tuple[float, ...]:
    """Alphas in rising order, each once."""
    alphas = tuple(sorted({parse_alpha(part) for part in text.split(",")}))
    if len(alphas) < 2:
        raise argparse.ArgumentTypeError(f"expected two or more different alphas, got {text!r}")
    return alphas


def _read_config(config: config_dict.ConfigDict) -> EvaluateConfig:
    try:
        return EvaluateConfig(**config.to_dict())
    except TypeError as error:
        known = ", ".join(field.name for field in dataclasses.fields(EvaluateConfig))
        raise EvaluationError(f"this is no evaluation config: {error} (its fields: {known})") from error


if __name__ == "__main__":
    sys.exit(main())
