"""The benchmark of the losses' memory, and the bound that the issue of 65,536 pairs is about."""

import json
import math

import pytest

from benchmarks import loss_memory


def test_the_benchmark_writes_what_it_prints(tmp_path, capsys):
    out = tmp_path / "loss_memory.json"
    arguments = ["--losses", "contrastive", "contrastive_ring", "--batches", "64", "--dim", "8", "--chunk-size", "8"]
    assert loss_memory.main([*arguments, "--devices", "2", "--repeats", "1", "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    dense, ring = written["results"]
    assert (dense["loss"], ring["loss"], ring["batch"], ring["devices"]) == ("contrastive", "contrastive_ring", 64, 2)
    assert ring["value"] == pytest.approx(dense["value"], rel=1e-5)  # the project's bound
    assert all(result["peak_gib"] >= result["start_gib"] > 0 and result["seconds"] > 0 for result in (dense, ring))
    assert written["machine"]["device_count"] == 2
    printed = capsys.readouterr().out
    assert f"{ring['peak_gib']:.3f}" in printed
    assert str(out) in printed


@pytest.mark.slow
@pytest.mark.timeout(1800)  # 200 seconds of one core's work: 550 where a dozen other processes wanted the two cores
def test_65536_pairs_on_eight_devices_stay_under_two_gib():
    result = loss_memory.measure_apart("contrastive_ring", 65536, dim=512, chunk_size=1024, repeats=0, devices=8)
    print(f"{result['seconds']:.0f} s, {result['peak_gib']:.2f} GiB resident at most")
    assert result["devices"] == 8
    # The features and their gradients are 0.5 GiB of it; the dense logits alone would be 16.
    assert result["peak_gib"] < 2
    # Cosines of random features are normal with variance 1 / 512, so the logarithm of the mean exponential is half the
    # logits' variance; 0.01 is over twice the spread of the mean of 65,536 own logits of standard deviation 0.63.
    assert result["value"] == pytest.approx(math.log(65536) + (1 / 0.07) ** 2 / 512 / 2, abs=0.01)
