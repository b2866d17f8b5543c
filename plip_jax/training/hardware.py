"""What the devices of a run can do at best, and how much of their memory it took."""

import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

_H100 = "NVIDIA H100 datasheet (BFLOAT16, half of the figure with sparsity)"
_H200 = "NVIDIA H200 datasheet (BFLOAT16, half of the figure with sparsity)"
_A100 = "NVIDIA A100 datasheet (BFLOAT16)"
_A10 = "NVIDIA A10 datasheet (BFLOAT16)"
_L4 = "NVIDIA L4 datasheet (BFLOAT16, half of the figure with sparsity)"
_L40S = "NVIDIA L40S datasheet (BFLOAT16)"

BFLOAT16_PEAKS: dict[str, tuple[float, str]] = {
    "NVIDIA H100 80GB HBM3": (989.4e12, _H100),
    "NVIDIA H100 NVL": (835.5e12, _H100),
    "NVIDIA H100 PCIe": (756.5e12, _H100),
    "NVIDIA H200": (989.4e12, _H200),
    "NVIDIA A100-SXM4-40GB": (312e12, _A100),
    "NVIDIA A100-SXM4-80GB": (312e12, _A100),
    "NVIDIA A100-PCIE-40GB": (312e12, _A100),
    "NVIDIA A100 80GB PCIe": (312e12, _A100),
    "NVIDIA A10": (125e12, _A10),
    "NVIDIA L4": (121e12, _L4),
    "NVIDIA L40S": (362.05e12, _L40S),
    # A jax device of a v3 is one of a chip's two cores; from v4 on it is the chip.
    "TPU v3": (123e12 / 2, "https://cloud.google.com/tpu/docs/v3"),
    "TPU v4": (275e12, "https://cloud.google.com/tpu/docs/v4"),
    "TPU v5 lite": (197e12, "https://cloud.google.com/tpu/docs/v5e"),
    "TPU v5e": (197e12, "https://cloud.google.com/tpu/docs/v5e"),
    "TPU v5": (459e12, "https://cloud.google.com/tpu/docs/v5p"),
    "TPU v5p": (459e12, "https://cloud.google.com/tpu/docs/v5p"),
    "TPU v6 lite": (918e12, "https://cloud.google.com/tpu/docs/v6e"),
    "TPU v6e": (918e12, "https://cloud.google.com/tpu/docs/v6e"),
}
"""``device_kind`` -> dense bfloat16 FLOP/s of one jax device, and where the number stands.

A device that is not here is measured: so are those without bfloat16 matrix units (T4, V100), those whose figures
disagree between sources (TPU v2), and all of them in float32, where the model asks for the highest precision and no
datasheet counts that.
"""


def peak_flops_per_second(device: Any, compute_dtype: str) -> tuple[float, str]:
    """The most that one device can multiply: from the table, or else measured there (under a second on a CPU).

    Args:
        device: one of the run's, a ``jax.Device``.
        compute_dtype: of the operands of its matrix products, ``"float32"`` or ``"bfloat16"``.

    Returns:
        FLOP/s, a multiplication and its addition counted as two; and where the number comes from.
    """
    if compute_dtype == "bfloat16" and device.device_kind in BFLOAT16_PEAKS:
        return BFLOAT16_PEAKS[device.device_kind]
    on_cpu = device.platform == "cpu"
    size = 512 if on_cpu else 8192
    peak = measure_matmul_peak(compute_dtype, size, seconds=0.2 if on_cpu else 0.5, device=device)
    source = f"measured: {size} x {size} x {size} {compute_dtype} matmul on {device.device_kind}"
    if on_cpu:
        # One product takes all cores, and all (simulated) devices of a host share them.
        sharing = len(jax.local_devices(backend="cpu"))
        return peak / sharing, source + (f", shared by {sharing} devices" if sharing > 1 else "")
    return peak, source


def measure_matmul_peak(dtype: str, size: int, seconds: float, device: Any = None) -> float:
    """The best rate of a square matrix product, as the model multiplies: float32 results, float32 not rounded.

    Args:
        dtype: of the operands.
        size: rows and columns of both.
        seconds: how long to try, after compilation; at least three times whatever the clock says.
        device: where; the default device if None.

    Returns:
        FLOP/s, ``2 * size**3`` a product.
    """
    device = device or jax.devices()[0]
    # As the model does (plip_jax/model/transformer.py): jaxlib before 0.8.2 lacks bfloat16 products on the CPU.
    widen = jax.__version_info__ < (0, 8, 2) and device.platform == "cpu"
    precision = jax.lax.Precision.HIGHEST if dtype == "float32" else jax.lax.Precision.DEFAULT

    @jax.jit
    def draw() -> tuple[jax.Array, jax.Array]:
        # Not zeros, whose products a GPU may run at a higher clock; not random, which compiles three times as long.
        angles = jnp.arange(size * size, dtype=jnp.float32).reshape(size, size)
        left, right = jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)
        return (left.astype("float32"), right.astype("float32")) if widen else (left, right)

    @jax.jit
    def multiply(left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.matmul(left, right, precision=precision, preferred_element_type=jnp.float32)

    with jax.default_device(device):
        left, right = draw()
        multiply(left, right).block_until_ready()
        # Several in flight hide the dispatch, which an accelerator's product is short enough to show.
        in_flight = 1 if device.platform == "cpu" else 4
        best, tries, end = float("inf"), 0, time.perf_counter() + seconds
        while tries < 3 or time.perf_counter() < end:
            start = time.perf_counter()
            jax.block_until_ready([multiply(left, right) for _ in range(in_flight)])
            best = min(best, (time.perf_counter() - start) / in_flight)
            tries += 1
    return 2 * size**3 / best


def peak_memory() -> dict[str, float]:
    """The most memory that was in use at once until now, bytes, under the name of what was measured.

    Returns:
        ``peak_memory_bytes`` of the fullest local device; where the devices do not count (a CPU), the whole process's
        ``host_peak_memory_bytes``.
    """
    counted: list[dict[str, Any]] = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stats["peak_bytes_in_use"] for stats in counted if "peak_bytes_in_use" in stats]
    if peaks:
        return {"peak_memory_bytes": float(max(peaks))}
    try:
        import resource
    except ImportError:  # not on Windows
        return {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"host_peak_memory_bytes": float(peak if sys.platform == "darwin" else peak * 1024)}  # KiB but on a Mac
