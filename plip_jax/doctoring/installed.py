"""What is installed, as several probes ask it: a package's version, and whether there is an NVIDIA driver."""

import importlib.metadata
import shutil
from pathlib import Path


def version_of(package: str) -> str | None:
    """The version in a package's metadata, which imports nothing; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def at_this_version(package: str) -> str:
    """What to tell pip so that a package, ``jax[cuda12]`` too, keeps its version; the name alone where it has none."""
    version = version_of(package.partition("[")[0])
    return f"{package}=={version}" if version else package


def has_nvidia_driver() -> bool:
    """Whether this machine drives an NVIDIA GPU."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
