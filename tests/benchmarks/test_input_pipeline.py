"""The comparison is a fair one: the peers make the same view, and all CPU time is counted."""

import json
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import input_pipeline
from benchmarks.input_pipeline import cpu_seconds, summarize
from plip_jax.data.augment import augment_plip
from plip_jax.data.image import Preprocessing, normalize_pixels

torch = pytest.importorskip("torch", reason="the peers are PyTorch programs")


class Draws:
    """Random numbers of one view, handed to ours as a Generator and to the peers in place of torch's functions."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def random(self) -> float:
        return self.rng.random()

    def uniform(self, low: float, high: float) -> float:
        return self.rng.uniform(low, high)

    def integers(self, low, high, size=None, endpoint=False):
        shape = (1,) if size is None else size
        values = [int(self.rng.random() * (limit + 1)) for limit in np.broadcast_to(high, shape).ravel()]
        assert endpoint
        return np.reshape(values, size) if size else values[0]


@pytest.mark.parametrize("seed", range(12))
def test_the_peers_make_our_view(seed: int, monkeypatch: pytest.MonkeyPatch):
    from benchmarks.torch_input import TrainTransform

    pixels = np.random.default_rng(seed).integers(0, 256, (40, 30, 3), np.uint8)
    image = Image.fromarray(pixels).resize((120, 90) if seed % 2 else (90, 130), Image.Resampling.BICUBIC)
    ours = normalize_pixels(augment_plip(image, 56, Draws(seed)), Preprocessing())  # type: ignore[arg-type]  # scripted
    transform, draws = TrainTransform(56), Draws(seed)

    class Empty:
        def uniform_(self, low: float, high: float):
            return torch.tensor([draws.uniform(low, high)], dtype=torch.float64)

    monkeypatch.setattr(torch, "rand", lambda count: torch.tensor([draws.random()]))
    monkeypatch.setattr(
        torch, "randint", lambda low, high, size: torch.tensor([draws.integers(low, high - 1, None, True)])
    )
    monkeypatch.setattr(torch, "empty", lambda count: Empty())
    theirs = transform(image).permute(1, 2, 0).numpy()
    # They solve for the perspective in float32: a place on the border of two levels or of the fill may fall otherwise.
    assert (np.abs(theirs - ours) > 1e-5).any(-1).mean() < 0.02


def _burn(seconds: float, done) -> None:
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass
    done.set()
    time.sleep(60)


def test_the_cpu_time_of_living_workers_counts():
    context = multiprocessing.get_context("spawn")
    done = context.Event()
    before = cpu_seconds()
    worker = context.Process(target=_burn, args=(0.5, done), daemon=True)
    worker.start()
    assert done.wait(60)
    assert cpu_seconds() - before >= 0.45  # the kernel counts in hundredths
    worker.kill()
    worker.join()


def test_a_row_is_the_median_of_its_runs_and_a_multiple_of_the_dataloaders():
    def run(cpu: float) -> dict[str, float]:
        return {"images": 100, "wall_s": 2.0, "cpu_s": cpu}

    rows = summarize(
        {"PyTorch DataLoader, files": [run(1.0), run(2.0), run(4.0)], "ours": [run(1.0), run(0.5), run(0.4)]}
    )
    assert rows[0] == {
        "contender": "PyTorch DataLoader, files",
        "images_per_cpu_s": 50.0,
        "images_per_s": 50.0,
        "ratio": 1.0,
    }
    assert (rows[1]["images_per_cpu_s"], rows[1]["ratio"]) == (200.0, 4.0)


@pytest.mark.slow  # 6,000 records and seven processes: half a minute on two cores
def test_the_command_runs(tmp_path):
    out = tmp_path / "result.json"
    arguments = ["--size", "96x64", "--count", "4", "--measured", "32", "--batch", "8", "--rounds", "1", "--cores", "2"]
    # A process of its own: PyTorch's workers are forked, which a process with jax's threads must not be.
    command = [sys.executable, "-m", "benchmarks.input_pipeline", *arguments, "--out", str(out)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert [row["contender"] for row in result["results"]] == list(input_pipeline.contenders(2))
    assert all(row["images_per_cpu_s"] > 0 and row["images_per_s"] > 0 for row in result["results"])
    assert result["machine"]["versions"]["pillow"]
    assert "PyTorch DataLoader, files" in done.stdout
