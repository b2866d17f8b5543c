"""Sorts more lines than memory holds: sorted runs in temporary files, merged as they are read."""

import contextlib
import heapq
import json
import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

RUN_LINES = 100_000
"""Held in memory at once: about 100 MB of rows with their hashes. [ours]"""


def sorted_lines(lines: Iterable[str], folder: Path, *, run_lines: int = RUN_LINES) -> Generator[str]:
    """Yield lines in the order of their code points, so that equal sets of lines come in equal order.

    Args:
        lines: Texts of ASCII without line ends, such as JSON.
        folder: Where temporary files may be; they are gone when the iterator ends or is closed.
        run_lines: How many are held in memory at once.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".sort-") as temporary, contextlib.ExitStack() as stack:
        runs: list[Iterator[str]] = []
        run: list[str] = []

        def close_run() -> None:
            path = Path(temporary) / str(len(runs))
            path.write_text("".join(f"{line}\n" for line in sorted(run)), encoding="ascii")
            file = stack.enter_context(path.open(encoding="ascii"))
            runs.append(line.rstrip("\n") for line in file)
            run.clear()

        for line in lines:
            run.append(line)
            if len(run) >= run_lines:
                close_run()
        if not runs:  # all of them fit
            yield from sorted(run)
            return
        close_run()
        yield from heapq.merge(*runs)


def keyed_line(key: Sequence[str], values: Any) -> str:
    """Return values as a line of JSON behind a key to sort by, for `sorted_lines`.

    Lines order by the parts of the key, one after the other, each as JSON escapes it (ASCII in its own order).
    """
    return "\0".join([*(json.dumps(part)[1:-1] for part in key), json.dumps(values, separators=(",", ":"))])


def values_of(line: str) -> Any:
    """Return the values that `keyed_line` wrote."""
    return json.loads(line.rpartition("\0")[2])
