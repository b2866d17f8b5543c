"""What every test may rely on: eight simulated devices, no network, and the real micrographs where they are."""

import importlib.metadata
import os
import sys
from pathlib import Path

# Before jax is imported anywhere: the CPU backend, with eight devices for the sharding tests.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Nearly all the time of a test is compilation, which takes half as long without LLVM's optimisations; the operations of
# the program, and so its numbers, are the same.
_FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
if int(importlib.metadata.version("jaxlib").split(".")[1]) >= 10:
    # Eight devices on two busy cores can meet late; the default ends the process after 40 s. 0.7.2 lacks the flag, and
    # an unknown flag ends the process too.
    _FLAGS.append("--xla_cpu_collective_timeout_seconds=600")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS]).strip()
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest  # noqa: E402 # jax reads the environment when anything imports it
from torchvision_operators import BeforeTorchvision  # noqa: E402 # the same

sys.meta_path.insert(0, BeforeTorchvision())

REALDATA = Path(os.environ.get("PLIP_JAX_REALDATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named after their argument: what a compressor writes can hold the second it was written in, and the
    processes of one run must agree on every name."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def realdata() -> Path:
    """Folder of the real micrographs (tests marked ``realdata``)."""
    if not REALDATA.is_dir():
        if os.environ.get("PLIP_JAX_REQUIRE_REALDATA"):
            pytest.fail(f"real micrographs are required (PLIP_JAX_REQUIRE_REALDATA) and not at {REALDATA}")
        pytest.skip(f"real micrographs are not at {REALDATA}; point PLIP_JAX_REALDATA at their folder")
    return REALDATA
