"""What a measurement was made on: processor, memory, accelerator, versions, date and commit.

``python -m benchmarks.machine`` prints it, for a program that must not hold the accelerator itself. There are no host
names and no paths in it, because results are committed.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import jax

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "grain",
    "array_record",
    "numpy",
    "scipy",
    "scikit-learn",
    "pillow",
    "simplejpeg",
    "tokenizers",
    "torch",
    "torchvision",
    "transformers",
    "open_clip_torch",
    "webdataset",
)


def describe_machine() -> dict[str, Any]:
    """Describe this machine and what runs on it, as JSON takes it.

    It asks jax for its devices, so the calling process holds them from then on.

    Returns:
        ``cpu``, ``cpu_cores`` (those this process may use), ``memory_gib``, ``platform`` (jax's backend), ``device``
        (its kind), ``device_count``, ``device_memory_gib`` (of one device; None where the backend does not say),
        ``xla_flags``, ``versions`` by package, ``date`` (UTC) and ``commit`` (None outside a checkout).
    """
    devices = jax.devices()
    return {
        "cpu": _cpu_model(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _gib(_memory_bytes()),
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "device_count": len(devices),
        "device_memory_gib": _gib((devices[0].memory_stats() or {}).get("bytes_limit")),
        # A flag whose value is a path is named without it.
        "xla_flags": re.sub(r"=\S*/\S*", "=PATH", os.environ.get("XLA_FLAGS", "")),
        "versions": _versions(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": _commit(),
    }


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on every system
        return None


def _gib(count: int | None) -> float | None:
    return None if count is None else round(count / 2**30, 1)


def _versions() -> dict[str, str]:
    """The versions of python and of those packages that are installed."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _commit() -> str | None:
    """The short commit of the checkout this file is in, marked where tracked files differ from it."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


if __name__ == "__main__":
    print(json.dumps(describe_machine(), indent=2))
