"""Rows between the stages: dataclasses as JSON lines in part files, each written whole or not at all.

A row goes to the part that the hash of its id says, and a part is sorted by id: so the same rows give the same bytes,
whatever the order or the number of workers they came from.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

Row = TypeVar("Row")

PART_NAME = "part-{:05d}.jsonl"


def partition_of(key: str, partitions: int) -> int:
    """Return the part that a key belongs to: a function of the key and the number of parts alone."""
    data = key.encode("utf-8", "surrogatepass")  # broken input holds lone surrogates
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") % partitions


def encode_row(row: Any) -> str:
    """Return a dataclass as one line of JSON without its end; equal rows give equal lines.

    Lone surrogates, which broken input holds, are kept as escapes.
    """
    return json.dumps(dataclasses.asdict(row), ensure_ascii=True, separators=(",", ":"), sort_keys=True)


def decode_row(kind: type[Row], line: str) -> Row:
    """Return the row that `encode_row` wrote.

    Raises:
        ValueError: The line is not JSON, or has not the fields of the dataclass.
    """
    return _decode(kind, json.loads(line))


def _decode(kind: Any, values: dict[str, Any]) -> Any:
    makers = _makers(kind)
    if unknown := values.keys() - makers.keys():
        raise ValueError(f"{kind.__name__}: unknown fields {sorted(unknown)}; known are {sorted(makers)}")
    try:
        return kind(**{name: makers[name](value) for name, value in values.items()})
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {error}") from error


@functools.cache
def _makers(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: _maker(hints[field.name]) for field in dataclasses.fields(kind)}


def _maker(hint: Any) -> Any:
    """Return what makes a field of this type from its JSON value."""
    if isinstance(hint, types.UnionType):
        maker = _maker(next(part for part in typing.get_args(hint) if part is not type(None)))
        return lambda value: None if value is None else maker(value)
    if dataclasses.is_dataclass(hint):
        return functools.partial(_decode, hint)
    if typing.get_origin(hint) is tuple:
        inner = _maker(typing.get_args(hint)[0])
        return lambda value: tuple(inner(one) for one in value)
    return lambda value: value


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and rename it: a reader sees all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_part(folder: Path, part: int, rows: Iterable[Any]) -> Path:
    """Write a part of rows, sorted by id (and then by their lines), and return its file."""
    lines = sorted((row.id, encode_row(row)) for row in rows)
    path = folder / PART_NAME.format(part)
    write_atomically(path, "".join(f"{line}\n" for _, line in lines).encode("ascii"))
    return path


def read_part(path: Path, kind: type[Row]) -> Iterator[Row]:
    """Read the rows of a part file, in its order."""
    with path.open(encoding="ascii") as file:
        for line in file:
            yield decode_row(kind, line)


def read_rows(folder: Path, kind: type[Row]) -> Iterator[Row]:
    """Read the rows of all part files of a folder, in the order of the parts."""
    for path in part_files(folder):
        yield from read_part(path, kind)


def part_files(folder: Path) -> list[Path]:
    """Return the part files of a folder, in order."""
    return sorted(folder.glob("part-*.jsonl"))
