"""``run.json``: what a work directory's run is, so that a restart continues the same run or says why it cannot.

Owns the comparison of configurations, and of the machine where it decides whether a restart is exact to the bit.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from plip_jax.training.checkpoint import package_versions

RUN_FILE = "run.json"


class RunError(ValueError):
    """A work directory that belongs to another run; the message lists the differences."""


@dataclasses.dataclass(frozen=True)
class RunFile:
    """What `RUN_FILE` holds.

    Attributes:
        config: every field of the configuration by its dotted name.
        model_config: ``CLIPConfig.to_dict()``.
        preprocessing: ``Preprocessing.to_dict()``.
        tokenizer_fingerprint: of the tokenizer in ``tokenizer/``.
        environment: see `environment`.
    """

    config: dict[str, Any]
    model_config: dict[str, Any]
    preprocessing: dict[str, Any]
    tokenizer_fingerprint: str
    environment: dict[str, Any]

    def save(self, workdir: Path) -> None:
        """Write under a temporary name and rename."""
        path = workdir / RUN_FILE
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(temporary, path)


def load_run_file(workdir: Path) -> RunFile | None:
    """Read a work directory's run; None where no run has started.

    Raises:
        RunError: the file is there and cannot be read.
    """
    path = workdir / RUN_FILE
    if not path.exists():
        return None
    try:
        return RunFile(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path}: expected the description of a run, got {error}; use another --workdir") from error


def check_config(run: RunFile, config: Mapping[str, Any], *, allow_change: bool) -> list[str]:
    """Compare a run's configuration with the one asked for.

    Returns:
        The differences, a line each: ``name: was -> is``.

    Raises:
        RunError: there are differences and ``allow_change`` is false.
    """
    differences = _differences(run.config, _plain(config))
    if differences and not allow_change:
        raise RunError(
            "the work directory's run had another configuration:\n  "
            + "\n  ".join(differences)
            + "\nUse the old values, another --workdir, or --allow-config-change to go on with the new ones."
        )
    return differences


def make_run_file(config: Mapping[str, Any], description: Mapping[str, Any]) -> RunFile:
    """Describe a run that starts now on this machine; ``description`` is that of the checkpoints."""
    return RunFile(config=_plain(config), environment=environment(), **description)


def environment() -> dict[str, Any]:
    """What a run's bits depend on besides its configuration: devices, cores, flags, package versions."""
    return {
        "platform": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "xla_flags": " ".join(sorted(os.environ.get("XLA_FLAGS", "").split())),
        **{f"version {name}": version for name, version in package_versions().items()},
    }


def why_not_bit_exact(run: RunFile) -> list[str]:
    """Why a restart here may differ from the unbroken run in its last bits; empty if nothing speaks against it."""
    reasons = _differences(run.environment, environment())
    if jax.default_backend() == "gpu":
        flags = os.environ.get("XLA_FLAGS", "")
        if "xla_gpu_deterministic_ops=true" not in flags:
            reasons.append("XLA_FLAGS lacks --xla_gpu_deterministic_ops=true")
        if "autotune" not in flags:
            # Autotuning measures, and may choose another kernel at the restart.
            reasons.append("XLA_FLAGS keeps no autotune cache (--xla_gpu_per_fusion_autotune_cache_dir=DIR)")
    return reasons


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    absent = "(absent)"
    return [
        f"{name}: {old.get(name, absent)!r} -> {new.get(name, absent)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, absent) != new.get(name, absent)
    ]


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: tuples are lists, config blocks are dicts."""
    return json.loads(json.dumps(dict(config), default=lambda block: block.to_dict()))
