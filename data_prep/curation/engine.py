"""Runs a stage of curation on Apache Beam: rows in, shuffled by a key, one task a part, part files out.

Beam carries rows only; images stay in the store, and a task writes its part itself, whole or not at all. So images cost
no memory; rows do, for the local runner holds those of one shuffle (4 kB each). A part depends on nothing but its rows,
and a run that was killed goes on where it stopped: a finished stage is not run again, nor is a finished part of an
unfinished one. Work folder and store must be on a file system that all workers see.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from tqdm import tqdm

from data_prep.curation.pair import Decision
from data_prep.curation.rows import (
    PART_NAME,
    decode_row,
    encode_row,
    part_files,
    partition_of,
    read_part,
    write_atomically,
)
from data_prep.curation.rows import write_part as write_rows

_WATCH_SECONDS = 0.5
_DONE_NAME = "DONE.json"
_FINGERPRINT_NAME = "FINGERPRINT"
_PLAN_NAME = "plan.json"

KeyedRow = tuple[int, str]
Task = Callable[[int, list[Any]], Iterable[Any]]
"""The number of a part and its rows, sorted, to rows that go on and decisions."""


class EngineError(ValueError):
    """The runner cannot be used as asked; the message says what to change."""


@dataclasses.dataclass(frozen=True)
class EngineSettings:
    """Where the stages run.

    Attributes:
        runner: An entry of `RUNNERS`, or the name of any Beam runner, e.g. "FlinkRunner".
        workers: Processes on this machine, for "local" and for "dask" without an address.
        partitions: Parts of a stage. A part's rows are in memory at once; the outputs do not depend on it.
        options: Pipeline options, passed on as they are, e.g. "--flink_master=host:8081".
    """

    runner: str = "local"
    workers: int = 1
    partitions: int = 64
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.workers < 1 or self.partitions < 1:
            raise EngineError(f"expected workers and partitions of 1 or more, got {self.workers} and {self.partitions}")


@contextlib.contextmanager
def _local(settings: EngineSettings) -> Iterator[tuple[Any, list[str]]]:
    """Beam's own runner for one machine, named: the default one would look for a download."""
    several = [f"--direct_num_workers={settings.workers}", "--direct_running_mode=multi_processing"]
    yield FnApiRunner(), several if settings.workers > 1 else []


@contextlib.contextmanager
def _dask(settings: EngineSettings) -> Iterator[tuple[Any, list[str]]]:
    """A Dask cluster: the one whose address is in the options, or one of processes on this machine."""
    try:
        from apache_beam.runners.dask.dask_runner import DaskRunner
        from dask.distributed import LocalCluster
    except ImportError as error:
        raise EngineError('runner "dask" needs the extra: pip install "apache-beam[dask]"') from error
    shares = [f"--dask_npartitions={settings.partitions}"]
    if any(option.startswith(("--dask_client_address", "--dask_scheduler_file")) for option in settings.options):
        yield DaskRunner(), shares
        return
    # No page of its own, and no news of its workers, which would bury the progress.
    quiet: dict[str, Any] = {"dashboard_address": None, "silence_logs": logging.ERROR}
    cluster: Any = LocalCluster(n_workers=settings.workers, threads_per_worker=1, **quiet)
    with cluster:
        yield DaskRunner(), [*shares, f"--dask_client_address={cluster.scheduler_address}"]


RUNNERS: dict[str, Callable[[EngineSettings], contextlib.AbstractContextManager[tuple[Any, list[str]]]]] = {
    "local": _local,
    "dask": _dask,
}
"""``engine.runner`` in the recipe -> what gives a Beam runner and its options, and ends it."""


class Engine:
    """Runs pipelines on one runner; use it in a `with` block, which holds a cluster of its own open."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self._stack = contextlib.ExitStack()
        self._runner: Any = settings.runner
        self._options: list[str] = []

    def __enter__(self) -> "Engine":
        self._stack.enter_context(_quiet_loggers())
        if self.settings.runner in RUNNERS:
            self._runner, self._options = self._stack.enter_context(RUNNERS[self.settings.runner](self.settings))
        elif not self.settings.runner.endswith("Runner"):
            raise EngineError(
                f'runner {self.settings.runner!r}: known are {", ".join(RUNNERS)} and "...Runner" of Beam'
            )
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def run(self, build: Callable[[beam.Pipeline], Any]) -> None:
        """Build a pipeline and run it to its end."""
        options = PipelineOptions([*self._options, *self.settings.options])
        pipeline = beam.Pipeline(runner=self._runner, options=options)
        build(pipeline)
        result = pipeline.run()
        result.wait_until_finish()
        client = getattr(result, "client", None)  # Dask's result leaves its connection open
        if client is not None:
            client.close()


@contextlib.contextmanager
def _quiet_loggers() -> Iterator[None]:
    names = ("apache_beam", "distributed", "root")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@dataclasses.dataclass(frozen=True)
class StageFolder:
    """A stage's place in the work folder: rows kept, rows dropped, and whether it is whole."""

    folder: Path

    @property
    def kept(self) -> Path:
        """Part files of what goes on."""
        return self.folder / "kept"

    @property
    def dropped(self) -> Path:
        """Part files of decisions."""
        return self.folder / "dropped"

    def is_done(self, fingerprint: str) -> bool:
        """Whether the stage was finished from the same input and settings."""
        path = self.folder / _DONE_NAME
        return path.is_file() and json.loads(path.read_text())["fingerprint"] == fingerprint

    def plan(self) -> dict[str, Any]:
        """What was counted when all rows were decided about together, of such a stage."""
        return json.loads((self.folder / _PLAN_NAME).read_text())

    def counts(self) -> dict[str, int]:
        """Rows kept and dropped, of a finished stage."""
        return json.loads((self.folder / _DONE_NAME).read_text())["counts"]

    def begin(self, fingerprint: str, parts: int) -> None:
        """Make the folder; what another input, other settings or another number of parts left in it is removed."""
        path = self.folder / _FINGERPRINT_NAME
        begun = f"{fingerprint} {parts}"
        if self.folder.exists() and (not path.is_file() or path.read_text() != begun):
            for name in (_DONE_NAME, _FINGERPRINT_NAME):  # first: killed below, nothing may look whole
                (self.folder / name).unlink(missing_ok=True)
            shutil.rmtree(self.folder)
        self.kept.mkdir(parents=True, exist_ok=True)
        self.dropped.mkdir(exist_ok=True)
        write_atomically(path, begun.encode())

    def finish(self, fingerprint: str) -> None:
        """Count the rows and say that the stage is whole."""
        counts = {"kept": count_rows(self.kept), "dropped": count_rows(self.dropped)}
        write_atomically(self.folder / _DONE_NAME, json.dumps({"fingerprint": fingerprint, "counts": counts}).encode())


def count_rows(folder: Path) -> int:
    """Count the rows of all part files of a folder."""
    total = 0
    for path in part_files(folder):
        with path.open("rb") as file:
            total += sum(1 for _ in file)
    return total


def fingerprint_of(*facts: Any) -> str:
    """Return a hash of JSON values: equal facts, equal fingerprint."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def read_keyed(path: Path, kind: Any, key: Callable[[Any], str], partitions: int) -> Iterator[KeyedRow]:
    """Yield the rows of a part file, each with the part of the next stage that its key belongs to."""
    for row in read_part(path, kind):
        yield partition_of(key(row), partitions), encode_row(row)


def run_task(keyed: tuple[int, Iterable[str]], *, kind: Any, task: Task, stage: StageFolder) -> tuple[int, int]:
    """Run one part of a stage: rows in the order of their lines, to rows that go on and decisions.

    A part whose files are there is not run again. Returns the part and the number of its rows.
    """
    part, lines = keyed
    kept_path = stage.kept / PART_NAME.format(part)
    if kept_path.exists():
        return part, 0
    rows = [decode_row(kind, line) for line in sorted(lines)]
    kept: list[Any] = []
    dropped: list[Decision] = []
    for result in task(part, rows):
        (dropped if isinstance(result, Decision) else kept).append(result)
    write_rows(stage.dropped, part, dropped)
    write_rows(stage.kept, part, kept)  # the last: it says that the part is done
    return part, len(rows)


def run_stage(
    engine: Engine,
    stage: StageFolder,
    fingerprint: str,
    *,
    inputs: Iterable[Any],
    read: Callable[[Any], Iterable[KeyedRow]],
    kind: Any,
    task: Task,
    expected: int | None = None,
) -> None:
    """Run a stage as one Beam pipeline, unless it is done.

    Args:
        engine: Where.
        stage: Its folder.
        fingerprint: Of its input and settings.
        inputs: What `read` is called with, one by one.
        read: Yields lines of rows with the part they go to; runs on the workers.
        kind: The dataclass of the rows.
        task: Runs on the workers.
        expected: Rows that come in, for the display; None where that is not known.
    """
    if stage.is_done(fingerprint):
        return
    stage.begin(fingerprint, engine.settings.partitions)

    def build(pipeline: beam.Pipeline) -> Any:
        return (
            pipeline
            | "inputs" >> beam.Create(list(inputs))
            | "spread" >> beam.Reshuffle()
            | "read" >> beam.FlatMap(read)
            | "shuffle" >> beam.GroupByKey()
            | "task" >> beam.Map(functools.partial(run_task, kind=kind, task=task, stage=stage))
        )

    with watch(stage.folder.name, lambda: len(part_files(stage.kept)), engine.settings.partitions, expected):
        engine.run(build)
    stage.finish(fingerprint)


def run_here(
    stage: StageFolder,
    fingerprint: str,
    *,
    inputs: Iterable[Path],
    kind: Any,
    task: Task,
    expected: int | None = None,
    plan: Mapping[str, Any] | None = None,
) -> None:
    """Run a stage part by part in this process: for what needs this machine's state or the rows of all parts.

    `plan` is kept beside the rows, see `StageFolder.plan`.
    """
    if stage.is_done(fingerprint):
        return
    paths = list(inputs)
    stage.begin(fingerprint, len(paths))
    if plan is not None:
        write_atomically(stage.folder / _PLAN_NAME, json.dumps(plan).encode())
    with watch(stage.folder.name, lambda: len(part_files(stage.kept)), len(paths), expected):
        for path in paths:
            part = int(path.stem.removeprefix("part-"))
            lines = path.read_text(encoding="ascii").splitlines()
            run_task((part, lines), kind=kind, task=task, stage=stage)
    stage.finish(fingerprint)


@contextlib.contextmanager
def watch(name: str, count_done: Callable[[], int], parts: int, expected: int | None = None) -> Iterator[None]:
    """Show how far something is, from the files there: the same on every runner.

    Args:
        name: What is shown.
        count_done: Counts the parts that are done.
        parts: How many there are to be.
        expected: Rows of all parts, of which the done ones' share is shown; None shows parts.
    """
    total, each = (parts, 1.0) if not expected else (expected, expected / max(1, parts))
    bar = tqdm(total=total, desc=name, unit=" parts" if each == 1.0 else " rows", disable=None)
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(_WATCH_SECONDS):
            bar.n = min(total, round(count_done() * each))
            bar.refresh()

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
        bar.n = total
    finally:
        stop.set()
        watcher.join()
        bar.close()
