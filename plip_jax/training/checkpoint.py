"""Checkpoints of a run: the only file that knows orbax.

A work directory holds ``tokenizer/`` and ``checkpoints/<step>/``; a step holds parameters, optimiser state, the
position in the data, metrics, and a description of the model (format version, CLIP configuration, preprocessing,
tokenizer fingerprint, package versions). Orbax writes each step under a temporary name and renames it, so a step that
is listed is whole.
"""

import dataclasses
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from plip_jax.training.state import TrainState

FORMAT_VERSION = 1
Which = Literal["latest", "best"] | int

_CHECKPOINTS = "checkpoints"
_TOKENIZER = "tokenizer"
_PACKAGES = ("plip-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers", "numpy", "pillow")


class CheckpointError(ValueError):
    """A work directory or checkpoint that cannot be used as asked; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is kept.

    Attributes:
        keep: the newest checkpoints that are kept.
        best_metric: name of the evaluation metric whose best checkpoint is kept beside them; empty for none.
        best_mode: ``max`` or ``min``.
    """

    keep: int = 2
    best_metric: str = ""
    best_mode: str = "max"

    def __post_init__(self) -> None:
        if self.keep < 1 or self.best_mode not in ("max", "min"):
            raise ValueError(
                f"checkpoint: expected keep >= 1 and best_mode max or min, got {self.keep} and {self.best_mode!r}"
            )


@dataclasses.dataclass(frozen=True)
class Restored:
    """What `Checkpoints.restore` found: the state on its devices, the data position, and the step's metrics."""

    state: TrainState
    data_state: Mapping[str, Any]
    metrics: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class ModelFiles:
    """A trained model as read back, nothing placed on a device.

    Attributes:
        params: nested dict of numpy arrays.
        model_config: ``CLIPConfig.to_dict()``.
        preprocessing: ``Preprocessing.to_dict()``.
        tokenizer_dir: folder with the tokenizer's files.
        tokenizer_fingerprint: what that tokenizer's fingerprint must be.
        step: updates done.
        metrics: evaluation metrics at that step.
        versions: packages that wrote it.
    """

    params: dict[str, Any]
    model_config: dict[str, Any]
    preprocessing: dict[str, Any]
    tokenizer_dir: Path
    tokenizer_fingerprint: str
    step: int
    metrics: dict[str, float]
    versions: dict[str, str]


def package_versions() -> dict[str, str]:
    """Version of Python and of each package that can change a run's numbers; absent ones are left out."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def tokenizer_dir(workdir: Path) -> Path:
    """Where a work directory keeps its tokenizer."""
    return workdir / _TOKENIZER


class Checkpoints:
    """Writes and restores the steps of one run; close it at the end, so that the last asynchronous write lands."""

    def __init__(self, workdir: Path, config: CheckpointConfig, description: Mapping[str, Any] | None = None):
        """Open ``workdir`` for training; leftovers of a write that was killed are removed.

        Args:
            workdir: made where missing.
            config: what is kept.
            description: ``model_config``, ``preprocessing`` and ``tokenizer_fingerprint``, written into every step.
        """
        self._directory = _checkpoints_folder(workdir)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._config = config
        self._description = dict(description or {})
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
            preservation_policy=_preservation_policy(config),
            cleanup_tmp_directories=True,
        )

    @property
    def latest_step(self) -> int | None:
        """The newest whole step, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, state: TrainState, data_state: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Write the state's step in the background; returns when the device arrays are copied.

        A step that exists is left as it is.
        """
        step = int(state.step)
        if step == self.latest_step:
            return
        scores: Any = {name: float(value) for name, value in metrics.items()}
        description: Any = {
            "format_version": FORMAT_VERSION,
            **self._description,
            "data_state": dict(data_state),
            "metrics": scores,
            "best_metric": self._config.best_metric,
            "best_mode": self._config.best_mode,
            "versions": package_versions(),
        }
        self._checkpointer.save_checkpointables_async(
            step,
            {
                "params": state.params,
                "optimizer": {"step": state.step, "opt_state": state.opt_state},
            },
            force=True,  # train.py decides when to save; orbax's own policy could refuse the step of a SIGTERM
            metrics=scores,
            custom_metadata=description,
        )

    def restore(self, abstract_state: TrainState, step: int | None = None) -> Restored:
        """Read a step onto devices.

        Args:
            abstract_state: shapes, dtypes and shardings (``jax.ShapeDtypeStruct``) of every array; the number of
                devices may differ from the one that wrote it.
            step: which step; None for the newest.

        Raises:
            CheckpointError: none there, of an unknown format version, or of another model.
        """
        step = self.latest_step if step is None else step
        if step is None:
            raise CheckpointError(f"{self._directory}: no checkpoint to restore")
        arrays, description = _read_metadata(self._directory, step)
        wanted = {
            "params": abstract_state.params,
            "optimizer": {"step": abstract_state.step, "opt_state": abstract_state.opt_state},
        }
        # Before orbax: it would fail at the first difference, and leave half a load behind.
        differences = [
            f"{path}: {there} in the checkpoint, {here} in this run"
            for path, (there, here) in _compare_shapes(arrays, wanted).items()
        ]
        if differences:
            raise CheckpointError(
                f"{self._directory}/{step} does not fit this run's model or optimiser:\n  "
                + "\n  ".join(differences)
                + "\nUse the configuration that wrote it, or another --workdir."
            )
        loaded = self._checkpointer.load_checkpointables(step, wanted)
        return Restored(
            state=TrainState(params=loaded["params"], **loaded["optimizer"]),
            data_state=description["data_state"],
            metrics=description["metrics"],
        )

    def close(self) -> None:
        """Wait for the write in progress."""
        self._checkpointer.close()


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


def is_workdir(path: str | Path) -> bool:
    """Whether ``path`` is the work directory of a run (it may hold no whole checkpoint yet)."""
    return (Path(path) / _CHECKPOINTS).is_dir()


def _checkpoints_folder(workdir: str | Path) -> epath.Path:
    # Orbax wants an absolute path.
    return epath.Path(workdir).resolve() / _CHECKPOINTS


def _read_metadata(directory: epath.Path, step: int) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """What a step holds: array metadata by checkpointable, and the description that `Checkpoints.save` wrote."""
    metadata = ocp.checkpointables_metadata(directory / str(step))
    description: Any = metadata.custom_metadata or {}
    found = description.get("format_version")
    if found != FORMAT_VERSION:
        raise CheckpointError(
            f"{directory}/{step}: expected checkpoint format version {FORMAT_VERSION}, got {found}; "
            "read it with the plip_jax that wrote it, or update plip_jax"
        )
    return metadata.metadata, description


def _choose_step(directory: epath.Path, which: Which) -> int:
    with ocp.training.Checkpointer(directory) as checkpointer:
        steps = [checkpoint.step for checkpoint in checkpointer.checkpoints]
    if not steps:
        raise CheckpointError(f"{directory}: no whole checkpoint; train longer, or lower checkpoint.interval_steps")
    if which == "latest":
        return max(steps)
    if which == "best":
        descriptions = {step: _read_metadata(directory, step)[1] for step in steps}
        name, mode = (descriptions[max(steps)][field] for field in ("best_metric", "best_mode"))
        if not name:
            raise CheckpointError(f"{directory}: no best checkpoint, the run set no checkpoint.best_metric; use latest")
        return max(steps, key=lambda step: (_score(descriptions[step]["metrics"], name, mode), step))
    if which not in steps:
        raise CheckpointError(f"{directory}: no step {which!r}; there are {sorted(steps)}, latest and best")
    return which


def read_model(workdir: str | Path, which: Which = "latest") -> ModelFiles:
    """Read a run's model without its optimiser, into host memory.

    Args:
        workdir: a run's work directory.
        which: ``latest``, ``best`` (by the run's ``checkpoint.best_metric``) or a step.

    Raises:
        CheckpointError: no such checkpoint, or one of an unknown format version.
    """
    directory = _checkpoints_folder(workdir)
    step = _choose_step(directory, which)
    arrays, description = _read_metadata(directory, step)
    abstract = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), arrays["params"])
    params = ocp.load_checkpointables(directory / str(step), {"params": abstract})["params"]
    return ModelFiles(
        params=params,
        model_config=description["model_config"],
        preprocessing=description["preprocessing"],
        tokenizer_dir=tokenizer_dir(Path(workdir)),
        tokenizer_fingerprint=description["tokenizer_fingerprint"],
        step=step,
        metrics=description["metrics"],
        versions=description["versions"],
    )
