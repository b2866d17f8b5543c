"""The devices: that jax starts, what it sees, and one training step of a tiny CLIP on all of them.

Also how exact float32 products are there, as TPUs and recent GPUs round their operands unless told otherwise.
"""

import functools
import os
import re
import time
from collections.abc import Iterator

import numpy as np

from plip_jax.doctoring.child import answer
from plip_jax.doctoring.finding import Asked, Finding, as_gib, guarded, one_line
from plip_jax.doctoring.installed import at_this_version, has_nvidia_driver

# What jax says when it cannot start its backend -> what to do, with the jax that is here. The first that matches.
_START_ADVICE = (
    (
        r"[Uu]nknown backend|not in the list of known backends|no platforms that are instances",
        "JAX_PLATFORMS names what this jax does not have: unset it, or install the plugin (pip install "
        "'{cuda}' or '{tpu}')",
    ),
    (
        r"already in use|lockfile|libtpu_lockfile|Device or resource busy",
        "another process holds the TPU: end it (python notebooks too), then try again",
    ),
    (r"RESOURCE_EXHAUSTED|out of memory|OUT_OF_MEMORY", "another process holds the GPU's memory: see nvidia-smi"),
    (
        r"CUDA_ERROR_NO_DEVICE|[Nn]o visible GPU|no CUDA-capable",
        "no GPU can be seen: check nvidia-smi, CUDA_VISIBLE_DEVICES, and --gpus all where this is a container",
    ),
    (
        r"CUDA|cuDNN|cudnn|nvidia",
        "the CUDA plugin or the driver does not fit: pip install --upgrade '{cuda}', and see nvidia-smi",
    ),
    (r"TPU|libtpu", "check that this machine has a TPU and that libtpu fits: pip install --upgrade '{tpu}'"),
)
# Relative to the largest value of a product of 256 x 256 standard normals: float32 is at 1e-7 to 1e-6, TF32 (10 bits)
# at 1e-4 to 1e-3, bfloat16 (7 bits) at 1e-3 to 1e-2.
_FLOAT32_ERROR = 1e-5


def find_devices(asked: Asked) -> Iterator[Finding]:
    """What jax sees, how it multiplies, and a step."""
    del asked
    try:
        import jax

        devices = jax.devices()
    except Exception as error:  # a dozen types, by plugin
        yield _not_started(one_line(error))
        return
    kinds = ", ".join(f"{kind} x {[d.device_kind for d in devices].count(kind)}" for kind in _different(devices))
    hosts = f" on {jax.process_count()} hosts" if jax.process_count() > 1 else ""
    yield Finding("ok", f"{jax.default_backend()}: {kinds}{hosts}{_memory(devices[0])}")
    if jax.default_backend() == "cpu" and has_nvidia_driver():
        yield _unused_gpu()
    yield from guarded(_precision(), of="the precision of products", status="problem")
    yield from guarded(_step(), of="a training step", status="problem")


def _not_started(said: str) -> Finding:
    advice = next((advice for pattern, advice in _START_ADVICE if re.search(pattern, said)), "")
    advice = advice.format(cuda=at_this_version("jax[cuda12]"), tpu=at_this_version("jax[tpu]"))
    return Finding("problem", f"jax cannot start: {said}", advice or "JAX_PLATFORMS=cpu works without accelerators")


def _unused_gpu() -> Finding:
    # jax goes on without a GPU that it could not start, and says so in its log only.
    what = "an NVIDIA driver is here, and jax computes on the CPU"
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return Finding("note", what, f"JAX_PLATFORMS={platforms} asks for it; unset it to use the GPU")
    advice = "python -c 'import jax; jax.devices(\"cuda\")' says why; see also CUDA_VISIBLE_DEVICES and nvidia-smi"
    return Finding("warning", what, advice)


def _different(devices) -> list[str]:
    return list(dict.fromkeys(device.device_kind for device in devices))


def _memory(device) -> str:
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return ""
    used = stats.get("bytes_in_use", 0)
    return f", {as_gib(stats['bytes_limit'])} of memory each for jax, {as_gib(used)} in use"


def _precision() -> Iterator[Finding]:
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((2, 256, 256), np.float32)
    exact = left.astype(np.float64) @ right.astype(np.float64)

    def error_at(precision: jax.lax.Precision) -> float:
        found = np.asarray(jax.jit(functools.partial(jnp.matmul, precision=precision))(left, right))
        return float(np.abs(found - exact).max() / np.abs(exact).max())

    best, usual = error_at(jax.lax.Precision.HIGHEST), error_at(jax.lax.Precision.DEFAULT)
    if not best <= _FLOAT32_ERROR:  # a NaN too
        yield Finding(
            "problem",
            f"float32 products are off by {best:.0e} of their largest value at the highest precision (1e-6 is usual)",
            "unset NVIDIA_TF32_OVERRIDE and XLA_FLAGS that loosen it; otherwise the device or its driver is at fault",
        )
    elif not usual <= _FLOAT32_ERROR:
        yield Finding(
            "note",
            f"float32 products are exact to {best:.0e} as plip_jax asks for them, and to {usual:.0e} by default here",
            'in code of your own: jax.config.update("jax_default_matmul_precision", "highest")',
        )
    else:
        yield Finding("ok", f"float32 products are exact to {max(best, usual):.0e}")


def _step() -> Iterator[Finding]:
    """One training step of the tiny network on a batch of noise, twice: it is compiled once, and is finite."""
    import jax

    state, step, batch = _tiny_training()
    start = time.perf_counter()
    state, _ = jax.block_until_ready(step(state, batch))
    first = time.perf_counter() - start
    start = time.perf_counter()
    state, metrics = jax.block_until_ready(step(state, batch))
    second = time.perf_counter() - start
    loss, skipped = float(metrics["loss"]), int(metrics["skipped_steps"])
    if not np.isfinite(loss) or skipped:
        yield Finding(
            "problem",
            f"a training step of a tiny CLIP is not finite (loss {loss:g}, {skipped} of 2 steps skipped)",
            "try JAX_PLATFORMS=cpu: where that is finite, the device, its driver or XLA_FLAGS are at fault",
        )
        return
    yield Finding(
        "ok",
        f"a training step of a tiny CLIP: {first:.1f} s with its compilation, then {second * 1e3:.0f} ms; finite, on "
        f"{jax.device_count()} device{'s' * (jax.device_count() > 1)}",
    )


def _tiny_training():
    """State, jitted step and batch of the preset ``tiny``, with the library's own loss, optimiser and sharding."""
    import jax

    from plip_jax.data.image import Preprocessing, normalize_pixels
    from plip_jax.model import clip
    from plip_jax.model.presets import get_preset
    from plip_jax.sharding import make_mesh, params_sharding, put_batch
    from plip_jax.training.losses import LossConfig, get_loss
    from plip_jax.training.optim import OptimConfig, learning_rate_schedule, make_optimizer
    from plip_jax.training.state import init_state
    from plip_jax.training.step import Task, UpdateRule, make_train_step

    config = get_preset("tiny")
    pixels = Preprocessing(image_size=config.vision.image_size)
    model, mesh = clip.build(config), make_mesh()
    optim = OptimConfig(learning_rate=1e-3, warmup_steps=1)
    loss = get_loss(LossConfig("contrastive"))
    task = Task(
        encode_image=lambda params, batch, keys: model.encode_image(params, normalize_pixels(batch["image"], pixels)),
        encode_text=model.encode_text,
        loss=loss,
        seed=0,
    )
    rule = UpdateRule(make_optimizer(optim, 10), learning_rate_schedule(optim, 10), loss.logit_scale_range)

    rng, size = np.random.default_rng(0), 8 * mesh.size
    # Drawn here, as to compile the network's own initialisation takes half as long as the step.
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(leaf.dtype), model.abstract_params())
    place = functools.partial(params_sharding, mesh, strategy="replicated")
    state = init_state(params, rule.optimizer, place)
    side = config.vision.image_size
    tokens = rng.integers(1, 500, (size, config.text.context_length)).astype(np.int32)
    tokens[:, -1] = config.text.eot_token_id
    batch = {"image": rng.integers(0, 256, (size, side, side, 3), np.uint8), "text": tokens}
    return state, make_train_step(task, rule, place(state)), put_batch(mesh, batch)


if __name__ == "__main__":
    answer(find_devices)
