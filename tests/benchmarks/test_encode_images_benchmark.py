"""The comparison is a fair one: the peer sees the same pixels in the same order, and ratios are to its best."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import torch_encode
from benchmarks.encode_images import memory_samples, row_difference, summarise, table

TORCH = "the peer is a PyTorch program"


def _run(images_per_s: float) -> dict[str, float | str]:
    return {"images_per_s": images_per_s, "towers_per_s": 80.0, "peak_mib": 100.0, "device": "cpu"}


def test_ratios_are_of_medians_and_to_the_faster_way_of_loading() -> None:
    rows = summarise(
        {
            "ours-bfloat16": [_run(60.0), _run(10.0), _run(64.0)],
            "hf-float32-workers": [_run(15.0)],
            "hf-float32-threads": [_run(12.0)],
            "hf-bfloat16-threads": [_run(40.0)],
        }
    )
    assert rows[0]["images_per_s"] == 60.0
    assert rows[0]["images_per_s_all"] == [60.0, 10.0, 64.0]
    assert rows[0]["of_towers"] == 0.75
    assert rows[0]["ratios"] == {"hf-float32": 4.0, "hf-bfloat16": 1.5}
    assert rows[2]["ratios"]["hf-float32"] == 0.8


def test_the_table_has_a_line_for_each_contender() -> None:
    run = {**_run(20.0), "cpu_ms": 50.0, "decoded_per_s": 400.0}
    run |= {"mib_first_quarter": 80.0, "mib_last_quarter": 90.0}
    head, ours, peer = table(summarise({"ours-float32": [run], "hf-float32-threads": [run]})).splitlines()
    assert head.split("  ")[-1].strip() == "x hf-float32"
    assert ours.split() == ["ours-float32", "20.0", "50.0", "80.0", "400.0", "25%", "80", "90", "100", "1.00"]
    assert peer.startswith("hf-float32-threads")


def test_the_difference_is_of_directions(tmp_path: Path) -> None:
    np.save(tmp_path / "hf-float32-workers.npy", np.array([[3, 4], [1, 0]], np.float32))
    np.save(tmp_path / "ours-float32.npy", np.array([[6, 8], [0.6, 0.8]], np.float32))
    assert row_difference(tmp_path, "ours-float32") == pytest.approx(0.8)


def test_memory_is_what_is_held_now_and_not_the_peak_before() -> None:
    np.ones(2**25)  # 256 MiB, given back
    with memory_samples() as samples:
        held = np.ones(2**24)  # 128 MiB
        time.sleep(0.1)
        del held
    assert len(samples) >= 2
    assert max(samples) - samples[-1] > 100
    if sys.platform == "linux":
        assert samples[-1] < resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - 200


def test_the_peers_threads_keep_every_image_in_order(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason=TORCH)
    paths = [str(tmp_path / f"{level:02d}.png") for level in range(11)]
    for level, path in enumerate(paths):
        Image.new("L", (2, 2), level).save(path)

    def processor(images: list[Image.Image], return_tensors: str) -> dict[str, object]:
        assert return_tensors == "pt"
        return {"pixel_values": torch.from_numpy(np.stack([np.asarray(image)[0, 0] for image in images]))}

    batches = list(torch_encode.by_threads(torch_encode.Batches(processor, paths, 4), 2))
    assert [len(batch) for batch in batches] == [4, 4, 3]
    assert torch.cat(batches).tolist() == [[level] * 3 for level in range(11)]


@pytest.mark.slow  # three processes of jax or torch, one of them with forked workers
def test_the_command_runs_and_both_sides_agree(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason=TORCH)
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks.encode_images", "--smoke", "--out", str(out)]
    command += ["--contenders", "ours-float32", "hf-float32-workers"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["settings"]["images"]["count"] == 32
    assert [row["contender"] for row in report["results"]] == ["ours-float32", "hf-float32-workers"]
    # 1e-5: the same float32 network on the same pixels, in another order of the sums.
    assert report["feature_differences"]["ours-float32"] < 1e-5
