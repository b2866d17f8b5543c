"""What devices can do: the table, the measurement where it says nothing, and peak memory."""

import types

import jax
import numpy as np
import pytest

from plip_jax.training import hardware


def test_a_known_device_has_its_datasheets_peak():
    device = types.SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3", platform="gpu")
    value, source = hardware.peak_flops_per_second(device, "bfloat16")
    assert value == 989.4e12  # 1,979 TFLOP/s with sparsity, NVIDIA H100 datasheet
    assert "datasheet" in source
    assert all(1e13 < peak < 1e16 and source for peak, source in hardware.BFLOAT16_PEAKS.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_unknown_device_is_measured_and_simulated_ones_share_it(dtype, monkeypatch):
    tried = []
    monkeypatch.setattr(hardware, "measure_matmul_peak", lambda *given, **more: tried.append((given, more)) or 8e11)
    device = jax.devices()[0]
    value, source = hardware.peak_flops_per_second(device, dtype)
    assert tried == [((dtype, 512), {"seconds": 0.2, "device": device})]
    assert value * jax.local_device_count() == 8e11
    assert f"512 x 512 x 512 {dtype} matmul on cpu, shared by {jax.local_device_count()} devices" in source


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_measured_peak_is_one_that_a_cpu_can_have(dtype):
    # Wide, but a wrong count of operations leaves them: no core is below 0.1 GFLOP/s, no CPU above 1 PFLOP/s.
    size = 128
    assert 1e8 < hardware.measure_matmul_peak(dtype, size, seconds=0.02, device=jax.devices()[-1]) < 1e15


def test_peak_memory_is_the_devices_where_they_count_and_the_process_elsewhere(monkeypatch):
    before = hardware.peak_memory()
    kept = np.ones(2**26, np.uint8)  # 64 MiB
    after = hardware.peak_memory()
    assert set(after) == {"host_peak_memory_bytes"}
    assert kept.nbytes < after["host_peak_memory_bytes"] < 2**44
    assert after["host_peak_memory_bytes"] >= before["host_peak_memory_bytes"]
    devices = [types.SimpleNamespace(memory_stats=lambda peak=peak: {"peak_bytes_in_use": peak}) for peak in (5, 9, 7)]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert hardware.peak_memory() == {"peak_memory_bytes": 9.0}
