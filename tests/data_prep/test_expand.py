"""What the search for neighbours writes, and above all what it does not."""

import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from data_prep.expand import ExpandError, expand, main, read_queries

# Ten directions; row r of the table lies along direction r.
DIRECTIONS = np.eye(10, dtype=np.float32)


def write_world(folder: Path, scores: list[float | None] | None) -> Path:
    """Embeddings and a table in two files, and a work folder with three queries."""
    (folder / "embeddings").mkdir(parents=True)
    (folder / "table").mkdir()
    (folder / "work" / "vectors").mkdir(parents=True)
    for number, part in enumerate((slice(0, 4), slice(4, 10))):
        np.save(folder / "embeddings" / f"img_emb_{number}.npy", DIRECTIONS[part].astype(np.float16))
        columns = {"URL": [f"http://secret/{row}" for row in range(10)][part]}
        if scores is not None:
            columns["PUNSAFE"] = pyarrow.array(scores[part], pyarrow.float32())
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / "table" / f"metadata_{number}.parquet")
    queries = DIRECTIONS[[1, 5, 8]] + 0.1 * DIRECTIONS[[2, 6, 9]]
    write_queries(folder / "work" / "vectors" / "gate", ["d1", "d0", "d2"], queries)
    return folder


def write_queries(path: Path, names: list[str], rows: np.ndarray, fingerprint: str = "f") -> None:
    np.save(path.with_suffix(".npy"), rows)
    path.with_suffix(".json").write_text(json.dumps({"model": "m", "fingerprint": fingerprint, "digests": names}))


def run(world: Path, out: str = "neighbours.parquet", **options) -> dict:
    options = {"neighbours": 2, "threshold": 0.05, **options}
    return expand(world / "work", world / "embeddings", world / "table", world / out, **options)


def test_found_rows_are_written_once_with_their_query_and_settings(tmp_path):
    world = write_world(tmp_path, [0.1] * 10)
    write_queries(world / "work" / "vectors" / "more", ["d3"], DIRECTIONS[[1]])  # nearer to row 1 than d1 is
    report = run(world)
    table = pyarrow.parquet.read_table(world / "neighbours.parquet").to_pydict()
    assert list(table) == ["row", "similarity", "query", "neighbours", "threshold"]
    assert table["row"] == [1, 2, 5, 6, 8, 9]
    assert table["query"] == ["d3", "d1", "d0", "d0", "d2", "d2"]
    assert table["neighbours"] == [2] * 6
    assert table["threshold"] == [0.05] * 6
    near, far = 1 / np.hypot(1, 0.1), 0.1 / np.hypot(1, 0.1)
    # float32 of the cosines
    assert table["similarity"] == pytest.approx([1, far, near, far, near, far], abs=1e-6)
    assert json.loads((world / "neighbours.json").read_text()) == report
    assert {key: report[key] for key in ("neighbours", "threshold", "queries", "model", "embedding_rows")} == {
        "neighbours": 2, "threshold": 0.05, "queries": 4, "model": "m", "embedding_rows": 10,
    }  # fmt: skip
    assert (report["found"], report["unsafe"], report["written"]) == (6, 0, 6)


def test_an_unsafe_hit_is_never_written(tmp_path):
    scores = [0.0, 0.5, 0.4999, 0.0, 0.0, None, float("nan"), 0.0, 1.5, -0.1]
    report = run(write_world(tmp_path, scores))
    assert pyarrow.parquet.read_table(tmp_path / "neighbours.parquet")["row"].to_pylist() == [2]
    assert (report["found"], report["unsafe"], report["written"]) == (6, 5, 1)


def test_a_table_without_scores_is_refused_unless_its_release_was_cleaned(tmp_path):
    world = write_world(tmp_path, None)
    with pytest.raises(ExpandError, match=r"may lead to illegal images.*--cleaned-release"):
        run(world)
    assert not (world / "neighbours.parquet").exists()
    assert run(world, cleaned_release=True)["written"] == 6


def test_a_score_counts_in_a_cleaned_release_too(tmp_path):
    assert run(write_world(tmp_path, [0.9] * 10), cleaned_release=True)["written"] == 0


def test_one_file_without_scores_is_enough_to_refuse(tmp_path):
    world = write_world(tmp_path, [0.1] * 10)
    pyarrow.parquet.write_table(pyarrow.table({"URL": ["x"] * 6}), world / "table" / "metadata_1.parquet")
    with pytest.raises(ExpandError, match=r"metadata_1\.parquet has no score"):
        run(world)


def test_equal_input_gives_equal_bytes(tmp_path):
    worlds = [write_world(tmp_path / name, [0.1] * 10) for name in "ab"]
    vectors = worlds[1] / "work" / "vectors"
    rows = np.load(vectors / "gate.npy")
    write_queries(vectors / "gate", ["d2", "d1"], rows[[2, 0]])
    write_queries(vectors / "another", ["d0"], rows[[1]])  # the same queries, spread over two files
    for world in worlds:
        run(world)
    for name in ("neighbours.parquet", "neighbours.json"):
        assert (worlds[0] / name).read_bytes() == (worlds[1] / name).read_bytes()


def test_a_table_of_other_rows_is_refused(tmp_path):
    world = write_world(tmp_path, [0.1] * 10)
    file = world / "table" / "metadata_1.parquet"
    table = pyarrow.parquet.read_table(file)
    pyarrow.parquet.write_table(table.slice(1), file)
    with pytest.raises(ExpandError, match=r"metadata_1.parquet has 5 rows and img_emb_1.npy, at its place, 6"):
        run(world)
    pyarrow.parquet.write_table(table, world / "table" / "metadata_2.parquet")
    with pytest.raises(ExpandError, match="the table has 15 rows and the embeddings 10"):
        run(world)
    (world / "table" / "a.csv").write_text("URL\n")
    with pytest.raises(ExpandError, match="parquet files alone"):
        run(world)


def test_scores_that_are_no_numbers_are_refused(tmp_path):
    world = write_world(tmp_path, [0.1] * 10)
    for name, count in (("metadata_0", 4), ("metadata_1", 6)):
        pyarrow.parquet.write_table(pyarrow.table({"punsafe": ["low"] * count}), world / "table" / f"{name}.parquet")
    with pytest.raises(ExpandError, match="expected numbers in 'punsafe'"):
        run(world)


def test_queries_of_two_models_or_without_names_are_refused(tmp_path):
    vectors = write_world(tmp_path, [0.1] * 10) / "work" / "vectors"
    write_queries(vectors / "other", ["d9"], DIRECTIONS[[1]], fingerprint="another")
    with pytest.raises(ExpandError, match="embeddings of one model"):
        read_queries(vectors)
    write_queries(vectors / "other", ["d9", "d8"], DIRECTIONS[[1]])
    with pytest.raises(ExpandError, match=r"other\.npy.*names of the rows"):
        read_queries(vectors)
    (vectors / "other.json").unlink()
    with pytest.raises(ExpandError, match=r"other\.npy.*names of the rows"):
        read_queries(vectors)
    with pytest.raises(ExpandError, match="found none"):
        read_queries(tmp_path / "table")


def test_the_program_says_what_it_did_and_what_it_cannot(tmp_path, capsys):
    world = write_world(tmp_path, [0.1] * 9 + [0.9])
    paths = [str(one) for name in ("work", "embeddings", "table") for one in (f"--{name}", world / name)]
    paths[0] = "--queries"
    options = ["--neighbours", "2", "--threshold", "0.05"]
    assert main([*paths, *options, "--out", str(world / "found.parquet")]) == 0
    assert "6 rows found among 10, 1 left out as unsafe, 5 written" in capsys.readouterr().out
    assert main([*paths, "--out", str(world / "table" / "found.parquet")]) == 1
    said = capsys.readouterr().err
    assert "outside of the table's folder" in said
