"""Whether a restart continues the same run: its configuration, its machines, and that nobody else writes to it."""

import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

_PACKAGES = ("plip-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers", "numpy", "pillow")
_LOCK_FILE = ".lock"
# Read when a run starts, and never again.
_FIXED = ("model.preset", "model.init_from", "model.tokenizer")


class RunError(ValueError):
    """A work directory that belongs to another run; the message says what differs and what to do."""


def check_config(old: Mapping[str, Any], new: Mapping[str, Any], *, allow_change: bool) -> list[str]:
    """Compare the configuration of a run's newest checkpoint with the one asked for, both by dotted names.

    Returns:
        The differences, a line each, with a field's name and what it was and is.

    Raises:
        RunError: there are differences and ``allow_change`` is false, or one that no resumed run can follow.
    """
    differences = _differences(old, new)
    fixed = [line for line in differences if line.partition(":")[0] in _FIXED]
    if fixed and allow_change:
        raise RunError(
            "a resumed run takes its network, weights and tokenizer from its checkpoint, so this cannot change:\n  "
            + "\n  ".join(fixed)
            + "\nUse another --workdir; with --config.model.init_from=WORKDIR it starts from this run's weights."
        )
    if differences and not allow_change:
        raise RunError(
            "the work directory's run had another configuration:\n  "
            + "\n  ".join(differences)
            + "\nUse the old values, another --workdir, or --allow-config-change to go on with the new ones."
        )
    return differences


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A flat configuration as JSON gives it back: tuples are lists, empty blocks are dicts."""
    return json.loads(json.dumps(dict(config), default=lambda block: block.to_dict()))


def environment() -> dict[str, Any]:
    """What a run's bits depend on besides its configuration: devices, cores, flags, package versions."""
    return {
        "platform": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "xla_flags": " ".join(sorted(os.environ.get("XLA_FLAGS", "").split())),
        **{f"version {name}": version for name, version in _package_versions().items()},
    }


def _package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def why_not_bit_exact(environments: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why a restart here may differ from the unbroken run in its last bits; empty if nothing speaks against it.

    Args:
        environments: of every machine the run was on so far.
    """
    here = environment()
    reasons = [difference for before in environments for difference in _differences(before, here)]
    if jax.default_backend() == "gpu":
        flags = os.environ.get("XLA_FLAGS", "")
        if "xla_gpu_deterministic_ops=true" not in flags:
            reasons.append("XLA_FLAGS lacks --xla_gpu_deterministic_ops=true")
        if "autotune" not in flags:
            # Autotuning measures, and may choose another kernel at the restart.
            reasons.append("XLA_FLAGS keeps no autotune cache (--xla_gpu_per_fusion_autotune_cache_dir=DIR)")
    return list(dict.fromkeys(reasons))


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    absent = "(absent)"
    return [
        f"{name}: {old.get(name, absent)!r} -> {new.get(name, absent)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, absent) != new.get(name, absent)
    ]


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Hold a work directory, made where missing, for this process; the lock ends with the process, however it ends.

    Raises:
        RunError: another process holds it, it cannot be made, or it is no folder of this machine's file system.
    """
    if re.match(r"\w\w+:/", workdir.as_posix()):  # what a Path leaves of gs://
        raise RunError(
            f"--workdir {workdir}: expected a folder, for metrics and curves, got a URL; checkpoints go to one, with "
            "--config.checkpoint.directory=gs://BUCKET/RUN/checkpoints"
        )
    try:
        import fcntl
    except ImportError:  # not on Windows; two runs there are the user's to avoid
        workdir.mkdir(parents=True, exist_ok=True)
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / _LOCK_FILE).open("w")
    except OSError as error:
        raise RunError(f"--workdir {workdir}: expected a folder that can be written to, got {error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"--workdir {workdir}: another process is training there; wait, or use another") from None
        yield
