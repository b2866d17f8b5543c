"""The benchmark of the linear probe: equal loss first, then seconds."""

import json

import numpy as np
import pytest

from benchmarks import linear_probe
from plip_jax.evaluation.linear_probe import objective


def test_the_benchmark_writes_what_it_prints(tmp_path, capsys):
    out = tmp_path / "linear_probe.json"
    arguments = ["--examples", "600", "--dim", "8", "--classes", "3", "--strengths", "10", "0.1", "--rounds", "1"]
    assert linear_probe.main([*arguments, "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    assert written["config"]["examples"] == 600
    assert "scikit-learn" in written["machine"]["versions"]
    one, sweep = written["results"]["one strength"], written["results"]["sweep"]
    assert set(one["contenders"]) == {"ours", "sklearn"}
    assert set(sweep["contenders"]) == {"ours", "sklearn", "sklearn_warm"}
    for result in (one, sweep):
        for found in result["contenders"].values():
            assert 0 <= min(found["excess"]) <= max(found["excess"]) <= 1e-5  # equal loss, as the issue defines it
            assert found["seconds"] > 0
    ours, theirs = (sweep["contenders"][name]["seconds"] for name in ("ours", "sklearn"))
    assert sweep["ratios"]["sklearn"] == pytest.approx(theirs / ours, rel=1e-12)  # float64 rounding
    printed = capsys.readouterr().out
    assert f"{sweep['ratios']['sklearn']:.1f}x" in printed
    assert str(out) in printed


def test_the_tolerance_is_the_loosest_that_reaches_the_loss():
    features, label_ids = linear_probe.draw_features(500, 6, 2, seed=1)
    given = {"float32": features, "float64": features.astype(np.float64)}

    def loss_of(tolerance: float, dtype: str) -> float:
        [probe] = linear_probe.fit_sklearn(given, label_ids, [10.0], [(tolerance, dtype)], warm=False)
        return objective(probe, features, label_ids)

    optimum = loss_of(1e-9, "float64")
    (tolerance, dtype), loss = linear_probe.loosest_stop(features, label_ids, 10.0, optimum, 1e-5)
    assert dtype == "float32"
    assert loss == loss_of(tolerance, dtype) <= optimum * (1 + 1e-5)
    looser = linear_probe.TOLERANCES[linear_probe.TOLERANCES.index(tolerance) - 1]
    assert loss_of(looser, dtype) > optimum * (1 + 1e-5)


def test_features_are_unit_vectors_around_an_offset():
    features, label_ids = linear_probe.draw_features(2000, 64, 5, seed=0)
    assert features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)  # float32
    assert set(label_ids) == set(range(5))
    assert features.mean(axis=0) @ features.mean(axis=0) > 0.5
    np.testing.assert_array_equal(features, linear_probe.draw_features(2000, 64, 5, seed=0)[0])
