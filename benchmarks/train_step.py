"""A whole training step, ours against PyTorch's: forward, loss, backward and AdamW, on one batch and one device.

    python -m benchmarks.train_step

takes batch 32 on a CPU and 4096 on a GPU, prints a table and writes it with machine, versions and settings as JSON. All
contenders have one network (random weights) and one batch (random pixels; captions of random tokens as long as those of
so many words). Each measurement is a process of its own, so that memory is the contender's and nothing of another is
left; the processes take turns, round by round, so that what else the machine does falls on all alike. A peer that is
not installed, or a contender that does not fit, is a line of the table too.

A step begins at the batch in host memory, uint8, and ends when its update is done. Pairs/s is from the median step.
MFU is 3 x the FLOPs of the forward pass that the mathematics needs (`plip_jax.model.flops`), the same for all, against
a matrix product measured in the contender's dtype.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
# Warm-up: what is compiled is compiled at the first step, and PyTorch's compiler looks again at the second.
WARM_UP = 2
# Sides of the square product that MFU is measured against.
MATMUL_SIZE = {"cpu": 2048}
LARGE_MATMUL_SIZE = 8192
FULL_BATCH, SMALL_BATCH = 4096, 32
# Of the memory of an allocation, 2 MiB at a time and not 4 KiB: PyTorch and XLA both ask for gigabytes at each step.
HUGE_PAGES = "glibc.malloc.hugetlb=1"


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to take the step.

    Attributes:
        library: ``"ours"``, ``"hf"`` or ``"open_clip"``.
        dtype: ``"float32"`` or ``"bfloat16"``.
        text: ``"packed"``, ``"longest"`` (padded to the longest caption of the batch) or ``"77"`` (to the context).
        compiled: by ``torch.compile``; ours always are.
    """

    library: str
    dtype: str
    text: str
    compiled: bool = False

    @property
    def name(self) -> str:
        """As on the command line and in the table."""
        return "-".join([self.library, self.dtype, self.text, *(["compiled"] if self.compiled else [])])


OURS = [Contender("ours", dtype, text) for dtype in ("bfloat16", "float32") for text in ("packed", "longest", "77")]
HF = [Contender("hf", dtype, text) for dtype in ("float32", "bfloat16") for text in ("77", "longest")]
OPEN_CLIP = [Contender("open_clip", "bfloat16", text) for text in ("77", "longest")]
COMPILED = [dataclasses.replace(contender, compiled=True) for contender in (*HF[2:], *OPEN_CLIP)]
CONTENDERS = {contender.name: contender for contender in (*OURS, *HF, *OPEN_CLIP, *COMPILED)}
# On two shared cores torch.compile had not finished the step of Hugging Face's model after ten minutes.
BY_DEFAULT = {"cpu": [contender.name for contender in (*OURS, *HF, *OPEN_CLIP)]}
BASELINES = ("hf-float32-77", "hf-bfloat16-77", "open_clip-bfloat16-77-compiled", "open_clip-bfloat16-longest-compiled")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.train_step", description=__doc__)
    names = f"default: all, but no compiled PyTorch on a CPU; known: {', '.join(CONTENDERS)}"
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, metavar="NAME", help=names)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--batch", type=int, help=f"pairs; default {SMALL_BATCH} on a CPU, {FULL_BATCH} elsewhere")
    parser.add_argument("--caption-words", type=int, default=15)
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches of ours")
    parser.add_argument(
        "--remat",
        choices=("auto", "on", "off"),
        default="auto",
        help="recompute activations; auto: of each contender that does not fit without (default)",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="timed steps of a round; default 3 on a CPU, 10 elsewhere")
    parser.add_argument("--no-huge-pages", action="store_true", help="do not ask for huge pages, for any contender")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/train_step_PLATFORM.json")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # one measurement, in the process that is measured
    flags = parser.parse_args(argv)
    if flags.measure:
        print(json.dumps(measure(json.loads(flags.measure))))
        return 0
    with tempfile.TemporaryDirectory() as cache:
        run(flags, _environment(Path(cache), huge_pages=not flags.no_huge_pages))
    return 0


def run(flags: argparse.Namespace, environment: dict[str, str]) -> None:
    """Measure every contender in every round, print the table and write it."""
    # This process opens no accelerator: the ones it starts need it.
    machine = json.loads(_start(["-m", "benchmarks.machine"], environment).stdout)
    on_cpu = machine["platform"] == "cpu"
    settings = {
        "model": flags.model,
        "batch": flags.batch or (SMALL_BATCH if on_cpu else FULL_BATCH),
        "caption_words": flags.caption_words,
        "accumulation": flags.accumulation,
        "steps": flags.steps or (3 if on_cpu else 10),
        "matmul_size": MATMUL_SIZE.get(machine["platform"], LARGE_MATMUL_SIZE),
    }
    contenders = flags.contenders or BY_DEFAULT.get(machine["platform"], list(CONTENDERS))
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    remat: set[str] = set(contenders) if flags.remat == "on" else set()
    for number in range(flags.rounds):
        for name in contenders:
            if any("failure" in result for result in rounds[name]):
                continue
            result = measure_apart(name, settings, environment, remat=name in remat)
            if "failure" in result and result["out_of_memory"] and flags.remat == "auto" and name not in remat:
                remat.add(name)
                result = measure_apart(name, settings, environment, remat=True)
            rounds[name].append(result | {"remat": name in remat})
            found = result.get("failure") or f"{statistics.median(result['seconds']):.3f} s a step"
            print(f"round {number + 1}: {name}: {found}", file=sys.stderr, flush=True)
    results = [summarise(name, measured, settings) for name, measured in rounds.items()]
    print(table(results))
    config = {**settings, "rounds": flags.rounds, "remat": flags.remat, "huge_pages": "GLIBC_TUNABLES" in environment}
    out = flags.out or ROOT / "benchmarks" / "results" / f"train_step_{machine['platform']}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"machine": machine, "config": config, "results": results}, indent=2) + "\n")
    print(f"written to {out}")


def _environment(cache: Path, *, huge_pages: bool) -> dict[str, str]:
    """The same for all contenders: what a round compiles, the next one finds."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache / "jax"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "torch"),
    }
    if huge_pages:
        environment["GLIBC_TUNABLES"] = ":".join(filter(None, [os.environ.get("GLIBC_TUNABLES"), HUGE_PAGES]))
    return environment


def _start(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def measure_apart(name: str, settings: dict[str, Any], environment: dict[str, str], *, remat: bool) -> dict[str, Any]:
    """`measure` in a process of its own; a process that fails gives its last words as ``failure``."""
    request = json.dumps({**settings, "contender": name, "remat": remat})
    done = _start(["-m", "benchmarks.train_step", "--measure", request], environment)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    # XLA's and PyTorch's words, and the signal of a system that is short of memory.
    short = any(word in done.stderr for word in ("RESOURCE_EXHAUSTED", "OutOfMemoryError")) or done.returncode == -9
    return {"failure": "out of memory" if short else words[-1][:200], "out_of_memory": short}


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Time the steps of one contender in this process.

    Returns:
        ``seconds`` and ``cpu_seconds`` of each timed step, ``loss`` of the last, ``peak_memory_bytes`` (of the device;
        on a CPU of the process), ``model_flops`` of a step and ``peak_flops`` (FLOP/s of a matrix product).
    """
    from plip_jax.model.flops import image_flops, text_flops
    from plip_jax.model.presets import get_preset

    contender = CONTENDERS[request["contender"]]
    config = get_preset(request["model"])
    batch, lengths = make_batch(config, request["batch"], request["caption_words"])
    if contender.text == "longest":
        batch["tokens"] = batch["tokens"][:, : lengths.max()]
    peak_flops = None
    if contender.library == "ours":
        from plip_jax.training.hardware import measure_matmul_peak

        peak_flops = measure_matmul_peak(contender.dtype, request["matmul_size"], seconds=1.0)
        step, device_memory = make_our_step(contender, config, batch, lengths, request)
    else:
        from benchmarks.torch_step import make_torch_step

        how: dict[str, Any] = {"dtype": contender.dtype, "compiled": contender.compiled, "remat": request["remat"]}
        step, device_memory = make_torch_step(contender.library, config, batch, **how)
    seconds, cpu_seconds, loss = [], [], float("nan")
    for index in range(WARM_UP + request["steps"]):
        start, cpu_start = time.perf_counter(), time.process_time()
        loss = step()
        if index >= WARM_UP:
            seconds.append(time.perf_counter() - start)
            cpu_seconds.append(time.process_time() - cpu_start)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "loss": loss,
        "peak_memory_bytes": device_memory() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "model_flops": 3 * (request["batch"] * image_flops(config) + text_flops(config, lengths)),
        "peak_flops": peak_flops,
    }


def make_batch(config: Any, batch: int, words: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Random pixels, and captions of so many words as random tokens, with the lengths of the captions.

    A word is one token or, three times in ten, two (assumed: the mean of CLIP's tokenizer on English prose), between a
    start and an end token.
    """
    rng = np.random.default_rng(0)
    text = config.text
    lengths = np.minimum(words + rng.binomial(words, 0.3, batch) + 2, text.context_length)
    tokens = rng.integers(1, text.eot_token_id - 1, (batch, text.context_length), dtype=np.int32)
    tokens[:, 0] = text.eot_token_id - 1
    # Padded with the end token, as OpenAI's tokenizer for HF does; the first one is pooled.
    tokens[np.arange(text.context_length) >= lengths[:, None] - 1] = text.eot_token_id
    side = config.vision.image_size
    return {"image": rng.integers(0, 256, (batch, side, side, 3), dtype=np.uint8), "tokens": tokens}, lengths


def make_our_step(
    contender: Contender, config: Any, batch: dict[str, Any], lengths: np.ndarray, request: dict[str, Any]
) -> tuple[Callable[[], float], Callable[[], float]]:
    """Our training step on one batch, as `plip_jax.train` builds it; see `benchmarks.torch_step.make_torch_step`."""
    import jax

    from plip_jax import sharding
    from plip_jax.data.image import Preprocessing, normalize_pixels
    from plip_jax.data.packing import pack_captions, rows_needed
    from plip_jax.model import clip
    from plip_jax.training.accumulation import AccumulatedStep
    from plip_jax.training.feed import make_place
    from plip_jax.training.hardware import peak_memory
    from plip_jax.training.losses import LossConfig, get_loss
    from plip_jax.training.optim import OptimConfig, learning_rate_schedule, make_optimizer
    from plip_jax.training.state import init_state
    from plip_jax.training.step import Task, UpdateRule, make_train_step

    micro_batches = request["accumulation"]
    mesh = sharding.make_mesh(jax.devices()[:1])
    if contender.text == "packed":
        rows = int(rows_needed(lengths.reshape(micro_batches, -1), config.text.context_length).max())
        batch = {**batch, "packed": pack_captions(batch["tokens"], lengths, micro_batches, rows)}
    model = clip.build(config, compute_dtype=contender.dtype, remat=request["remat"])
    pixels = Preprocessing(image_size=config.vision.image_size)
    encode_text = model.encode_packed_text if contender.text == "packed" else model.encode_text
    task = Task(
        lambda params, batch, keys: model.encode_image(params, normalize_pixels(batch["image"], pixels), keys),
        encode_text,
        get_loss(LossConfig("contrastive"), mesh),
        seed=0,
    )
    optim = OptimConfig(learning_rate=1e-5, warmup_steps=0, schedule="constant", weight_decay=0.1)
    optimizer = make_optimizer(optim, 1000)
    rule = UpdateRule(optimizer, learning_rate_schedule(optim, 1000), task.loss.logit_scale_range)
    state = init_state(lambda: model.init(jax.random.key(0)), optimizer, sharding.replicated(mesh))
    place = make_place(mesh, batch, micro_batches)
    one_pass, two_passes = make_train_step(task, rule), AccumulatedStep(task, rule, mesh, micro_batches)

    def step() -> float:
        nonlocal state
        state, metrics = one_pass(state, place(0)) if micro_batches == 1 else two_passes(state, place)
        jax.block_until_ready(state)  # the update comes after the loss
        return float(metrics["loss"])

    return step, lambda: peak_memory().get("peak_memory_bytes", 0)


def summarise(name: str, measured: list[dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    """One contender's line: the median over the steps of all rounds."""
    failures = [result["failure"] for result in measured if "failure" in result]
    if failures:
        return {"contender": name, "failure": failures[0]}
    seconds = [second for result in measured for second in result["seconds"]]
    median = statistics.median(seconds)
    peaks = [result["peak_flops"] for result in measured if result["peak_flops"]]
    return {
        "contender": name,
        "pairs_per_second": settings["batch"] / median,
        "seconds": median,
        "seconds_min": min(seconds),
        "seconds_all": seconds,
        "cpu_seconds_min": min(second for result in measured for second in result["cpu_seconds"]),
        "peak_memory_gib": max(result["peak_memory_bytes"] for result in measured) / 2**30,
        "model_tflops_a_step": measured[0]["model_flops"] / 1e12,
        "matmul_tflops": max(peaks) / 1e12 if peaks else None,
        "loss": measured[-1]["loss"],
        "remat": measured[-1]["remat"],
    }


def table(results: list[dict[str, Any]]) -> str:
    """The results in columns; adds ``mfu`` and the ratios to the baselines to each."""
    found = {result["contender"]: result for result in results if "failure" not in result}
    baselines = [name for name in BASELINES if name in found]
    matmul: dict[str, float] = {}
    for name, result in found.items():
        if result["matmul_tflops"]:
            dtype = CONTENDERS[name].dtype
            matmul[dtype] = max(matmul.get(dtype, 0.0), result["matmul_tflops"])
    head = ["contender", "pairs/s", "s", "min s", "cpu s", "GiB", "MFU", *(f"x {name}" for name in baselines)]
    lines = [head]
    for result in results:
        if "failure" in result:
            lines.append([result["contender"], result["failure"]])
            continue
        rate = result["model_tflops_a_step"] / result["seconds"]
        with contextlib.suppress(KeyError):  # without ours there is no product to measure against
            result["mfu"] = rate / matmul[CONTENDERS[result["contender"]].dtype]
        result["ratios"] = {name: found[name]["seconds"] / result["seconds"] for name in baselines}
        keys = ("pairs_per_second", "seconds", "seconds_min", "cpu_seconds_min", "peak_memory_gib")
        mfu = f"{result['mfu']:.1%}" if "mfu" in result else "-"
        ratios = [f"{ratio:.2f}" for ratio in result["ratios"].values()]
        lines.append([result["contender"], *(f"{result[key]:.2f}" for key in keys), mfu, *ratios])
    widths = [max(len(line[i]) for line in lines if len(line) > max(i, 2)) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=False)).rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(main())
