"""What every test may rely on: eight simulated devices, no network, and the real micrographs where they are."""

import os
from pathlib import Path

# Before jax is imported anywhere: the CPU backend, with eight devices for the sharding tests.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8").strip()
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

REALDATA = Path(os.environ.get("PLIP_JAX_REALDATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def realdata() -> Path:
    """Folder of the real micrographs (tests marked ``realdata``)."""
    if not REALDATA.is_dir():
        if os.environ.get("PLIP_JAX_REQUIRE_REALDATA"):
            pytest.fail(f"real micrographs are required (PLIP_JAX_REQUIRE_REALDATA) and not at {REALDATA}")
        pytest.skip(f"real micrographs are not at {REALDATA}; point PLIP_JAX_REALDATA at their folder")
    return REALDATA
