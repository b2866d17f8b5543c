"""What a run says while it runs: metrics to files, a progress line, and what of them is shown.

JSON lines are always written; TensorBoard and Weights & Biases are extras. The JSON lines are the record of the run:
one object a line with ``step`` (updates done), append-only, cut back on resume so that no step is there twice.
"""

import json
import os
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

Scalars = Mapping[str, float]
METRICS_FILE = "metrics.jsonl"


class MetricWriter(Protocol):
    """Where metrics go."""

    def write(self, step: int, scalars: Scalars) -> None:
        """Take the scalars of a step."""
        ...

    def close(self) -> None:
        """Flush and let go."""
        ...


class JsonLinesWriter:
    """``metrics.jsonl`` in the work directory, one flushed line a call."""

    def __init__(self, workdir: Path, config: Mapping[str, Any], first_step: int):
        del config, first_step  # the signature of the table; `cut_metrics` has cut the file
        self._file = (workdir / METRICS_FILE).open("a", encoding="utf-8")

    def write(self, step: int, scalars: Scalars) -> None:
        """Append a line; NaN and infinities are written as JSON strings, which JSON itself lacks."""
        line = {"step": step} | {k: v if abs(v) < float("inf") else str(v) for k, v in scalars.items()}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardWriter:
    """Event files in ``tensorboard/``; needs the ``tensorboard`` extra."""

    def __init__(self, workdir: Path, config: Mapping[str, Any], first_step: int):
        del config  # the signature of the table
        # tensorboardX and not clu.metric_writers, which imports TensorFlow.
        tensorboardX = _import_extra("tensorboardX", "tensorboard")
        self._writer = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step)

    def write(self, step: int, scalars: Scalars) -> None:
        """Add each scalar under its name."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the events."""
        self._writer.close()


class WandbWriter:
    """A Weights & Biases run named after the work directory; needs the ``wandb`` extra."""

    def __init__(self, workdir: Path, config: Mapping[str, Any], first_step: int):
        del first_step  # W&B itself drops steps that it has
        wandb = _import_extra("wandb", "wandb")
        # One id for one work directory: a resumed run goes on in the same W&B run.
        id_file = workdir / "wandb_id.txt"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex, encoding="utf-8")
        self._run = wandb.init(
            project="plip_jax",
            name=workdir.name,
            id=id_file.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(workdir),
            config=dict(config or {}),
        )

    def write(self, step: int, scalars: Scalars) -> None:
        """Log the scalars at the step."""
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


WRITERS: dict[str, Callable[..., MetricWriter]] = {
    "jsonl": JsonLinesWriter,
    "tensorboard": TensorBoardWriter,
    "wandb": WandbWriter,
}
"""Name -> where metrics go; ``jsonl`` is always on, the others are switches in the block ``logging`` of a config."""


def _import_extra(module: str, extra: str) -> Any:
    try:
        return __import__(module)
    except ImportError as error:
        raise ImportError(
            f"logging to {extra} needs {module}: pip install {module}, or --config.logging.{extra}=False"
        ) from error


def make_writers(
    workdir: Path, names: Sequence[str], config: Mapping[str, Any], *, first_step: int = 1
) -> list[MetricWriter]:
    """Open the named entries of ``WRITERS``; JSON lines are always among them.

    Args:
        workdir: where they write.
        names: keys of ``WRITERS``.
        config: shown by those that can.
        first_step: the first that will be written; what an earlier, killed run wrote from there on is void.
    """
    writers: list[MetricWriter] = []
    try:
        for name in dict.fromkeys(["jsonl", *names]):
            writers.append(WRITERS[name](workdir, config, first_step))
    except ImportError:
        for writer in writers:
            writer.close()
        raise
    return writers


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``; a last line that a kill cut short is left out."""
    path = workdir / METRICS_FILE
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def cut_metrics(workdir: Path, step: int) -> None:
    """Drop the lines behind ``step``: the resumed run writes them again."""
    path = workdir / METRICS_FILE
    if not path.exists():
        return
    kept = [line for line in read_metrics(workdir) if line["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    os.replace(temporary, path)


class ProgressLine:
    """One line that is rewritten on a terminal, or a plain line a report where there is none.

    Of several processes the first speaks for all; a warning is each one's own.
    """

    def __init__(self, total_steps: int, stream: TextIO | None = None, *, process: int | None = None):
        """Write to ``stream`` (stderr if None); ``process`` is this one's index where there are several."""
        self._total = total_steps
        self._process = process
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()

    def report(self, step: int, scalars: Scalars) -> None:
        """Show step, loss, pairs a second, MFU, the share of time spent waiting for data, and the time left."""
        if self._process:
            return
        text = f"step {step}/{self._total}  loss {scalars['loss']:.4f}"
        if "steps_per_second" in scalars:  # not at the first step, which compiles
            left = _duration((self._total - step) / scalars["steps_per_second"])
            mfu = f"  MFU {scalars['mfu']:.1%}" if "mfu" in scalars else ""
            text += (
                f"  {scalars['pairs_per_second']:.0f} pairs/s{mfu}  waiting for data "
                f"{scalars['data_wait_share']:.0%}  {left} left"
            )
        self._stream.write(f"\r\x1b[2K{text}" if self._live else f"{text}\n")
        self._stream.flush()

    def say(self, text: str) -> None:
        """Print a line of its own; on a terminal the live line is wiped first."""
        if not self._process:
            self._print(text)

    def warn(self, text: str) -> None:
        """Print a line of its own from any process, which it names."""
        self._print(text if self._process is None else f"process {self._process}: {text}")

    def _print(self, text: str) -> None:
        self._stream.write(f"\r\x1b[2K{text}\n" if self._live else f"{text}\n")
        self._stream.flush()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def headlines(names: Iterable[str]) -> list[str]:
    """The evaluation metrics worth a glance, of many."""
    return [name for name in names if name.endswith(("recall@10", "weighted_f1"))]
