"""Purges a work folder and the folders built from it of everything that has a tombstone.

Every step asks the tombstones alone what to remove, writes only the files that change, each whole or not at all, and
may be killed anywhere and run again. Deleting a file does not wipe the disk, nor snapshots and backups of it.

Of each removed post that passed the source, and of each decision at the source, a decision stays in
`stages/source/dropped`: stage "source", reason "takedown", a salted hash for its id. So the funnel reads as if the post
had been refused at the door, which is what a later run with the tombstones does to it: what came in is unchanged, no
later stage has to count what it never saw, and the removed are still counted.
"""

import collections
import contextlib
import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.curation.pair import STAGES, Decision, Pair
from data_prep.curation.rows import encode_row, part_files, partition_of, read_part, write_atomically, write_part
from data_prep.removing.decision_table import purge_decision_table
from data_prep.removing.purge_records import remove_records, restore_folder
from data_prep.removing.purge_reports import files_beside_stages, remove_stale_reports, remove_temporary_files
from data_prep.removing.removal import TAKEDOWN, record_goes, redact_decision, redact_pair, redact_post
from data_prep.removing.run_facts import verdict_files
from data_prep.removing.takedown_search import Row, goes, stage_folders
from data_prep.removing.tombstones import Tombstones, seal
from data_prep.sources.post import Post

ForgetUrls = Callable[[Path, Sequence[str]], None]
"""Removes URLs from the database of the hydration, so that no byte of them stays in its file."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_PLANNED = ("duplicate", "split")
_PLAN_NOTE = "as planned: what was taken down since is still counted here"
_PART_NUMBER = re.compile(r"part-(\d+)")


def purge_work(work: Path, tombstones: Tombstones, *, forget_urls: ForgetUrls | None = None) -> int:
    """Purge a work folder; return how many files were changed or removed."""
    changed = remove_temporary_files(work)
    changed += purge_rows(work, tombstones)
    changed += _remove_named_files(work, tombstones)
    changed += _purge_hydration(work / "hydration.sqlite", tombstones, forget_urls or forget_in_sqlite)
    changed += sum(_purge_vectors(path, tombstones) for path in sorted((work / "vectors").glob("**/*.json")))
    changed += _purge_verdicts(work, tombstones)
    changed += sum(_purge_neighbours(path, tombstones) for path in sorted(work.glob("*.parquet")))
    for leftover in ("reports", "staged_shards"):  # of a build that was killed, which makes them again
        shutil.rmtree(work / leftover, ignore_errors=True)
    return changed + remove_stale_reports(work, tombstones)


def purge_out(out: Path, tombstones: Tombstones) -> int:
    """Purge a records folder with its reports; return how many files were changed or removed.

    Pages that show a removed pair are removed, and `decisions.parquet` is written without it: building the reports
    again is the caller's.

    Raises:
        RecordError: A shard or the manifest is damaged.
    """
    restore_folder(out)
    # Of data_prep.shards and data_prep.curated_shards, left by a build that was killed.
    names = [f".{out.name}.{what}{more}" for what in ("partial", "old", "changed") for more in ("", "-*")]
    for leftover in [path for name in names for path in out.parent.glob(name)]:
        shutil.rmtree(leftover)
    if not out.is_dir():
        return 0
    changed = remove_temporary_files(out)
    changed += remove_records(out, lambda record: record_goes(record, tombstones.has))
    changed += purge_decision_table(out, tombstones)
    return changed + remove_stale_reports(out, tombstones)


def purge_rows(work: Path, tombstones: Tombstones) -> int:
    """Take removed rows out of all stages, redact those that stay, and count the rows of the stages again.

    A stage that decides over all pairs at once and was killed is removed: a plan made anew from what is left would not
    go with its finished parts.
    """
    for stage in _PLANNED:
        if not (work / "stages" / stage / "DONE.json").exists():
            shutil.rmtree(work / "stages" / stage, ignore_errors=True)
    changed = _add_stand_ins(work / "stages" / "source", tombstones)
    for folder, kind in stage_folders(work):
        for path in part_files(folder):
            changed += _purge_part(path, kind, tombstones)
    changed += sum(_note_plan(work / "stages" / stage / "plan.json") for stage in _PLANNED)
    return changed + sum(_recount(work, stage) for stage in STAGES)


def _add_stand_ins(source: Path, tombstones: Tombstones) -> int:
    """Write the decisions that stand for what leaves the source stage, before it leaves."""
    parts = [*part_files(source / "kept"), *part_files(source / "dropped")]
    partitions = 1 + max((_number(path) for path in parts), default=0)
    new: dict[int, dict[str, Decision]] = collections.defaultdict(dict)
    for folder, kind in ((source / "kept", Post), (source / "dropped", Decision)):
        for path in part_files(folder):
            for row in read_part(path, kind):
                if goes(row, tombstones.has):
                    stone = stand_in(row, tombstones.salt)
                    new[partition_of(stone.id, partitions)][stone.id] = stone
    for number, stones in sorted(new.items()):
        path = source / "dropped" / f"part-{number:05d}.jsonl"
        old = list(read_part(path, Decision)) if path.exists() else []
        rows = {row.id for row in old}
        write_part(source / "dropped", number, [*old, *(row for name, row in stones.items() if name not in rows)])
    return len(new)


def stand_in(row: Post | Decision, salt: bytes) -> Decision:
    """Return what stays at the source of a removed row; a later run that is given the same row gets the same.

    Args:
        row: A post that passed the source, its author hashed, or a decision at the source.
        salt: Of the tombstones.
    """
    post_id = row.id if isinstance(row, Post) else row.post_id or row.id
    # The line tells rows of one id apart (versions of a post), so that as many decisions stay as rows went.
    name = f"{seal(salt, 'post', f'{row.source}:{post_id}')}-{seal(salt, 'row', encode_row(row))[:8]}"
    return Decision("post", f"{TAKEDOWN}:{name}", row.source, "source", TAKEDOWN)


def _number(path: Path) -> int:
    found = _PART_NUMBER.match(path.name)
    return int(found.group(1)) if found else 0


def _purge_part(path: Path, kind: type[Row], tombstones: Tombstones) -> int:
    rows, changed = [], False
    for row in read_part(path, kind):
        if goes(row, tombstones.has):
            changed = True
            continue
        kept = _redacted(row, tombstones)
        changed |= kept != row
        rows.append(kept)
    if changed:
        write_part(path.parent, _number(path), rows)
    return int(changed)


def _redacted(row: Row, tombstones: Tombstones) -> Row:
    if isinstance(row, Post):
        return redact_post(row, tombstones.has, tombstones.pseudonym)
    if isinstance(row, Pair):
        return redact_pair(row, tombstones.has, tombstones.pseudonym)
    return redact_decision(row, tombstones.has, tombstones.pseudonym)


def _recount(work: Path, stage: str) -> int:
    """Set the counts of a stage's DONE.json to what is there: numbers, or numbers by source, of what it counted."""
    path = work / "stages" / stage / "DONE.json"
    if not path.exists():
        return 0
    content = json.loads(path.read_text(encoding="utf-8"))
    counts = content.get("counts")
    if not isinstance(counts, dict) or not counts.keys() & {"read", "kept", "dropped"}:
        return 0
    kept, dropped = (_count_sources(path.parent / name) for name in ("kept", "dropped"))
    read = _count_sources(work / "stages" / "source" / "kept") if stage == "thread" else kept + dropped
    there = {"read": read, "kept": kept, "dropped": dropped}
    new = {
        name: dict(sorted(there[name].items())) if isinstance(count, dict) else there[name].total()
        for name, count in counts.items()
        if name in there
    }
    if new.items() <= counts.items():
        return 0
    counts.update(new)
    write_atomically(path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
    return 1


def _note_plan(path: Path) -> int:
    """Say in the counts of a plan, which is about rows that are gone, that they are those of the plan."""
    if not path.exists() or "note" in (plan := json.loads(path.read_text(encoding="utf-8"))):
        return 0
    write_atomically(path, json.dumps({"note": _PLAN_NOTE, **plan}).encode())
    return 1


def _count_sources(folder: Path) -> collections.Counter[str]:
    lines = (line for path in part_files(folder) for line in path.read_bytes().splitlines())
    return collections.Counter(json.loads(line)["source"] for line in lines)


def _remove_named_files(work: Path, tombstones: Tombstones) -> int:
    """Remove the files of the store, the thumbnails and the vectors that are named by the digest of a removed image."""
    removed = 0
    for top in ("store", "thumbnails", "vectors"):
        for path in sorted((work / top).rglob("*")):
            digest = _DIGEST.match(path.name)
            if digest and path.is_file() and tombstones.has("image", digest.group()):
                path.unlink()
                removed += 1
                with contextlib.suppress(OSError):  # others are still in it
                    path.parent.rmdir()
    return removed


def _purge_hydration(path: Path, tombstones: Tombstones, forget_urls: ForgetUrls) -> int:
    if not path.exists():
        return 0
    with contextlib.closing(sqlite3.connect(path)) as database:
        columns = {row[1] for row in database.execute("PRAGMA table_info(urls)")}
        if "url" not in columns:  # killed before it had its table
            return 0
        digest = "digest" if "digest" in columns else "''"
        rows = database.execute(f"SELECT url, {digest} FROM urls")
        urls = [u for u, d in rows if tombstones.has("url", u) or tombstones.has("image", d or "")]
    if urls:
        forget_urls(path, urls)
    return int(bool(urls))


def forget_in_sqlite(path: Path, urls: Iterable[str]) -> None:
    """Remove URLs from the table `urls` of a SQLite file.

    The file is first packed, which drops stale copies in free pages, and the rows then overwritten with zeros as they
    are deleted: killed before the deletion the rows are found again, killed behind it nothing of them is left.
    """
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA secure_delete=ON")
        database.execute("PRAGMA journal_mode=DELETE")  # folds a write-ahead log, which would keep the rows, in
        database.execute("VACUUM")
        database.execute("BEGIN IMMEDIATE")
        database.executemany("DELETE FROM urls WHERE url = ?", ((url,) for url in urls))
        database.execute("COMMIT")


def _purge_vectors(path: Path, tombstones: Tombstones) -> int:
    """Take the rows of removed images out of a pair of `NAME.npy` and `NAME.json`, which names its rows in order.

    The array is replaced first: where it already has as many rows as will stay, only the names are left to write. A
    pair that does not fit together is removed: it is a cache, and nobody can say whose rows they are.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    names = content if isinstance(content, list) else content.get("digests") if isinstance(content, dict) else None
    array_path = path.with_suffix(".npy")
    if not isinstance(names, list) or not array_path.exists():
        return 0
    stays = [not any(tombstones.has(kind, str(name)) for kind in ("image", "pair")) for name in names]
    if all(stays):
        return 0
    array = np.load(array_path, mmap_mode="r", allow_pickle=False)
    if len(array) == len(names):
        temporary = array_path.with_name(f".{array_path.name}.0-00000000")
        with temporary.open("wb") as file:
            np.save(file, array[np.asarray(stays)], allow_pickle=False)
        temporary.replace(array_path)
    elif len(array) != sum(stays):
        array_path.unlink()
        path.unlink()
        return 1
    write_atomically(path, json.dumps(_select(content, stays)).encode())
    return 1


def _purge_neighbours(path: Path, tombstones: Tombstones) -> int:
    """Take what was found near removed images out of a table of `data_prep.expand`, which names them by digest."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    if "query" not in table.column_names:
        return 0
    stays = [not tombstones.has("image", str(query)) for query in table["query"].to_pylist()]
    if all(stays):
        return 0
    temporary = path.with_name(f".{path.name}.0-00000000")
    pq.write_table(table.filter(stays), temporary)
    temporary.replace(path)
    return 1


def _select(content: Any, stays: Sequence[bool]) -> Any:
    """Return a list of one entry a row, or an object of such lists, without the rows that go."""
    if isinstance(content, dict):
        return {name: _select(value, stays) if isinstance(value, list) else value for name, value in content.items()}
    fits = isinstance(content, list) and len(content) == len(stays)
    return [value for value, stay in zip(content, stays, strict=True) if stay] if fits else content


def _purge_verdicts(work: Path, tombstones: Tombstones) -> int:
    """Take the lines about removed pairs out of JSON lines files (verdicts) beside the stages.

    The run's own files of verdicts are purged whatever their names, but for those that lie elsewhere.
    """
    changed = 0
    inside = [path for path in verdict_files(work) if path.is_file() and _is_inside(path, work)]
    for path in dict.fromkeys([*files_beside_stages(work, (".jsonl",)), *inside]):
        lines = path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if not _line_goes(line, tombstones)]
        if len(kept) < len(lines):
            write_atomically(path, b"".join(kept))
            changed += 1
    return changed


def verdicts_elsewhere(work: Path, tombstones: Tombstones) -> dict[str, int | None]:
    """Return how many lines of the run's files of verdicts outside of the work folder are about removed pairs.

    They are somebody's work and not changed here; None stands for a file that is no longer there.
    """
    return {
        str(path): sum(_line_goes(line, tombstones) for line in path.read_bytes().splitlines())
        if path.is_file()
        else None
        for path in verdict_files(work)
        if not _is_inside(path, work)
    }


def _is_inside(path: Path, work: Path) -> bool:
    return path.resolve().is_relative_to(work.resolve())


def _line_goes(line: bytes, tombstones: Tombstones) -> bool:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    values = [str(value) for value in row.values() if isinstance(value, str | int)] if isinstance(row, dict) else []
    return any(
        tombstones.has("pair", value)
        or tombstones.has("post", value)
        or tombstones.has("url", value)
        or tombstones.has("image", value.removeprefix("sha256:"))
        for value in values
    )
