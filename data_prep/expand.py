"""Find the nearest neighbours of the collected images in a folder of embeddings, such as LAION's.

    python -m data_prep.expand --queries WORK --embeddings DIR --table DIR --out neighbours.parquet

The table (parquet files) describes the rows of the embeddings, in the same order: that of the names of the files. What
is found is written by its row number; the source "laion" then takes those rows of the table with ``rows_file``, and
they pass the same gates as every other image. Embeddings and queries must be of one model: LAION's are CLIP ViT-L/14's.

Only tables with a score of being unsafe are searched, or a release that was cleaned as a whole (``--cleaned-release``,
Re-LAION-5B research-safe): LAION-5B as first released led to illegal images. Neighbours whose score is at or above
``--max-unsafe``, or is not known, are counted and never written.
"""

if __name__ == "__main__":  # before the imports that would fail
    from data_prep.extras import need_data

    need_data("data_prep.expand", "pyarrow")

import argparse
import io
import json
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from data_prep.curation.rows import write_atomically
from data_prep.images.neighbours import BACKENDS, NeighbourError, Neighbours, find_neighbours, open_shards

VECTORS = "vectors"
"""Folder of the work folder with the embeddings of its images."""

_VERSIONED = ("numpy", "pyarrow")


class ExpandError(ValueError):
    """Nothing can be found, or nothing may be; the message says why and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.expand", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--queries", required=True, type=Path, help="work folder, or its folder `vectors`")
    parser.add_argument("--embeddings", required=True, type=Path, help="folder of .npy files, float16 or float32")
    parser.add_argument("--table", required=True, type=Path, help="folder of parquet files about the same rows")
    parser.add_argument("--out", required=True, type=Path, help="parquet file to write; settings beside it as .json")
    parser.add_argument("--neighbours", type=int, default=10, metavar="K", help="of each image (default: 10, ours)")
    parser.add_argument("--threshold", type=float, default=0.8, help="least cosine (default: 0.8, ours)")
    parser.add_argument("--safety-column", default="punsafe", help="0-1, in any case (default: punsafe)")
    parser.add_argument("--max-unsafe", type=float, default=0.5, help="scores from here on are left out (default: 0.5)")
    parser.add_argument("--cleaned-release", action="store_true", help="the table is of a cleaned release")
    parser.add_argument("--backend", choices=sorted(BACKENDS), default="numpy")
    options = parser.parse_args(arguments)
    try:
        report = expand(
            options.queries,
            options.embeddings,
            options.table,
            options.out,
            neighbours=options.neighbours,
            threshold=options.threshold,
            safety_column=options.safety_column,
            max_unsafe=options.max_unsafe,
            cleaned_release=options.cleaned_release,
            backend=options.backend,
        )
    except (ExpandError, NeighbourError, OSError) as error:
        print(f"data_prep.expand: {error}", file=sys.stderr)
        return 1
    print(
        f"{report['found']:,} rows found among {report['embedding_rows']:,}, {report['unsafe']:,} left out as unsafe, "
        f"{report['written']:,} written to {options.out}"
    )
    return 0


def expand(
    queries: Path,
    embeddings: Path,
    table: Path,
    out: Path,
    *,
    neighbours: int,
    threshold: float,
    safety_column: str = "punsafe",
    max_unsafe: float = 0.5,
    cleaned_release: bool = False,
    backend: str = "numpy",
) -> dict[str, Any]:
    """Write the table of neighbours: `row`, `similarity`, `query`, `neighbours`, `threshold`; and a report beside it.

    Args:
        queries: A work folder or its folder of vectors.
        embeddings: Folder of embeddings.
        table: Folder of parquet files about the same rows.
        out: File to write.
        neighbours: K, of each query.
        threshold: The least cosine.
        safety_column: Of the score of being unsafe, in any case.
        max_unsafe: Neighbours that score this or more are not written.
        cleaned_release: The table may lack the score.
        backend: One of `data_prep.images.neighbours.BACKENDS`.

    Returns:
        The report, as it is written beside `out` with the suffix `.json`.

    Raises:
        ExpandError: The table may not be used, or is not about these embeddings; queries without names.
        NeighbourError: See `find_neighbours`.
    """
    if out.suffix != ".parquet" or out.resolve().is_relative_to(table.resolve()):
        raise ExpandError(f"--out {out}: expected a file NAME.parquet outside of the table's folder")
    files = _table_files(table)
    columns = [_find_safety(file, safety_column, cleaned_release) for file in files]
    shards = open_shards(embeddings)
    counts = [pyarrow.parquet.read_metadata(file).num_rows for file in files]
    _check_same_rows(files, counts, shards.files, shards.counts)
    names, features, model = read_queries(queries)
    found = find_neighbours(features, shards, neighbours, threshold, backend)
    safe = _which_are_safe(found.rows, files, counts, columns, max_unsafe)
    _write_table(out, found, names, safe, neighbours, threshold)
    report = {
        "neighbours": neighbours,
        "threshold": threshold,
        "backend": backend,
        "max_unsafe": max_unsafe,
        "safety_column": safety_column if any(columns) else None,
        "cleaned_release": cleaned_release,
        "queries": len(names),
        **model,
        "dim": shards.dim,
        "embedding_files": len(shards.files),
        "embedding_rows": sum(shards.counts),
        "rows_without_direction": found.rows_without_direction,
        "found": len(found.rows),
        "unsafe": int((~safe).sum()),
        "written": int(safe.sum()),
        "versions": {name: metadata.version(name) for name in _VERSIONED},
    }
    write_atomically(out.with_suffix(".json"), (json.dumps(report, indent=2) + "\n").encode())
    return report


def read_queries(folder: Path) -> tuple[list[str], np.ndarray, dict[str, str]]:
    """Read the embeddings of the collected images: pairs of files `NAME.npy` [N, D] and `NAME.json`.

    The JSON has a row's name at its place in `digests` (what the gates write) or `ids`, and says of which model the
    embeddings are in `model` and `fingerprint`.

    Returns:
        Names, rising; features float32 [Q, D]; `model` and `fingerprint`, where they are said.

    Raises:
        ExpandError: No such files, names that are not those of the rows, or embeddings of two models.
    """
    folder = folder / VECTORS if (folder / VECTORS).is_dir() else folder
    rows: dict[str, np.ndarray] = {}
    models: list[dict[str, str]] = []
    for file in sorted(folder.glob("*.npy")):
        try:
            about = json.loads(file.with_suffix(".json").read_bytes())
            names = about.get("digests", about.get("ids"))
            features = np.load(file, allow_pickle=False)
            if not isinstance(names, list) or features.ndim != 2 or len(names) != len(features):
                raise ValueError("a name a row")
        except (OSError, ValueError, AttributeError, EOFError) as error:
            raise ExpandError(
                f"{file}: expected rows [N, D], and beside it a .json with the names of the rows in 'digests' or "
                f"'ids' ({type(error).__name__})"
            ) from error
        if len(features):
            models.append({key: str(about[key]) for key in ("model", "fingerprint") if key in about})
        rows.update(zip(map(str, names), features, strict=True))
    if not rows:
        raise ExpandError(f"{folder}: expected the embeddings of the collected images as .npy files, found none")
    if any(model != models[0] for model in models) or len({len(row) for row in rows.values()}) > 1:
        raise ExpandError(f"{folder}: expected embeddings of one model, that of --embeddings; pass a folder of those")
    ordered = sorted(rows)
    return ordered, np.stack([rows[name] for name in ordered]).astype(np.float32), models[0]


def _table_files(table: Path) -> list[Path]:
    """The parquet files, in the order of the source "laion": that of their paths in the folder."""
    files = [path for path in table.rglob("*.parquet") if path.is_file()]
    if not files:
        raise ExpandError(f"--table {table}: expected a folder of parquet files, found none")
    if others := [path for path in table.rglob("*") if path.suffix.lower() in (".csv", ".tsv")]:
        raise ExpandError(f"--table {table}: expected parquet files alone, the row numbers would run over {others[0]}")
    return sorted(files, key=lambda path: path.relative_to(table).as_posix())


def _find_safety(file: Path, column: str, cleaned_release: bool) -> str:
    """The column's name as the file spells it; empty where it has none and may lack it."""
    try:
        names = pyarrow.parquet.read_schema(file).names
    except (OSError, pyarrow.ArrowException) as error:
        raise ExpandError(f"{file} is not a whole parquet file ({type(error).__name__}): fetch it again") from error
    found = next((name for name in names if name.lower() == column.lower()), "")
    if not found and not cleaned_release:
        raise ExpandError(
            f"{file} has no score of being unsafe (looked for {column!r}) and may lead to illegal images: it is not "
            "searched. Name the column with --safety-column, or take a release that was cleaned (Re-LAION-5B "
            "research-safe) and say so with --cleaned-release."
        )
    return found


def _check_same_rows(files: Sequence[Path], counts: Sequence[int], shards: Sequence[Path], rows: Sequence[int]) -> None:
    if len(files) == len(shards):
        for file, count, shard, number in zip(files, counts, shards, rows, strict=True):
            if count != number:
                raise ExpandError(
                    f"{file.name} has {count} rows and {shard.name}, at its place, {number}: not of one table"
                )
    elif sum(counts) != sum(rows):
        raise ExpandError(f"the table has {sum(counts)} rows and the embeddings {sum(rows)}: not of one table")


def _which_are_safe(
    rows: np.ndarray, files: Sequence[Path], counts: Sequence[int], columns: Sequence[str], max_unsafe: float
) -> np.ndarray:
    """Which of the rows (rising) score below the limit; a score that is none is above it."""
    safe = np.ones(len(rows), bool)
    first = 0
    for file, count, column in zip(files, counts, columns, strict=True):
        inside = slice(*np.searchsorted(rows, [first, first + count]))
        if column and inside.start < inside.stop:
            try:
                scores = pyarrow.parquet.read_table(file, columns=[column])[column].cast(pyarrow.float64()).to_numpy()
            except pyarrow.ArrowException as error:
                raise ExpandError(f"{file}: expected numbers in {column!r} ({type(error).__name__})") from error
            scores = scores[rows[inside] - first]
            safe[inside] = (scores >= 0) & (scores <= 1) & (scores < max_unsafe)  # NaN is in no range
        first += count
    return safe


def _write_table(
    out: Path, found: Neighbours, names: Sequence[str], safe: np.ndarray, neighbours: int, threshold: float
) -> None:
    queries = [names[query] for query in found.queries[safe].tolist()]
    columns = {
        "row": pyarrow.array(found.rows[safe], pyarrow.int64()),
        "similarity": pyarrow.array(found.similarities[safe], pyarrow.float32()),
        "query": pyarrow.array(queries, pyarrow.string()),
        "neighbours": pyarrow.array(np.full(len(queries), neighbours), pyarrow.int32()),
        "threshold": pyarrow.array(np.full(len(queries), threshold), pyarrow.float64()),
    }
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    write_atomically(out, buffer.getvalue())


if __name__ == "__main__":
    sys.exit(main())
