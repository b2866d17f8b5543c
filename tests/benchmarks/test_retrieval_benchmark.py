"""The benchmark of retrieval ranks, at a size that takes seconds."""

import json

import numpy as np

from benchmarks import retrieval


def test_the_benchmark_writes_what_it_prints_and_checks_that_ranks_agree(tmp_path, capsys):
    out = tmp_path / "retrieval.json"
    assert retrieval.main(["--n", "0", "--common-n", "300", "--dim", "32", "--repeats", "1", "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    reference, ours = written["results"]
    assert (reference["program"], ours["program"], ours["n"]) == ("numpy", "ours", 300)
    assert written["summary"]["equal_ranks"]
    assert ours["ranks_sha256"] == reference["ranks_sha256"]
    assert 1 < ours["median_rank"] < 150  # neither trivial nor chance
    assert str(out) in capsys.readouterr().out


def test_the_reference_ranks_ties_against_the_right_answer():
    candidates = np.array([[1, 0], [1, 0], [0, 1], [2, 0]], np.float32)
    queries = np.array([[1, 0], [1, 0], [1, 1], [1, 0]], np.float32)
    np.testing.assert_array_equal(retrieval.argsort_ranks(queries, candidates), [3, 3, 4, 1])


def test_products_of_the_features_are_exact_in_float32():
    texts, images = retrieval.draw_features(200, 512)
    assert np.abs(texts).max() * np.abs(images).max() * 512 < 2**24
    np.testing.assert_array_equal(texts @ images.T, texts.astype(np.int64) @ images.astype(np.int64).T)
