"""`decisions.parquet`: where every post and every pair ended and why, one row each.

What a row says about people: ids, keyed hashes of authors, and hashes of captions. The text of a post, a caption, an
address or a name never enters. Rows stand in the order of source and id, and equal rows make equal bytes.
"""

import contextlib
import dataclasses
import hashlib
import json
import operator
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.curation.pair import Decision
from data_prep.reports.sorted_lines import RUN_LINES, keyed_line, sorted_lines, values_of

DECISIONS_NAME = "decisions.parquet"
FORMAT_VERSION = 1
"""Of `decisions.parquet`, in its metadata: changes when a reader of the older layout would misread the newer one."""
_ROWS_PER_GROUP = 50_000
_VERSIONS = b"plip_jax.versions"


class DecisionsError(ValueError):
    """A file of decisions cannot be read; the message says which and why."""


@dataclasses.dataclass(frozen=True)
class DecisionRow:
    """One row of the file. Hashes are hexadecimal; texts are empty and numbers 0 where a stage was not reached.

    Attributes:
        source: What the funnel counts by.
        id: Of the pair, the post, or the place of what could not be read.
        unit: "post" or "pair".
        post_id: Of the post whose text it is.
        image_post_id: Of the post whose image it is.
        stage: Where it ended; "kept" where it is in the dataset.
        reason: One of a few words; empty where it is kept.
        detail: What was found; never text of a post.
        author: Keyed hash.
        split: Of a kept pair.
        group_id: What no split cuts.
        duplicate_group: The least id of the pairs whose images are copies of each other.
        digest: sha256 of the image as fetched.
        clean_digest: sha256 of the image as stored.
        phash: 64-bit perceptual hash.
        width: Pixels.
        height: Pixels.
        licence: "unknown" where the source says that nobody knows.
        caption_sha256: Of the cleaned caption.
        scores: Of the gates, a JSON object.
        text_notes: What cleaning found, a JSON object.
    """

    source: str
    id: str
    unit: str
    post_id: str
    image_post_id: str
    stage: str
    reason: str
    detail: str
    author: str
    split: str
    group_id: str
    duplicate_group: str
    digest: str
    clean_digest: str
    phash: str
    width: int
    height: int
    licence: str
    caption_sha256: str
    scores: str
    text_notes: str


_SCHEMA = pa.schema(
    [
        pa.field(field.name, pa.int32() if field.type is int else pa.string(), nullable=False)
        for field in dataclasses.fields(DecisionRow)
    ]
)


_VALUES_OF = operator.attrgetter(*_SCHEMA.names)


def decision_row(decision: Decision) -> DecisionRow:
    """Return what the file says about a decision: its pair without texts, addresses and names."""
    row = DecisionRow(
        source=decision.source,
        id=decision.id,
        unit=decision.unit,
        post_id=decision.post_id,
        image_post_id="",
        stage=decision.stage,
        reason=decision.reason,
        detail=decision.detail,
        author=decision.author,
        split="",
        group_id="",
        duplicate_group="",
        digest="",
        clean_digest="",
        phash="",
        width=0,
        height=0,
        licence="",
        caption_sha256="",
        scores="{}",
        text_notes="{}",
    )
    pair = decision.pair
    if pair is None:
        return row
    return dataclasses.replace(
        row,
        post_id=pair.post_id,
        image_post_id=pair.image_post_id,
        author=pair.author,
        split=pair.split,
        group_id=pair.group_id,
        duplicate_group=pair.duplicate_group,
        digest=pair.digest,
        clean_digest=pair.clean_digest,
        phash=pair.phash,
        width=pair.width,
        height=pair.height,
        licence=pair.licence,
        caption_sha256=hashlib.sha256(pair.caption.encode(errors="surrogatepass")).hexdigest() if pair.caption else "",
        scores=json.dumps(pair.scores, sort_keys=True),
        text_notes=json.dumps(pair.text_notes, sort_keys=True),
    )


def write_decisions(
    rows: Iterable[Decision], path: Path, *, versions: Mapping[str, Any], run_rows: int = RUN_LINES
) -> int:
    """Write the file whole or not at all and return its number of rows; equal decisions give equal bytes.

    Args:
        rows: In any order; more than memory holds may come.
        path: Replaced where it is there. Temporary files are made beside it.
        versions: Of settings and code, for the file's metadata: JSON values without times.
        run_rows: How many are held in memory at once.
    """
    described = {_VERSIONS: json.dumps(versions, sort_keys=True), b"plip_jax.format_version": str(FORMAT_VERSION)}
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (keyed_line((row.source, row.id), _VALUES_OF(decision_row(row))) for row in rows)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
    count = 0
    try:
        with (
            contextlib.closing(sorted_lines(lines, path.parent, run_lines=run_rows)) as ordered,
            pq.ParquetWriter(temporary, _SCHEMA.with_metadata(described), compression="zstd") as writer,
        ):
            for batch in _batches(ordered):
                writer.write_table(_table(batch), row_group_size=_ROWS_PER_GROUP)
                count += len(batch)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def read_decisions(path: Path) -> Iterator[DecisionRow]:
    """Read the rows of the file, a group at a time.

    Raises:
        DecisionsError: No such file, or another program's.
    """
    with _open(path) as file:
        for batch in file.iter_batches():
            for values in batch.to_pylist():
                yield DecisionRow(**values)


def read_versions(path: Path) -> dict[str, Any]:
    """Return the versions of settings and code that the file was written with.

    Raises:
        DecisionsError: No such file, or another program's.
    """
    with _open(path) as file:
        return json.loads(file.schema_arrow.metadata[_VERSIONS])


def _open(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DecisionsError(f"{path} cannot be read as decisions: {error}") from error
    if not file.schema_arrow.equals(_SCHEMA) or _VERSIONS not in (file.schema_arrow.metadata or {}):
        found = file.schema_arrow.names
        file.close()
        raise DecisionsError(f"{path} has the columns {found}, expected {_SCHEMA.names} of data_prep.reports.decisions")
    return file


def _batches(lines: Iterable[str]) -> Iterator[list[list[Any]]]:
    batch: list[list[Any]] = []
    for line in lines:
        batch.append(values_of(line))
        if len(batch) == _ROWS_PER_GROUP:
            yield batch
            batch = []
    if batch:
        yield batch


def _table(rows: list[list[Any]]) -> pa.Table:
    # A lone surrogate, which broken input holds, cannot be written as UTF-8.
    columns = [
        [value if isinstance(value, int) else value.encode(errors="replace").decode() for value in column]
        for column in zip(*rows, strict=True)
    ]
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)], _SCHEMA)
