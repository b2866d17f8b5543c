"""Reads and purges `decisions.parquet`: what a dataset says of its pairs, also those that no stage knows any more."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.curation.pair import Decision, Pair
from data_prep.removing.removal import decision_goes, redact_decision
from data_prep.removing.tombstones import Tombstones

DECISIONS_NAME = "decisions.parquet"
_PAIR_COLUMNS = (
    *("id", "source", "post_id", "image_post_id", "author", "digest", "clean_digest", "phash"),
    *("duplicate_group", "group_id", "split"),
)


def read_decision_table(out: Path) -> Iterator[Decision]:
    """Yield what a records folder says of its posts and pairs; nothing where it has no such table."""
    import pyarrow.parquet as pq

    path = out / DECISIONS_NAME
    if path.exists():
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from map(_decision, batch.to_pylist())


def purge_decision_table(out: Path, tombstones: Tombstones) -> int:
    """Take the rows about removed posts and pairs out of the table of a folder; redact those that stay."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = out / DECISIONS_NAME
    if not path.exists():
        return 0
    table = pq.read_table(path)
    rows = table.to_pylist()
    kept = [_redact_values(row, tombstones) for row in rows if not decision_goes(_decision(row), tombstones.has)]
    if kept == rows:
        return 0
    temporary = path.with_name(f".{path.name}.0-00000000")
    pq.write_table(pa.Table.from_pylist(kept, schema=table.schema), temporary, compression="zstd")
    temporary.replace(path)
    return 1


def _decision(row: dict[str, Any]) -> Decision:
    """Return what a row was made from, as far as it says it: neither texts nor addresses."""
    said: dict[str, Any] = {name: row.get(name) or "" for name in _PAIR_COLUMNS}
    pair = Pair(media_key="", **said)
    about = (pair.id, pair.source, row.get("stage") or "", row.get("reason") or "", row.get("detail") or "")
    if row.get("unit") == "post":
        return Decision("post", *about, post_id=pair.post_id, author=pair.author)
    return Decision("pair", *about, pair)


def _redact_values(row: dict[str, Any], tombstones: Tombstones) -> dict[str, Any]:
    about = Decision("post", row.get("id") or "", row.get("source") or "", "", detail=row.get("detail") or "")
    redacted = dict(row)
    if about.detail:
        redacted["detail"] = redact_decision(about, tombstones.has, tombstones.pseudonym).detail
    group = row.get("duplicate_group") or ""
    if tombstones.has("pair", group):
        redacted["duplicate_group"] = tombstones.pseudonym("pair", group)
    return redacted
