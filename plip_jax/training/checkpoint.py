"""Checkpoints of a run: the only file that knows orbax.

A work directory holds ``checkpoints/<step>/``; a step holds parameters, their moving average where the run keeps one,
optimiser state, the tokenizer's files, the position in the data, metrics, and descriptions of the model (CLIP
configuration, preprocessing) and of the run (configuration, machines). It needs nothing beside it. Orbax writes each
step under a temporary name and renames it, so a step that is listed is whole. The folder may be elsewhere, and in a
bucket: see `plip_jax.training.checkpoint_folder`.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from plip_jax.sharding import values_of_processes
from plip_jax.training.checkpoint_folder import CheckpointError, checkpoints_folder, claim_folder
from plip_jax.training.checkpoint_folder import is_workdir as is_workdir  # a part of this module's interface
from plip_jax.training.state import TrainState

FORMAT_VERSION = 2
"""The version that is written; 1 and 2 are read.

2 added the moving average and the counts of skipped steps. A step of version 1 has neither: its counts are read as 0.
"""
_READABLE_VERSIONS = (1, 2)
Which = Literal["latest", "best"] | int
"""A checkpoint of a run: the newest, the best by the run's own metric, or that of a step."""
Weights = Literal["auto", "raw", "ema"]
"""Of a checkpoint: ``raw``; ``ema``, their moving average; or ``auto``, the average where the run kept one."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is kept.

    Attributes:
        keep: the newest checkpoints that are kept.
        best_metric: name of the evaluation metric whose best checkpoint is kept beside them; empty for none.
        best_mode: ``max`` or ``min``.
        directory: where they are written, a folder or a ``gs://`` URL; empty for ``checkpoints`` in the work directory.
    """

    keep: int = 2
    best_metric: str = ""
    best_mode: str = "max"
    directory: str = ""

    def __post_init__(self) -> None:
        if self.keep < 1 or self.best_mode not in ("max", "min"):
            raise ValueError(
                f"checkpoint: expected keep >= 1 and best_mode max or min, got {self.keep} and {self.best_mode!r}"
            )


@dataclasses.dataclass(frozen=True)
class Description:
    """What a step says of itself besides its arrays; all of it fit for JSON.

    Attributes:
        model_config: ``CLIPConfig.to_dict()``.
        preprocessing: ``Preprocessing.to_dict()``.
        config: every field of the run's configuration by its dotted name.
        environments: of each machine the run was on, in order; see `plip_jax.training.provenance`.
        data_state: of the data iterator.
        metrics: of the evaluation at this step; empty where there was none.
        best_metric: the run's ``checkpoint.best_metric``.
        best_mode: the run's ``checkpoint.best_mode``.
    """

    model_config: dict[str, Any]
    preprocessing: dict[str, Any]
    config: dict[str, Any]
    environments: list[dict[str, Any]]
    data_state: dict[str, Any] = dataclasses.field(default_factory=dict)
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    best_metric: str = ""
    best_mode: str = "max"


@dataclasses.dataclass(frozen=True)
class ModelFiles:
    """A trained model as read back, nothing placed on a device.

    Attributes:
        params: nested dict of numpy arrays.
        tokenizer_files: name -> text, ``Tokenizer.files``.
        description: of the step.
        step: updates done.
        weights: what ``params`` are: ``raw``, as the optimiser left them, or ``ema``, their moving average.
    """

    params: dict[str, Any]
    tokenizer_files: dict[str, str]
    description: Description
    step: int
    weights: str


class Checkpoints:
    """Writes and restores the steps of one run; close it at the end, so that the last asynchronous write lands."""

    def __init__(self, workdir: Path, config: CheckpointConfig):
        """Open ``workdir``, made where missing, for training; leftovers of a write that was killed are removed.

        Raises:
            CheckpointError: the run has checkpoints, and not at ``config.directory``; or that cannot be used, or is not
                the same on all processes.
        """
        self._directory = claim_folder(workdir, config.directory)
        self._config = config
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
            preservation_policy=_preservation_policy(config),
            cleanup_tmp_directories=True,
        )
        newest = values_of_processes(-1 if self.latest_step is None else self.latest_step)
        if len(set(newest)) > 1:
            raise CheckpointError(
                f"{self._directory}: the processes see different newest steps ({newest}, -1 for none); put the "
                "checkpoints on storage that all of them share, with --config.checkpoint.directory"
            )

    @property
    def latest_step(self) -> int | None:
        """The newest whole step, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def describe(self) -> Description:
        """Read what the newest step says of itself.

        Raises:
            CheckpointError: none there, or of an unknown format version.
        """
        if self.latest_step is None:
            raise CheckpointError(f"{self._directory}: no checkpoint to read")
        return _read_metadata(self._directory, self.latest_step)[1]

    def read_tokenizer_files(self) -> dict[str, str]:
        """The tokenizer's files of the newest step."""
        return _load(self._directory, self.latest_step or 0, ("tokenizer",))["tokenizer"]

    def save(self, state: TrainState, description: Description, tokenizer_files: Mapping[str, str]) -> None:
        """Write the state's step in the background; returns when the device arrays are copied.

        A step that exists is left as it is.
        """
        step = int(state.step)
        if step == self.latest_step:
            return
        said: Any = {
            "format_version": FORMAT_VERSION,
            **dataclasses.asdict(description),
            "best_metric": self._config.best_metric,
            "best_mode": self._config.best_mode,
        }
        self._checkpointer.save_checkpointables_async(
            step,
            {
                **_by_checkpointable(state),
                "tokenizer": {"files": np.frombuffer(json.dumps(dict(tokenizer_files)).encode(), np.uint8)},
            },
            force=True,  # train.py decides when to save; orbax's own policy could refuse the step of a SIGTERM
            metrics=said["metrics"],
            custom_metadata=said,
        )

    def restore(self, abstract_state: TrainState) -> TrainState:
        """Read the newest step onto devices.

        Args:
            abstract_state: shapes, dtypes and shardings (``jax.ShapeDtypeStruct``) of every array; the number of
                devices may differ from the one that wrote it.

        Raises:
            CheckpointError: none there, of an unknown format version, of another model, or damaged.
        """
        step = self.latest_step
        if step is None:
            raise CheckpointError(f"{self._directory}: no checkpoint to restore")
        arrays, _ = _read_metadata(self._directory, step)
        wanted = _by_checkpointable(abstract_state)
        if "ema" in wanted and "ema" not in arrays:
            raise CheckpointError(
                f"{self._directory}/{step} holds no moving average (ema) of the weights, and this run keeps one. Keep "
                "none, or begin a run of its own from these weights: another --workdir with "
                "--config.model.init_from=WORKDIR"
            )
        uncounted = {name: wanted["optimizer"].pop(name) for name in _COUNTS if name not in arrays["optimizer"]}
        # Before orbax: it would fail at the first difference, and leave half a load behind.
        differences = [
            f"{path}: {there} in the checkpoint, {here} in this run"
            for path, (there, here) in _compare_shapes({name: arrays[name] for name in wanted}, wanted).items()
        ]
        if differences:
            raise CheckpointError(
                f"{self._directory}/{step} does not fit this run's model or optimiser:\n  "
                + "\n  ".join(differences)
                + "\nUse the configuration that wrote it, or another --workdir."
            )
        with _named_damage(self._directory, step):
            loaded = self._checkpointer.load_checkpointables(step, wanted)
        zeros = {name: jax.device_put(np.zeros((), leaf.dtype), leaf.sharding) for name, leaf in uncounted.items()}
        return TrainState(params=loaded["params"], ema=loaded.get("ema"), **loaded["optimizer"], **zeros)

    def close(self) -> None:
        """Wait for the write in progress."""
        self._checkpointer.close()


_COUNTS = ("skipped", "skipped_in_row")


def _by_checkpointable(state: TrainState) -> dict[str, Any]:
    """A state's arrays by what is read alone: weights or their moving average to use a model, all of it to go on."""
    optimizer = {"step": state.step, "opt_state": state.opt_state} | {name: getattr(state, name) for name in _COUNTS}
    average = {} if state.ema is None else {"ema": state.ema}
    return {"params": state.params, "optimizer": optimizer, **average}


def _compare_shapes(one: Any, other: Any) -> dict[str, tuple[Any, Any]]:
    """The paths at which two trees hold arrays of different shape, or only one of them an array."""

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: hasattr(node, "shape"))
        # The names of an optax state's fields come back from disk as they went; only their container differs.
        return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}

    ours, theirs = shapes(one), shapes(other)
    return {
        path: (ours.get(path, "absent"), theirs.get(path, "absent"))
        for path in sorted(ours.keys() | theirs.keys())
        if ours.get(path) != theirs.get(path)
    }


def _preservation_policy(config: CheckpointConfig) -> Any:
    policies = ocp.training.preservation_policies
    latest = policies.LatestN(config.keep)
    if not config.best_metric:
        return latest
    best = policies.BestN(
        get_metric_fn=lambda metrics: _score(metrics, config.best_metric, config.best_mode),
        n=1,
        keep_checkpoints_without_metrics=False,
    )
    return policies.AnyPreservationPolicy([latest, best])


def _score(metrics: Mapping[str, float] | None, name: str, mode: str) -> float:
    """Larger is better; a step without the metric is the worst."""
    value = (metrics or {}).get(name)
    return float("-inf") if value is None or np.isnan(value) else value if mode == "max" else -value


def _read_metadata(directory: epath.Path, step: int) -> tuple[Mapping[str, Any], Description]:
    """What a step holds: array metadata by checkpointable, and its description."""
    with _named_damage(directory, step):
        metadata = ocp.checkpointables_metadata(directory / str(step))
        custom: Any = metadata.custom_metadata or {}
    said = dict(custom)
    found = said.pop("format_version", None)
    if found not in _READABLE_VERSIONS:
        raise CheckpointError(
            f"{directory}/{step}: expected checkpoint format version {' or '.join(map(str, _READABLE_VERSIONS))}, got "
            f"{found}; read it with the plip_jax that wrote it, or update plip_jax"
        )
    try:
        return metadata.metadata, Description(**said)
    except TypeError as error:  # a field that only another version knows
        raise CheckpointError(
            f"{directory}/{step}: its description does not fit this plip_jax ({error}); read it with the plip_jax that "
            "wrote it"
        ) from error


def _load(directory: epath.Path, step: int, names: Sequence[str]) -> dict[str, Any]:
    """Read checkpointables into host memory; the tokenizer's files are decoded."""
    arrays, _ = _read_metadata(directory, step)
    with _named_damage(directory, step):
        abstract = {name: jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), arrays[name]) for name in names}
        loaded = ocp.load_checkpointables(directory / str(step), abstract)
        if "tokenizer" in loaded:
            loaded["tokenizer"] = json.loads(bytes(loaded["tokenizer"]["files"]))
    return loaded


@contextmanager
def _named_damage(directory: epath.Path, step: int) -> Iterator[None]:
    """Turn what orbax and its storage raise for files that are missing or damaged into one error."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # a dozen unrelated types
        raise CheckpointError(
            f"{directory}/{step} cannot be read ({type(error).__name__}: {error}); if it is damaged, remove it: "
            "the run goes on from the one before"
        ) from error


def _choose_step(directory: epath.Path, which: Which) -> int:
    with ocp.training.Checkpointer(directory) as checkpointer:
        steps = [checkpoint.step for checkpoint in checkpointer.checkpoints]
    if not steps:
        raise CheckpointError(
            f"{directory}: no whole checkpoint; train longer, or lower train.checkpoint_interval_steps"
        )
    if which == "latest":
        return max(steps)
    if which == "best":
        return _best_step(directory, steps)
    if which not in steps:
        raise CheckpointError(f"{directory}: no step {which!r}; there are {sorted(steps)}, latest and best")
    return which


def _best_step(directory: epath.Path, steps: Sequence[int]) -> int:
    newest = _read_metadata(directory, max(steps))[1]
    name, mode = newest.best_metric, newest.best_mode
    if not name:
        raise CheckpointError(f"{directory}: no best checkpoint, the run set no checkpoint.best_metric; use latest")
    scores: dict[int, float] = {}
    for step in steps:
        try:
            scores[step] = _score(_read_metadata(directory, step)[1].metrics, name, mode)
        except CheckpointError:
            continue  # an old step whose removal was killed half way
    best = max(scores, key=lambda step: (scores[step], step))
    if scores[best] == float("-inf"):
        raise CheckpointError(f"{directory}: no checkpoint was evaluated by {name} yet; use latest")
    return best


def read_model(workdir: str | Path, which: Which = "latest", weights: Weights = "auto") -> ModelFiles:
    """Read a run's model without its optimiser, into host memory.

    Args:
        workdir: a run's work directory.
        which: ``latest``, ``best`` (by the run's ``checkpoint.best_metric``) or a step.
        weights: ``raw``, as the optimiser left them; ``ema``, their moving average; ``auto``, the moving average where
            the run kept one, which is what its evaluations were of.

    Raises:
        CheckpointError: no such checkpoint, none of such weights, or one of an unknown format version.
    """
    directory = checkpoints_folder(workdir)
    step = _choose_step(directory, which)
    arrays, description = _read_metadata(directory, step)
    if weights not in ("auto", "raw", "ema"):
        raise CheckpointError(f"weights: expected auto, raw or ema, got {weights!r}")
    if weights == "ema" and "ema" not in arrays:
        raise CheckpointError(f"{directory}/{step}: the run kept no moving average (ema) of its weights; read raw")
    name = "params" if weights == "raw" or "ema" not in arrays else "ema"
    loaded = _load(directory, step, (name, "tokenizer"))
    return ModelFiles(loaded[name], loaded["tokenizer"], description, step, "raw" if name == "params" else "ema")


def read_description(workdir: str | Path, step: int) -> Description:
    """What a step of a run says of itself; no arrays are read.

    Raises:
        CheckpointError: no such checkpoint, or one of an unknown format version.
    """
    return _read_metadata(checkpoints_folder(workdir), step)[1]
