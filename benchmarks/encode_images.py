"""Images to features end to end, ours against Hugging Face's CLIPModel and processor on PyTorch.

    python -m benchmarks.encode_images [--images 2000 | --images DIR] [--size 640x480] [--rounds 3] [--out FILE]

Every contender reads the same JPEG files and has the same random ViT-B/32: the folder is ours, written by the exporter,
and transformers loads it. Ours runs on one device, as the peer does. The clock runs from the paths to the features on
the host. Beside it each contender runs its decoding alone, and its towers alone: on one batch that lies on the device
already, again and again, waited for once at the end. "of towers" is the rate from paths to features as a part of the
towers' own: on an accelerator the part of the time in which it must compute, and no measurement of when it does; on a
CPU, where towers and decoding share the cores, what decoding leaves of the towers' rate.

Memory is that of the contender's process (a peer's DataLoader workers are not counted): the most that it holds at a
time in the first and in the last quarter of the measured run, and its peak, loading and compiling included.

Each measurement is a process of its own, and the contenders take turns. Ratios are of medians over the rounds, against
the faster of a peer's two ways to load. Needs torch and transformers for the peers.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import functools
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
# Different images; the others are the same files again, which costs decoding as much.
_DISTINCT = 128
# Of the images, how many the parts alone are measured on.
_PART = 4
_JPEG_QUALITY = 95
_SAMPLE_SECONDS = 0.02
# Largest difference of unit rows from Hugging Face's float32: float32's is rounding in another order, bfloat16's that
# of its operands (both measured, with room).
TOLERANCES = {"float32": 1e-4, "bfloat16": 3e-2}
REFERENCE = "hf-float32-workers"


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to encode.

    Attributes:
        library: ``"ours"`` or ``"hf"``.
        dtype: ``"float32"`` or ``"bfloat16"``.
        loader: a key of `torch_encode.LOADERS`; of ours empty.
    """

    library: str
    dtype: str
    loader: str = ""

    @property
    def name(self) -> str:
        """As on the command line and in the table."""
        return "-".join(filter(None, [self.library, self.dtype, self.loader]))


_ALL = [
    *(Contender("ours", dtype) for dtype in ("bfloat16", "float32")),
    *(Contender("hf", dtype, loader) for dtype in ("bfloat16", "float32") for loader in ("workers", "threads")),
]
CONTENDERS = {contender.name: contender for contender in _ALL}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status, 1 where the contenders' features differ."""
    parser = argparse.ArgumentParser(prog="benchmarks.encode_images", description=__doc__)
    parser.add_argument("--images", default="2000", help="how many to make, or a folder of JPEG files (%(default)s)")
    parser.add_argument("--size", type=_size, default=(640, 480), metavar="WxH", help="of the images made (640x480)")
    parser.add_argument("--model", default="ViT-B-32", help="preset (%(default)s)")
    names = f"default: all; known: {', '.join(CONTENDERS)}"
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help=names)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="a tiny model and 32 small images, once: does it run?")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/encode_images_PLATFORM.json")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # one measurement, in the process that is measured
    flags = parser.parse_args(argv)
    if flags.measure:
        print(json.dumps(measure(json.loads(flags.measure))))
        return 0
    if flags.smoke:
        flags.images, flags.size, flags.model, flags.rounds, flags.batch_size = "32", (96, 64), "tiny", 1, 8
    with tempfile.TemporaryDirectory() as folder:
        return run(flags, Path(folder))


def run(flags: argparse.Namespace, folder: Path) -> int:
    """Measure every contender in every round, print the table and write it."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "jax"), "TOKENIZERS_PARALLELISM": "false"}
    # This process opens no accelerator: the ones it starts need it.
    machine = json.loads(_start(["-m", "benchmarks.machine"], environment).stdout)
    write_model = "from benchmarks.encode_images import write_model; write_model"
    _start(["-c", f"{write_model}({flags.model!r}, {str(folder / 'model')!r})"], environment | {"JAX_PLATFORMS": "cpu"})
    settings = {"model": flags.model, "batch_size": flags.batch_size, "workers": machine["cpu_cores"]}
    settings["images"] = prepare(flags.images, flags.size, folder)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in flags.contenders}
    for number in range(flags.rounds):
        for name in flags.contenders:
            request = json.dumps({**settings, "contender": name, "folder": str(folder)})
            done = _start(["-m", "benchmarks.encode_images", "--measure", request], environment)
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
            found = f"{runs[name][-1]['images_per_s']:.1f} images/s"
            print(f"round {number + 1}: {name}: {found}", file=sys.stderr, flush=True)
    results = summarise(runs)
    differences = {name: row_difference(folder, name) for name in runs} if REFERENCE in runs else {}
    print(table(results))
    print("difference of unit rows:", ", ".join(f"{name} {value:.1e}" for name, value in differences.items()))
    report = {"machine": machine, "settings": {**settings, "rounds": flags.rounds}, "results": results}
    out = flags.out or ROOT / "benchmarks" / "results" / f"encode_images_{machine['platform']}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**report, "feature_differences": differences}, indent=2) + "\n")
    print(f"written to {out}")
    return int(any(value > TOLERANCES[CONTENDERS[name].dtype] for name, value in differences.items()))


def _start(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr}")
    return done


def write_model(preset: str, folder: str) -> None:
    """Write random weights of a preset as a Hugging Face folder; the tokenizer is a small one, as no text is read."""
    import jax

    from plip_jax.convert.hf import write_hf
    from plip_jax.data.image import Preprocessing
    from plip_jax.data.tokenizer import train_tokenizer
    from plip_jax.model import clip
    from plip_jax.model.presets import get_preset

    config = get_preset(preset)
    tokenizer = train_tokenizer(["tissue"], vocab_size=520, context_length=config.text.context_length)
    text = dataclasses.replace(config.text, vocab_size=tokenizer.vocab_size, eot_token_id=tokenizer.eot_token_id)
    config = dataclasses.replace(config, text=text)
    params = jax.device_get(clip.build(config).init(jax.random.key(0)))
    Path(folder).mkdir()
    write_hf(Path(folder), config, params, tokenizer, Preprocessing(image_size=config.vision.image_size))


def prepare(images: str, size: tuple[int, int], folder: Path) -> dict[str, Any]:
    """Find or make the images and write the list of their paths; returns what they are."""
    from data_prep.workers import num_cores

    if images.isdigit():
        (folder / "images").mkdir()
        count = int(images)
        files = [folder / "images" / f"{index:06d}.jpg" for index in range(min(count, _DISTINCT))]
        with concurrent.futures.ProcessPoolExecutor(num_cores()) as pool:
            made = pool.map(functools.partial(_simulated_jpeg, width=size[0], height=size[1]), range(len(files)))
            for file, data in zip(files, made, strict=True):
                file.write_bytes(data)
    else:
        files = sorted(path for path in Path(images).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        count = len(files)
        if not files:
            raise FileNotFoundError(f"--images {images}: no .jpg or .jpeg file in it")
    (folder / "paths.json").write_text(json.dumps([str(files[index % len(files)]) for index in range(count)]))
    described = {
        "count": count,
        "different": len(files),
        "bytes_mean": round(statistics.mean(file.stat().st_size for file in files)),
    }
    return described | ({"size": list(size)} if images.isdigit() else {})


def _simulated_jpeg(index: int, width: int, height: int) -> bytes:
    from data_prep.simulate import simulate

    side = max(width, height)
    buffer = io.BytesIO()
    simulate(0, index, size=side).image.crop((0, 0, width, height)).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Run one contender in this process, and leave its features in the folder.

    Returns:
        ``images_per_s`` from paths to features, ``cpu_ms`` an image (with workers), ``towers_per_s`` and
        ``decoded_per_s`` of each alone, ``mib_first_quarter`` and ``mib_last_quarter`` of the run and ``peak_mib`` of
        this process, ``device``.
    """
    contender, folder = CONTENDERS[request["contender"]], Path(request["folder"])
    paths = json.loads((folder / "paths.json").read_text())
    make = _ours if contender.library == "ours" else _hugging_face
    encode, decode, towers, device = make(contender, folder / "model", request)
    part = paths[: max(1, len(paths) // _PART)]
    encode(part)  # compiles, too
    cpu = _cpu_seconds()
    with memory_samples() as samples:
        seconds, features = _timed(encode, paths)
    first, last = _quarters(samples)
    result = {
        "images_per_s": len(paths) / seconds,
        "cpu_ms": 1000 * (_cpu_seconds() - cpu) / len(paths),
        "mib_first_quarter": first,
        "mib_last_quarter": last,
        "peak_mib": _peak_mib(),
        "decoded_per_s": len(part) / _timed(decode, part)[0],
        "device": device,
    }
    count = max(1, len(part) // request["batch_size"])
    towers(1)
    result["towers_per_s"] = count * request["batch_size"] / _timed(towers, count)[0]
    np.save(folder / f"{contender.name}.npy", features)
    return result


# Paths to features, paths to pixels, the towers on so many batches, and the device's name.
_Parts = tuple[Callable[[Sequence[str]], np.ndarray], Callable[[Sequence[str]], None], Callable[[int], Any], str]


def _ours(contender: Contender, model: Path, request: dict[str, Any]) -> _Parts:
    import jax

    from plip_jax.api import PLIP
    from plip_jax.batching import Batcher
    from plip_jax.data.image import normalize_pixels, preprocess_image
    from plip_jax.model import clip
    from plip_jax.sharding import make_mesh, put_batch

    mesh = make_mesh(jax.devices()[:1])
    plip = PLIP.from_pretrained(model, compute_dtype=contender.dtype, batch_size=request["batch_size"], mesh=mesh)
    encoder, batcher = plip.encoder, Batcher(request["batch_size"], mesh)
    network, side = clip.build(encoder.config, compute_dtype=contender.dtype), encoder.preprocessing.image_size

    def decode(paths: Sequence[str]) -> None:
        to_pixels = functools.partial(preprocess_image, preprocessing=encoder.preprocessing)
        for _ in batcher.image_batches(paths, None, to_pixels=to_pixels, side=side):
            pass

    @batcher.jit
    def encode(params: Any, images: jax.Array) -> jax.Array:
        return network.encode_image(params, normalize_pixels(images, encoder.preprocessing))

    pixels = np.random.default_rng(0).integers(0, 256, (batcher.batch_size, side, side, 3), np.uint8)
    resident = put_batch(mesh, {"pixels": pixels})["pixels"]

    def towers(count: int) -> None:
        jax.block_until_ready([encode(plip.params, resident) for _ in range(count)])

    return functools.partial(plip.encode_images, normalize=False), decode, towers, jax.devices()[0].device_kind


def _hugging_face(contender: Contender, model: Path, request: dict[str, Any]) -> _Parts:
    from benchmarks.torch_encode import TorchEncoder

    encoder = TorchEncoder(
        model,
        dtype=contender.dtype,
        loader=contender.loader,
        batch_size=request["batch_size"],
        workers=request["workers"],
    )
    side = encoder.model.config.vision_config.image_size
    resident = encoder.torch.randn(request["batch_size"], 3, side, side, device=encoder.device)

    def decode(paths: Sequence[str]) -> None:
        for _ in encoder.batches(paths):
            pass

    def encode(paths: Sequence[str]) -> np.ndarray:
        return encoder.encode(encoder.batches(paths))

    return encode, decode, lambda count: encoder.encode([resident] * count), str(encoder.device)


def _timed(function: Callable[[Any], Any], argument: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function(argument)
    return time.perf_counter() - start, result


def _cpu_seconds() -> float:
    return sum(os.times()[:4])  # of this process, and of the workers that have ended


@contextlib.contextmanager
def memory_samples() -> Iterator[list[float]]:
    """MiB that this process holds, every 20 ms while the block runs and once at its end."""
    samples: list[float] = []
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(_SAMPLE_SECONDS):
            samples.append(_resident_mib())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()
        samples.append(_resident_mib())


def _quarters(samples: list[float]) -> tuple[float, float]:
    """The highest of the first and of the last quarter."""
    quarter = -(-len(samples) // 4)
    return max(samples[:quarter]), max(samples[-quarter:])


def _resident_mib() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux: the peak so far, which cannot show that memory was given back
        return _peak_mib()
    return pages * resource.getpagesize() / 2**20


def _peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KiB on Linux


def row_difference(folder: Path, name: str) -> float:
    """Largest difference of a contender's unit rows from the reference's."""
    rows, reference = (_unit(np.load(folder / f"{found}.npy")) for found in (name, REFERENCE))
    return float(np.abs(rows - reference).max())


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def summarise(runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row a contender: medians over the rounds, and the rate as a multiple of Hugging Face's best of each dtype."""
    rows = []
    for name, results in runs.items():
        keys = [key for key, value in results[0].items() if not isinstance(value, str)]
        row = {key: statistics.median(result[key] for result in results) for key in keys}
        part = statistics.median(result["images_per_s"] / result["towers_per_s"] for result in results)
        rates = [result["images_per_s"] for result in results]
        rows.append({"contender": name, **row, "of_towers": part, "images_per_s_all": rates})
    peers: dict[str, float] = {}
    for row in rows:
        contender = CONTENDERS[row["contender"]]
        if contender.library == "hf":
            peers[contender.dtype] = max(peers.get(contender.dtype, 0.0), row["images_per_s"])
    for row in rows:
        row["ratios"] = {f"hf-{dtype}": row["images_per_s"] / rate for dtype, rate in peers.items()}
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in columns."""
    peers = list(rows[0]["ratios"])
    head = ["contender", "images/s", "CPU ms", "towers alone", "decoding alone", "of towers"]
    head += ["MiB first 1/4", "MiB last 1/4", "peak MiB"]
    lines = [[*head, *(f"x {peer}" for peer in peers)]]
    for row in rows:
        numbers = [f"{row[key]:.1f}" for key in ("images_per_s", "cpu_ms", "towers_per_s", "decoded_per_s")]
        memory = [f"{row[key]:.0f}" for key in ("mib_first_quarter", "mib_last_quarter", "peak_mib")]
        ratios = [f"{row['ratios'][peer]:.2f}" for peer in peers]
        lines.append([row["contender"], *numbers, f"{row['of_towers']:.0%}", *memory, *ratios])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and min(int(width), int(height)) > 0):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT in pixels, got {text!r}")
    return int(width), int(height)


if __name__ == "__main__":
    sys.exit(main())
