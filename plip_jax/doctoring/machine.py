"""The machine: memory, cores, disk, shared memory, open files; and the environment that jax and the hub read."""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from plip_jax.data.allocator import keep_freed_memory
from plip_jax.doctoring.child import answer
from plip_jax.doctoring.finding import Asked, Finding, as_gib, guarded, one_line, read_text

# ViT-B/32 has 151 million parameters: 0.6 GB to use it in float32 and 2.4 GB to train it (weights, gradients, Adam's
# two moments), before any image; and its training checkpoint is 1.8 GB, of which there are three while one is replaced.
_LITTLE_MEMORY_BYTES = 4 * 2**30
_LITTLE_DISK_BYTES = 6 * 2**30
# Docker's default is 64 MiB; a batch of 256 images of 224 pixels is 37 MiB, and each worker process holds several.
_LITTLE_SHARED_BYTES = 2**30
# A process keeps every shard of its data open; a usual limit is 1,024.
_FEW_FILES = 4096


def find_machine(asked: Asked) -> Iterator[Finding]:
    """What there is to work with."""
    yield from guarded(_memory(), of="memory")
    yield from guarded(_cores(), of="the cores")
    yield from guarded(_disks((".", *asked.data, *filter(None, [asked.checkpoint]))), of="the disks")
    yield from guarded(_temporary_files(), of="the folder of temporary files")
    yield from guarded(_shared_memory(), of="/dev/shm")
    yield from guarded(_open_files(), of="the limit of open files")
    yield from guarded(_allocator(), of="the allocator")
    yield from _settings()


def _memory() -> Iterator[Finding]:
    known = {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", read_text("/proc/meminfo"), re.M)}
    if "MemTotal" not in known or "MemAvailable" not in known:
        yield Finding("note", "this system does not say how much memory it has")
        return
    free, of = known["MemAvailable"], known["MemTotal"]
    limits = [read_text(f"/sys/fs/cgroup/{name}").strip() for name in ("memory.max", "memory/memory.limit_in_bytes")]
    limit = min((int(text) for text in limits if text.isdigit()), default=of)
    more = ""
    if limit < of:  # a container's
        used = [
            read_text(f"/sys/fs/cgroup/{name}").strip() for name in ("memory.current", "memory/memory.usage_in_bytes")
        ]
        free = min(free, limit - min((int(text) for text in used if text.isdigit()), default=0))
        more = f", of which this container may use {as_gib(limit)}"
    what = f"{as_gib(free)} of memory free, {as_gib(of)} in all{more}"
    if free < _LITTLE_MEMORY_BYTES:
        yield Finding("warning", what, "to train ViT-B/32 takes 2.4 GB before any image: smaller batches, or free some")
    else:
        yield Finding("ok", what)


def _cores() -> Iterator[Finding]:
    seen = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else seen
    quota, _, period = read_text("/sys/fs/cgroup/cpu.max").strip().partition(" ")
    if quota.isdigit() and period.isdigit() and int(quota) / int(period) < usable:
        share = int(quota) / int(period)
        yield Finding(
            "note",
            f"{usable} cores are seen, and this container may use {share:g} of them",
            f"--config.data.num_workers={max(1, int(share))}: a worker for each core that is seen would only wait",
        )
    elif usable < seen:
        yield Finding("ok", f"{usable} of {seen} cores may be used")
    else:
        yield Finding("ok", f"{usable} cores")


def _disks(folders: Sequence[str]) -> Iterator[Finding]:
    """What is free, once for each disk."""
    free_on: dict[int, tuple[str, int]] = {}
    for folder in folders:
        # One that is not there or cannot be reached is a hub id, or what the probe that was asked for it reports.
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            path = Path(folder).expanduser()
            free_on.setdefault(path.stat().st_dev, (folder, shutil.disk_usage(path).free))
    for folder, free in free_on.values():
        what = f"{as_gib(free)} free on the disk of {'the current folder' if folder == '.' else folder}"
        if free < _LITTLE_DISK_BYTES:
            advice = "a training run of ViT-B/32 keeps 5.4 GB of checkpoints: free some, or put --workdir elsewhere"
            yield Finding("warning", what, advice)
        else:
            yield Finding("ok", what)


def _temporary_files() -> Iterator[Finding]:
    try:
        tempfile.gettempdir()
    except OSError as error:
        advice = "set TMPDIR to a folder that can be written, on a disk with space"
        yield Finding("problem", f"no temporary file can be written: {one_line(error)}", advice)


def _shared_memory() -> Iterator[Finding]:
    if not Path("/dev/shm").is_dir():
        return
    size = shutil.disk_usage("/dev/shm").total
    if size < _LITTLE_SHARED_BYTES:
        yield Finding(
            "warning",
            f"/dev/shm holds {size / 2**20:,.0f} MiB, and worker processes die where it is full of batches",
            "docker run --shm-size=8g, a memory volume at /dev/shm in Kubernetes, or --config.data.num_workers=0",
        )
    else:
        yield Finding("ok", f"/dev/shm holds {as_gib(size)}")


def _open_files() -> Iterator[Finding]:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _FEW_FILES:
        wanted = 65536 if hard == resource.RLIM_INFINITY else min(65536, hard)
        advice = f"ulimit -n {wanted}" if wanted > soft else "ask who runs this machine for more"
        yield Finding("note", f"a process may open {soft:,} files, and every shard of the data is one", advice)


def _allocator() -> Iterator[Finding]:
    preloaded = [Path(name).name for name in re.split(r"[:\s]+", os.environ.get("LD_PRELOAD", "")) if name]
    other = [name for name in preloaded if re.search("tcmalloc|jemalloc|mimalloc", name)]
    if other:
        yield Finding("ok", f"memory is allocated by {other[0]} (LD_PRELOAD)")
    elif keep_freed_memory():
        yield Finding("ok", "glibc keeps the memory of decoded images for the next")
    else:
        yield Finding(
            "note",
            "freed memory is given back after every image (no glibc, or MALLOC_ variables are set): decoding is slower",
            "preload tcmalloc (LD_PRELOAD=libtcmalloc.so.4), or unset the MALLOC_ variables",
        )


def _settings() -> Iterator[Finding]:
    for name, judge in SETTINGS.items():
        value = os.environ.get(name)
        # An empty one is as good as none, but for the list of GPUs: empty, it has none.
        if value or (value is not None and name == "CUDA_VISIBLE_DEVICES"):
            yield judge(value)


def _shown(name: str, meaning: str) -> Callable[[str], Finding]:
    # A flag's path says whose machine it is, and nothing else that is worth knowing.
    return lambda value: Finding("note", f"{name}={re.sub(r'=[^ ]*/[^ ]*', '=PATH', value)}: {meaning}")


def _xla_flags(value: str) -> Finding:
    if "xla_force_host_platform_device_count" in value:
        return _shown("XLA_FLAGS", "the CPU pretends to be several devices, which is for tests")(value)
    return _shown("XLA_FLAGS", "read by the compiler; an unknown flag ends the process")(value)


def _switch(name: str, meaning: str, advice: str) -> Callable[[str], Finding]:
    def judge(value: str) -> Finding:
        if value.lower() in ("0", "false", "no", "off"):
            return Finding("ok", f"{name}={value}")
        return Finding("warning", f"{name}={value}: {meaning}", advice)

    return judge


def _visible_devices(value: str) -> Finding:
    # CUDA reads the list up to the first that there is not.
    if value.partition(",")[0].strip() in ("", "-1", "NoDevFiles"):
        return Finding("warning", f"CUDA_VISIBLE_DEVICES={value}: every GPU is hidden", "unset CUDA_VISIBLE_DEVICES")
    return _shown("CUDA_VISIBLE_DEVICES", "only these GPUs are seen")(value)


# Variable -> what its value means. No variable that is not here is ever shown: the others hold tokens and names.
SETTINGS: dict[str, Callable[[str], Finding]] = {
    "JAX_PLATFORMS": _shown("JAX_PLATFORMS", "jax uses these and no other devices"),
    "XLA_FLAGS": _xla_flags,
    "LIBTPU_INIT_ARGS": _shown("LIBTPU_INIT_ARGS", "read by the TPU's compiler"),
    "CUDA_VISIBLE_DEVICES": _visible_devices,
    "JAX_ENABLE_X64": _switch("JAX_ENABLE_X64", "64-bit numbers are twice the memory", "unset JAX_ENABLE_X64"),
    "JAX_DISABLE_JIT": _switch("JAX_DISABLE_JIT", "nothing is compiled", "unset JAX_DISABLE_JIT"),
    "JAX_DEBUG_NANS": _switch("JAX_DEBUG_NANS", "every step waits for its values", "unset JAX_DEBUG_NANS"),
    "JAX_DEFAULT_MATMUL_PRECISION": _shown(
        "JAX_DEFAULT_MATMUL_PRECISION", "plip_jax names the precision of its own products"
    ),
    "NVIDIA_TF32_OVERRIDE": _switch(
        "NVIDIA_TF32_OVERRIDE", "float32 products are rounded to TF32 whatever the program asks", "unset it"
    ),
    "XLA_PYTHON_CLIENT_PREALLOCATE": _shown("XLA_PYTHON_CLIENT_PREALLOCATE", "how jax takes a GPU's memory"),
    "XLA_PYTHON_CLIENT_MEM_FRACTION": _shown("XLA_PYTHON_CLIENT_MEM_FRACTION", "jax's share of a GPU's memory"),
    "JAX_COMPILATION_CACHE_DIR": lambda value: Finding("ok", "compiled programs are kept (JAX_COMPILATION_CACHE_DIR)"),
    "HF_HUB_OFFLINE": _shown("HF_HUB_OFFLINE", "hub ids are looked up in the cache only"),
    "TRANSFORMERS_OFFLINE": _shown("TRANSFORMERS_OFFLINE", "transformers reads its cache only"),
}


if __name__ == "__main__":
    answer(find_machine)
