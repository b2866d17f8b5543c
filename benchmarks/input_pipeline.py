"""Images a second and core: ours against PyTorch's DataLoader and open_clip's webdataset reading.

    python -m benchmarks.input_pipeline [--images DIR] [--size 640x480] [--rounds 3]

Every contender decodes the same JPEG files, makes PLIP's training view of 224 px and pads the caption to 77 tokens with
the same tokenizer. The peers (`benchmarks.torch_input`) also turn pixels into normalised float32, as they must on the
host; ours leave as uint8 and are normalised on the device. Without --images the files are simulated tissue, JPEG of
quality 90.

The contenders take turns, each in a process of its own, and the table shows medians over the rounds. "images / CPU s"
is what one core does: all CPU time of the process and its workers is counted. A busy machine still disturbs it (caches
and memory are shared), but the ratios less, because the contenders take turns.
Needs torch for the peers, and uses webdataset if it is installed; prints a table and writes a JSON file.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

IMAGE_SIZE = 224
CONTEXT_LENGTH = 77
RESULTS = Path(__file__).parent / "results"
_PEER = "PyTorch DataLoader, files"
# Images are repeated to this many records: the shuffle of a few hundred costs more than that of a real data set.
_NUM_RECORDS = 2000


def _ours(folder: Path, batch: int, *, records: str, num_workers: int = 1, warp_on_device: bool = False) -> Iterator:
    from plip_jax.data.pipeline import DataConfig, SourceConfig, make_train_iterator
    from plip_jax.data.tokenizer import load_tokenizer

    config = DataConfig(
        sources=(SourceConfig(str(folder / records)),),
        global_batch_size=batch,
        image_size=IMAGE_SIZE,
        num_workers=num_workers,
        warp_on_device=warp_on_device,
    )
    return make_train_iterator(config, load_tokenizer(folder / "tokenizer"))


def _files(folder: Path, batch: int) -> Iterator:
    from benchmarks.torch_input import file_batches

    files = sorted((folder / "images").iterdir())
    captions = json.loads((folder / "captions.json").read_text())
    return file_batches(files, captions, folder / "tokenizer", IMAGE_SIZE, batch)


def _tars(folder: Path, batch: int) -> Iterator:
    from benchmarks.torch_input import tar_batches

    return tar_batches(sorted(folder.glob("*.tar")), folder / "tokenizer", IMAGE_SIZE, batch)


def contenders(cores: int) -> dict[str, Callable[[Path, int], Iterator]]:
    """Name -> the endless batches it makes of the prepared folder."""
    ours = functools.partial(functools.partial, _ours)
    table = {
        _PEER: _files,
        "webdataset (open_clip), tar": _tars,
        "ours, threads": ours(records="records", num_workers=0),
        "ours, 1 worker": ours(records="records"),
        "ours, 1 worker, cache 512 px": ours(records="records_512"),
        "ours, 1 worker, cache 256 px": ours(records="records_256"),
        "ours, 1 worker, warp on device": ours(records="records", warp_on_device=True),
        "ours, 1 worker, cache 512 px, warp on device": ours(records="records_512", warp_on_device=True),
        "ours, 1 worker, cache 256 px, warp on device": ours(records="records_256", warp_on_device=True),
    }
    number = 2
    while number <= cores:
        table[f"ours, {number} workers"] = ours(records="records", num_workers=number)
        number *= 2
    return table


def measure(name: str, folder: Path, batch: int, num_images: int, cores: int) -> dict[str, float]:
    """Run one contender in this process: wall and CPU seconds for `num_images`, after a start of four batches."""
    batches = contenders(cores)[name](folder, batch)
    # Every worker has made batches ahead when the clock starts, and as many when it stops.
    for _ in range(4 * cores):
        next(batches)
    steps = max(1, num_images // batch)
    wall, cpu = time.perf_counter(), cpu_seconds()
    for _ in range(steps):
        next(batches)
    result = {"images": steps * batch, "wall_s": time.perf_counter() - wall, "cpu_s": cpu_seconds() - cpu}
    if hasattr(batches, "close"):
        batches.close()  # type: ignore[attr-defined]  # ours; the peers' iterators end with the process
    return result


def cpu_seconds() -> float:
    """CPU time of this process and its living descendants so far (Linux; elsewhere of this process alone)."""
    if not Path("/proc/self/stat").exists():
        return time.process_time()
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The second field is the program's name in brackets, which may hold spaces.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended meanwhile
                continue
            parents[int(entry.name)] = int(fields[1])
            ticks[int(entry.name)] = int(fields[11]) + int(fields[12])  # user and system
    family = {os.getpid()}
    while grown := {process for process, parent in parents.items() if parent in family} - family:
        family |= grown
    return sum(ticks.get(process, 0) for process in family) / os.sysconf("SC_CLK_TCK")


def _simulated_jpeg(index: int, width: int, height: int) -> bytes:
    from data_prep.simulate import simulate

    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    buffer = io.BytesIO()
    image = simulate(0, index, size=side).image.crop((left, top, left + width, top + height))
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def prepare(folder: Path, images: Path | None, size: tuple[int, int], count: int) -> dict[str, Any]:
    """Write the images as files, tar shards, records and caches of records; returns what they are."""
    from data_prep.resize import Smaller, resize_records
    from data_prep.shards import RecordsWriter, upright_rgb
    from data_prep.simulate import compose, describe
    from data_prep.workers import num_cores
    from plip_jax.data.image import decode_image
    from plip_jax.data.records import Record
    from plip_jax.data.tokenizer import train_tokenizer

    if images is None:
        with concurrent.futures.ProcessPoolExecutor(num_cores()) as pool:
            encoded = list(pool.map(functools.partial(_simulated_jpeg, width=size[0], height=size[1]), range(count)))
    else:
        paths = sorted(path for path in images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:count]
        if not paths:
            raise FileNotFoundError(f"--images {images}: no .jpg or .jpeg file in it")
        encoded = [upright_rgb(path.read_bytes(), name=str(path)) for path in paths]
    captions = [describe(compose(0, index), np.random.default_rng(index))[0] for index in range(len(encoded))]
    (folder / "images").mkdir()
    (folder / "captions.json").write_text(json.dumps(captions))
    train_tokenizer(captions, vocab_size=1024, context_length=CONTEXT_LENGTH).save(folder / "tokenizer")
    with RecordsWriter(folder / "once") as writer, tarfile.open(folder / "shard-000000.tar", "w") as archive:
        for index, (data, caption) in enumerate(zip(encoded, captions, strict=True)):
            (folder / "images" / f"{index:06d}.jpg").write_bytes(data)
            writer.write(Record(f"image-{index}", data, (caption,)))
            for suffix, content in (("jpg", data), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{index:06d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    _repeat_records(folder / "once", folder / "records")
    for short_side in (512, 256):
        resize_records(folder / "once", folder / f"once_{short_side}", Smaller(short_side))
        _repeat_records(folder / f"once_{short_side}", folder / f"records_{short_side}")
    sizes = [decode_image(data, name="image").size for data in encoded]
    return {
        "what": "simulated tissue, JPEG quality 90" if images is None else images.name,
        "count": len(encoded),
        "width_mean": round(statistics.mean(width for width, _ in sizes)),
        "height_mean": round(statistics.mean(height for _, height in sizes)),
        "bytes_mean": round(statistics.mean(map(len, encoded))),
    }


def _repeat_records(once: Path, out: Path) -> None:
    from data_prep.shards import RecordsWriter
    from plip_jax.data.records import open_records

    records = list(open_records(once))
    with RecordsWriter(out) as writer:
        for index in range(max(_NUM_RECORDS, len(records))):
            record = records[index % len(records)]
            writer.write(dataclasses.replace(record, id=f"{record.id}-{index}"))


def _run_child(name: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.input_pipeline", "--child", name, "--folder", str(folder)]
    command += ["--batch", str(options.batch), "--measured", str(options.measured), "--cores", str(options.cores)]
    # One core each: torch and the tokenizer would otherwise start threads beside their workers.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    program = subprocess.run(command, capture_output=True, text=True, env=environment)
    if program.returncode:
        raise RuntimeError(f"{name} failed:\n{program.stderr}")
    return json.loads(program.stdout.splitlines()[-1])


def summarize(runs: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """One row a contender: medians of the rates, and the rate a core as a multiple of the DataLoader's."""
    rows = []
    for name, results in runs.items():
        per_core = statistics.median(run["images"] / run["cpu_s"] for run in results)
        wall = statistics.median(run["images"] / run["wall_s"] for run in results)
        rows.append({"contender": name, "images_per_cpu_s": round(per_core, 1), "images_per_s": round(wall, 1)})
    peer = next((row["images_per_cpu_s"] for row in rows if row["contender"] == _PEER), None)
    for row in rows:
        row["ratio"] = round(row["images_per_cpu_s"] / peer, 2) if peer else None
    return rows


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and min(int(width), int(height)) > 0):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT in pixels, got {text!r}")
    return int(width), int(height)


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    from data_prep.workers import num_cores

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.input_pipeline", description="Images a second and core."
    )
    parser.add_argument("--images", type=Path, help="folder of JPEG files (default: simulated tissue)")
    parser.add_argument("--size", type=_size, default=(640, 480), metavar="WxH", help="of simulated images (640x480)")
    parser.add_argument("--count", type=int, default=96, help="images, read again and again (%(default)s)")
    parser.add_argument("--measured", type=int, default=512, help="images a contender and round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every contender (%(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="batch size (%(default)s)")
    parser.add_argument("--cores", type=int, default=num_cores(), help="most worker processes (%(default)s)")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="contenders that hold this text")
    parser.add_argument("--out", type=Path, help="JSON file (default: in benchmarks/results)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = _parse_arguments(arguments)
    if options.child:
        print(json.dumps(measure(options.child, options.folder, options.batch, options.measured, options.cores)))
        return 0
    names = [n for n in contenders(options.cores) if not options.only or any(text in n for text in options.only)]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as temporary:
        data = prepare(Path(temporary), options.images, options.size, options.count)
        for _ in range(options.rounds):
            for name in names:
                runs[name].append(_run_child(name, Path(temporary), options))
    rows = summarize(runs)
    machine = json.loads(
        subprocess.run([sys.executable, "-m", "benchmarks.machine"], capture_output=True, text=True, check=True).stdout
    )
    settings = {"image_size": IMAGE_SIZE, "context_length": CONTEXT_LENGTH, "batch": options.batch}
    settings |= {"rounds": options.rounds, "measured": options.measured}
    out = options.out or RESULTS / f"input_pipeline_{data['width_mean']}x{data['height_mean']}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine, "data": data, "settings": settings, "results": rows, "runs": runs}
    out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{data['count']} images of {data['width_mean']} x {data['height_mean']}, {data['what']}; {machine['cpu']}")
    print(f"{'':46} {'images / CPU s':>14} {'ratio':>6} {'images / s':>11}")
    for row in rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        print(f"{row['contender']:46} {row['images_per_cpu_s']:14.0f} {ratio:>6} {row['images_per_s']:11.0f}")
    print(f"-> {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
