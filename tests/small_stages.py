"""A stage small enough to see through; a module of its own, because the workers of another process import it."""

import dataclasses
from pathlib import Path

from data_prep.curation.pair import Pair, drop


def pair(number: int) -> Pair:
    name = f"{number:03d}"
    return Pair(
        f"s:{name}:0", "s", name, name, "0", conversation_id=f"s:{number % 19}", raw_text="text " + "é\ud800" * 3
    )


def even_only(part: int, rows: list[Pair], log: Path | None = None):
    """Keep even posts, and number the rows of a conversation in the order they come in."""
    seen: dict[str, int] = {}
    if log is not None:
        with log.open("a") as file:
            file.write("task\n")
    for row in rows:
        seen[row.conversation_id] = seen.get(row.conversation_id, 0) + 1
        if int(row.post_id) % 2:
            yield drop(row, "text", "odd")
        else:
            yield dataclasses.replace(row, caption=str(seen[row.conversation_id]))


def conversation(row: Pair) -> str:
    return row.conversation_id
