"""``python -m plip_jax.evaluate``: checkpoints -> ``evaluation.json``, ``report.html``, ``report.md``, CSVs, pictures.

Owns the command line and the order of things: what is asked for is checked, prompts are frozen, data are opened, then
each model is measured on every task. What is measured is in `plip_jax.evaluation`; a task is a block of the config.
"""

import argparse
import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from plip_jax import __version__
from plip_jax.config_file import parse_config_args
from plip_jax.convert.load import add_model_flags, interpolate_models, load_model, parse_alpha, settings_of
from plip_jax.data.examples import MissingFolderError, open_examples
from plip_jax.data.records import MissingRecordsSplitError
from plip_jax.data.split_manifest import MissingSplitError
from plip_jax.encoders.baseline import OpenOptions
from plip_jax.evaluation import audit, comparison, prompts_lock, report_files, suite, wise_ft
from plip_jax.evaluation.bootstrap import BootstrapConfig
from plip_jax.evaluation.embedding_cache import EmbeddingCache
from plip_jax.evaluation.embeddings import EvaluationError
from plip_jax.evaluation.examples import Examples
from plip_jax.measuring import Measured, evaluate_models, measure, thumbnails_of

DEFAULT_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
_VERSIONED = ("jax", "flax", "numpy", "pillow", "scikit-learn")
_RESERVED = ("embeddings", "evaluation.json", "report.md", "report.html", "prompts.lock.json")  # of the report's folder
_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.+-]*)=(.+)")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """The config file's fields.

    Attributes:
        tasks: by name; each with ``type``, ``data`` or ``set``, ``split`` and the settings of its type.
        sets: by name; each with ``data``, a folder or "", and ``get``, where to get it.
        batch_size: images or texts computed at once.
        compute_dtype: operands of the matrix products.
        allow_absent: report a task without data as absent, and go on.
        bootstrap: how intervals are made; 0 ``resamples`` for none.
        leakage: the training records to look for in the evaluation sets; see `audit.AuditConfig`.
        note: printed on top of the report.
    """

    tasks: Mapping[str, Mapping[str, Any]]
    sets: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    batch_size: int = 64
    compute_dtype: str = "float32"
    allow_absent: bool = False
    bootstrap: Mapping[str, Any] = dataclasses.field(default_factory=lambda: dataclasses.asdict(BootstrapConfig()))
    leakage: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""

    @property
    def intervals(self) -> BootstrapConfig | None:
        """How intervals are made; None for none."""
        return BootstrapConfig(**self.bootstrap) if self.bootstrap.get("resamples", 1) else None


def plan(config: EvaluateConfig, only: Sequence[str] = ()) -> tuple[list[suite.PlannedTask], dict[str, str]]:
    """What can be run, and what is absent.

    Args:
        config: the config.
        only: names of the tasks to run; all of them where it is empty.

    Raises:
        EvaluationError: a wrong or unknown task, an absent one unless ``allow_absent``, or nothing to run.
    """
    unknown = [name for name in only if name not in config.tasks]
    if unknown:
        raise EvaluationError(f"--tasks: no task {', '.join(unknown)}; the config has {', '.join(config.tasks)}")
    wanted = {name: fields for name, fields in config.tasks.items() if not only or name in only}
    planned, absent = suite.plan_tasks(wanted, config.sets)
    listed = "; ".join(f"{name}: {reason}" for name, reason in absent.items())
    if absent and not config.allow_absent:
        raise EvaluationError(f"{listed}; or report such sets as absent with --config.allow_absent=true")
    if not planned:
        raise EvaluationError(f"nothing to evaluate: {listed or 'config.tasks is empty'}")
    return planned, absent


def make_evaluation(
    config: EvaluateConfig,
    planned: Sequence[suite.PlannedTask],
    absent: Mapping[str, str],
    measured: Measured,
    data: Mapping[tuple[str, str], Examples],
) -> dict[str, Any]:
    """The content of ``evaluation.json``."""
    hashes = {name: described["weights_hash"] for name, described in measured.described.items()}
    evaluation: dict[str, Any] = {
        "format_version": report_files.FORMAT_VERSION,
        "models": measured.described,
        "versions": {"plip_jax": __version__, **{name: metadata.version(name) for name in _VERSIONED}},
        "config": dataclasses.asdict(config),
        "tasks": report_files.tasks_block(planned, measured.results, measured.not_applicable, hashes),
        "comparisons": comparison.compare_models(planned, measured.results, data),
        "over_seeds": comparison.compare_over_seeds(planned, measured.results),
        "absent": dict(absent),
        "leakage": {"absent": measured.not_audited},
    }
    if measured.audit is not None:
        evaluation["leakage"] = measured.audit.report
        by_task = {
            item.name: {
                name: found[item.name] for name, found in measured.without_flagged.items() if item.name in found
            }
            for item in planned
        }
        evaluation["without_flagged"] = {task: found for task, found in by_task.items() if found}
    return evaluation


def _run(flags: argparse.Namespace, config: EvaluateConfig) -> None:
    planned, absent = plan(config, flags.tasks)
    axes = wise_ft.choose_axes(planned, flags.in_domain, flags.general) if flags.wise_ft_from else None
    out: Path = flags.out
    if out.exists() and not out.is_dir():  # before minutes of computing
        raise EvaluationError(f"--out {out}: expected a folder, or a name that is free, got a file")
    lock = out / "prompts.lock.json"
    prompts = {item.name: prompts_lock.freeze(item.task.prompts(item.config)) for item in planned}
    prompts_lock.check_lock(lock, prompts)
    planned, data, missing = suite.open_available(
        planned,
        open_examples,
        no_split=(MissingSplitError, MissingFolderError, MissingRecordsSplitError),
        not_in_set=(MissingSplitError,),
        allow_absent=config.allow_absent,
    )
    absent |= missing
    prompts_lock.write_lock(lock, prompts)  # nothing was embedded yet
    for name, reason in absent.items():
        print(f"{name}: absent ({reason})")
    for item in planned:
        print(f"{item.name}: {len(data[item.source].ids):,} examples of {' '.join(item.source)}".rstrip())
    options = OpenOptions(
        which=flags.which,
        tokenizer=flags.tokenizer,
        activation=flags.activation,
        weights=flags.weights,
        compute_dtype=config.compute_dtype,
        batch_size=config.batch_size,
        progress=sys.stderr.isatty(),
    )
    sweep = None
    if axes is None:
        measured = measure(
            flags.checkpoint,
            planned,
            data,
            options=options,
            cache=EmbeddingCache(flags.cache or out / "embeddings"),
            bootstrap=config.intervals,
            leakage=audit.AuditConfig(**config.leakage),
        )
    else:
        measured, sweep = _measure_mixtures(flags, config, planned, data, axes, options)
    evaluation = make_evaluation(config, planned, absent, measured, data)
    prompts_lock.check_lock(lock, {item.name: prompts_lock.freeze(item.task.prompts(item.config)) for item in planned})
    tables = {} if measured.audit is None else {"leakage.csv": measured.audit.rows}
    files = report_files.write_report(
        out, evaluation, measured.results, thumbnails_of(planned, data), sweep=sweep, tables=tables
    )
    print(f"\n{(out / 'report.md').read_text(encoding='utf-8')}")
    for path in files:
        print(f"wrote {path}")
    if measured.failed:
        raise EvaluationError(f"{len(measured.failed)} failed, all else is in the report: {'; '.join(measured.failed)}")


def _measure_mixtures(
    flags: argparse.Namespace,
    config: EvaluateConfig,
    planned: Sequence[suite.PlannedTask],
    data: Mapping[tuple[str, str], Examples],
    axes: tuple[wise_ft.Axis, wise_ft.Axis],
    options: OpenOptions,
) -> tuple[Measured, dict[str, Any]]:
    """A WiSE-FT sweep; what is measured is its last point, the checkpoint itself where 1 is among the alphas."""
    ((name, source),) = flags.checkpoint.items()
    told = {"tokenizer": flags.tokenizer, "activation": flags.activation}
    end = load_model(source, which=flags.which, weights=flags.weights, **settings_of(source, **told))
    start = load_model(flags.wise_ft_from, **settings_of(flags.wise_ft_from, **told))
    for what, model in ((name, end), ("start", start)):
        print(f"{what}: {model.weights_file} of {model.source} (sha256 {model.weights_hash[:16]}…)", flush=True)
    mixed = (end if alpha == 1 else interpolate_models(start, end, alpha) for alpha in flags.alphas)
    found = evaluate_models(mixed, planned, data, options=options, bootstrap=config.intervals)
    points = [(alpha, one.weights_hash, of) for alpha, (one, of) in zip(flags.alphas, found, strict=True)]
    sweep = wise_ft.make_sweep(axes, start.describe(), end.describe(), points)
    model, results = found[-1]
    described = {
        **model.describe(),
        "network": model.config.to_dict(),
        "preprocessing": model.preprocessing.to_dict(),
    }
    not_run = {item.name: "a WiSE-FT sweep trains nothing" for item in planned if item.name not in results}
    measured = Measured({name: described}, {name: not_run}, {name: results})
    if config.leakage.get("data"):
        measured.not_audited = "a WiSE-FT sweep is not audited; evaluate the checkpoint without --wise-ft-from"
    return measured, sweep


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit status: 0, 1 where data or model do not fit, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(prog="plip-jax evaluate", description="Evaluate checkpoints.")
    add_model_flags(parser, several=True)
    parser.add_argument(
        "--out", required=True, type=Path, help="folder for evaluation.json, report.html, tables, pictures"
    )
    parser.add_argument("--tasks", type=_names, default=(), help="run these tasks of the config only, commas between")
    parser.add_argument("--cache", type=Path, help="folder of embeddings, read and added to (default: OUT/embeddings)")
    _add_wise_ft_flags(parser)
    flags, config = parse_config_args(parser, argv)
    if not flags.wise_ft_from and (flags.alphas or flags.in_domain or flags.general):
        parser.error("--alphas, --in-domain and --general need --wise-ft-from START")
    if flags.wise_ft_from and len(flags.checkpoint) > 1:
        parser.error("--wise-ft-from: expected one --checkpoint, which fine-tuning ended at")
    flags.alphas = flags.alphas or DEFAULT_ALPHAS
    try:
        flags.checkpoint = name_checkpoints(flags.checkpoint)
        _run(flags, _read_config(config))
    except (ValueError, OSError) as error:
        print(f"plip-jax evaluate: {error}", file=sys.stderr)
        return 1
    return 0


def name_checkpoints(sources: Sequence[str]) -> dict[str, str]:
    """Sources by name: ``NAME=SOURCE``, or the last part of the source.

    Raises:
        EvaluationError: a name twice.
    """
    named: dict[str, str] = {}
    for text in sources:
        match = _NAMED.fullmatch(text)
        name, source = match.groups() if match else (re.sub(r"[^A-Za-z0-9_.+-]", "_", Path(text).name) or "model", text)
        if name in named:
            raise EvaluationError(f"two checkpoints are called {name!r}: name them with --checkpoint NAME=SOURCE")
        if not name[0].isalnum() or name in _RESERVED:
            raise EvaluationError(f"a checkpoint cannot be called {name!r}: name it with --checkpoint NAME=SOURCE")
        named[name] = source
    return named


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


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
        read = EvaluateConfig(**config.to_dict())
        _ = read.intervals, audit.AuditConfig(**read.leakage)  # their fields are checked before anything is opened
    except TypeError as error:
        known = ", ".join(field.name for field in dataclasses.fields(EvaluateConfig))
        raise EvaluationError(f"this is no evaluation config: {error} (its fields: {known})") from error
    return read


if __name__ == "__main__":
    sys.exit(main())
