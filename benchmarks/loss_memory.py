"""What a loss and its gradients take: peak memory and seconds of each loss, each size in its own process.

    python -m benchmarks.loss_memory

takes small batches on a CPU and full ones on a GPU or TPU, prints a table and writes it with machine, versions and
settings as JSON. The features are random, already on their devices and not normalised; what is measured is the loss
with its gradients for both features and the loss parameters. A size that does not fit is a line of the table too.
"""

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Batch sizes of the default run: the CPU's take two cores about two minutes.
BATCHES = {"cpu": (1024, 4096, 8192), "gpu": (4096, 16384, 32768, 65536, 131072), "tpu": (4096, 16384, 32768, 65536)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.loss_memory", description=__doc__)
    parser.add_argument("--losses", nargs="+", default=["contrastive", "contrastive_ring", "siglip"])
    parser.add_argument("--batches", nargs="+", type=int, help="default: small on a CPU, full elsewhere")
    parser.add_argument("--dim", type=int, default=512, help="of the features")
    parser.add_argument("--chunk-size", type=int, default=2048, help="longest side of a tile")
    parser.add_argument("--devices", type=int, default=0, help="simulated devices of a CPU; 0 takes what there is")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs, after one that is not; the median counts")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/loss_memory_PLATFORM.json")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # one measurement, in the process that is measured
    flags = parser.parse_args(argv)
    if flags.measure:
        print(json.dumps(measure(**json.loads(flags.measure))))
        return 0
    # This process opens no accelerator: the ones it starts need it.
    machine = json.loads(_run(["-m", "benchmarks.machine"], flags.devices).stdout)
    batches = flags.batches or BATCHES[machine["platform"]]
    settings = {"dim": flags.dim, "chunk_size": flags.chunk_size, "repeats": flags.repeats}
    results = []
    print(_line("loss", "batch", "peak GiB", "of that GiB", "program GiB", "seconds"))
    print(_line("", "", "", "before", "a device", ""))
    for batch in batches:
        for loss in flags.losses:
            result = measure_apart(loss, batch, devices=flags.devices, **settings)
            results.append(result)
            numbers = [result.get(key) for key in ("peak_gib", "start_gib", "program_gib", "seconds")]
            print(_line(loss, batch, *(result["failure"] if n is None else f"{n:.3f}" for n in numbers)), flush=True)
    out = flags.out or ROOT / "benchmarks" / "results" / f"loss_memory_{machine['platform']}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"machine": machine, "config": settings, "results": results}, indent=2) + "\n")
    print(f"written to {out}")
    return 0


def measure_apart(loss: str, batch: int, *, devices: int, **settings: int) -> dict[str, Any]:
    """`measure` in a new process; where that fails, its last words under ``failure``."""
    request = {"loss": loss, "batch": batch, **settings}
    done = _run(["-m", "benchmarks.loss_memory", "--measure", json.dumps(request)], devices, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    out_of_memory = done.returncode == -9 or re.search(r"RESOURCE_EXHAUSTED|[Oo]ut of memory|OOM", done.stderr)
    if not out_of_memory:
        raise RuntimeError(f"measuring {request} failed:\n{done.stderr}")
    return {**request, "failure": "no memory"}


def _run(arguments: list[str], devices: int, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    if devices:
        flags = [f for f in environment.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in f]
        environment["XLA_FLAGS"] = " ".join([*flags, f"--xla_force_host_platform_device_count={devices}"])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        check=check,
        text=True,
        stdout=subprocess.PIPE,
        stderr=None if check else subprocess.PIPE,
    )


def measure(loss: str, batch: int, dim: int, chunk_size: int, repeats: int) -> dict[str, Any]:
    """Run a loss with its gradients in this process, on all its devices.

    Args:
        loss: a key of ``LOSSES``.
        batch: pairs of the global batch.
        dim: of the features.
        chunk_size: longest side of a tile.
        repeats: timed runs, behind one that is not timed; 0 times that one, which is compiled before.

    Returns:
        The arguments, ``devices``, ``value`` of the loss, ``seconds`` (median of the timed runs), ``peak_gib`` and
        ``start_gib`` (this process's resident memory at its highest, and just before the first run; where the devices
        have memory of their own, that of the first one), and ``program_gib`` (what XLA sets aside on each device
        besides inputs and outputs).
    """
    import jax
    import jax.numpy as jnp

    from plip_jax import sharding
    from plip_jax.training.losses import LOSSES, LossConfig, get_loss

    mesh = sharding.make_mesh()
    compute = get_loss(LossConfig(loss, chunk_size=chunk_size), mesh)
    split = sharding.split_batch(mesh)
    draw = jax.jit(lambda key: jax.random.normal(key, (batch, dim)), out_shardings=split)
    image, text = draw(jax.random.key(0)), draw(jax.random.key(1))
    params = {name: jnp.float32(value) for name, value in LOSSES[loss].init_params.items()}
    gradients = jax.jit(
        jax.value_and_grad(compute, argnums=(0, 1, 2), has_aux=True),
        out_shardings=((None, None), (split, split, None)),
    )
    program = gradients.lower(image, text, params).compile()
    start = _memory()
    seconds, value = [], jnp.float32(0)
    for _ in range(repeats + 1):
        began = time.perf_counter()
        (value, _), _ = jax.block_until_ready(program(image, text, params))
        seconds.append(time.perf_counter() - began)
    analysis: Any = program.memory_analysis()
    return {
        "loss": loss,
        "batch": batch,
        "dim": dim,
        "chunk_size": chunk_size,
        "repeats": repeats,
        "devices": mesh.size,
        "value": float(value),
        "seconds": statistics.median(seconds[1:] or seconds),
        "peak_gib": _memory(peak=True) / 2**30,
        "start_gib": start / 2**30,
        "program_gib": analysis.temp_size_in_bytes / 2**30,
    }


def _memory(*, peak: bool = False) -> int:
    """Bytes in use, or the most so far: of the first device, or of this process where devices have no memory."""
    import jax

    of_device = jax.devices()[0].memory_stats()
    if of_device:
        return of_device["peak_bytes_in_use" if peak else "bytes_in_use"]
    try:
        # Not ru_maxrss, which a process inherits: it starts from the memory of the one that made it.
        status = Path("/proc/self/status").read_text()
    except OSError:  # no Linux; there ru_maxrss is all there is, in bytes on macOS
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    [kib] = re.findall(rf"^{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(kib) * 1024


def _line(*cells: object) -> str:
    return f"{cells[0]!s:18}" + "".join(f"{cell!s:>13}" for cell in cells[1:])


if __name__ == "__main__":
    sys.exit(main())
