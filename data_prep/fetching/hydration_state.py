"""What became of each URL: a table in one SQLite file that survives any kill.

Owns which URLs are fetched, failed or still to be asked, and nothing of how they are asked (`hydrate`) or where the
bytes lie (`store`).

A rollback journal is used and no write-ahead log: it works on network file systems, and when nothing writes the file
is the only one, so that what `forget` removes is in no other. One process writes at a time; others may read meanwhile.
"""

import contextlib
import dataclasses
import fcntl
import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

PENDING = "pending"
DONE = "done"
PERMANENT = "failed_permanent"
TEMPORARY = "failed_temporary"

_WAIT_SECONDS = 60.0  # for a reader or a writer to let go of the file
_BATCH = 10_000
_TABLE = """
CREATE TABLE IF NOT EXISTS urls (
    number INTEGER PRIMARY KEY,
    url TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL,
    reason TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    digest TEXT NOT NULL,
    http_status INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    final_host TEXT NOT NULL
)
"""
_COLUMNS = "url, status, reason, attempts, digest, http_status, bytes, final_host"


class HydrationStateError(ValueError):
    """The file cannot be used; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a URL.

    Attributes:
        url: As it was asked for, before any redirect.
        status: `PENDING`, `DONE`, `PERMANENT` or `TEMPORARY` (the last may do better later).
        reason: Of a failure, see `fetch.Fetched`, or "takedown" of an image that was removed; empty otherwise.
        attempts: Since it was asked for first, or asked again after it had failed for good.
        digest: sha256 of what was fetched; empty until it is.
        http_status: Of the last answer; 0 where none came.
        bytes: Of what was fetched.
        final_host: "host:port" that gave the last answer, after redirects.
    """

    url: str
    status: str = PENDING
    reason: str = ""
    attempts: int = 0
    digest: str = ""
    http_status: int = 0
    bytes: int = 0
    final_host: str = ""


class HydrationState:
    """The table of a work folder; made when it is not there. A context manager that commits and closes.

    Args:
        path: Of the file; its folder exists.

    Raises:
        HydrationStateError: The file is not such a table, or cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._db = sqlite3.connect(self.path, timeout=_WAIT_SECONDS, isolation_level=None)
        except sqlite3.Error as error:
            raise HydrationStateError(f"{self.path}: {error}") from error
        try:
            self._db.execute("PRAGMA journal_mode = DELETE")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten with zeros
            self._db.execute(_TABLE)
            self._db.execute(f"SELECT {_COLUMNS} FROM urls LIMIT 1")
        except sqlite3.Error as error:
            self._db.close()
            raise HydrationStateError(
                f"{self.path}: not a table of URLs ({error}): move it away to begin anew"
            ) from error

    def __enter__(self) -> "HydrationState":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Commit and close."""
        self.commit()
        self._db.close()

    def commit(self) -> None:
        """Make what was recorded outlast a kill."""
        if self._db.in_transaction:
            self._db.execute("COMMIT")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from hydrating with this table; a kill unlocks it.

        Raises:
            HydrationStateError: Another process has it.
        """
        with self.path.with_name(f"{self.path.name}.lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise HydrationStateError(
                    f"{self.path}: another process is fetching for this folder; wait for it"
                ) from error
            yield

    @property
    def generation(self) -> int:
        """A number that is another one after each run that asks for anything, and stays by forgetting."""
        return self._db.execute("PRAGMA user_version").fetchone()[0]

    def begin_generation(self) -> None:
        """Say that something will be asked for: what was looked up before may be out of date."""
        self._db.execute(f"PRAGMA user_version = {1 + secrets.randbelow(2**31 - 1):d}")

    def add(self, urls: Iterable[str]) -> None:
        """Note URLs as pending; those already known stay as they are."""
        self._begin()
        self._db.executemany(
            "INSERT OR IGNORE INTO urls(url, status, reason, attempts, digest, http_status, bytes, final_host) "
            f"VALUES (?, '{PENDING}', '', 0, '', 0, 0, '')",
            ((_text(url),) for url in urls),
        )
        self.commit()

    def record(self, outcome: Outcome) -> None:
        """Set what became of a URL; `commit` makes it last."""
        self._begin()
        self._db.execute(
            f"INSERT INTO urls({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT(url) DO UPDATE SET "
            "status = excluded.status, reason = excluded.reason, attempts = excluded.attempts, "
            "digest = excluded.digest, http_status = excluded.http_status, bytes = excluded.bytes, "
            "final_host = excluded.final_host",
            (_text(outcome.url), *dataclasses.astuple(outcome)[1:]),
        )

    def lookup(self, url: str) -> Outcome | None:
        """Return what became of a URL; None for one that was never asked for."""
        row = self._db.execute(f"SELECT {_COLUMNS} FROM urls WHERE url = ?", (_text(url),)).fetchone()
        return None if row is None else Outcome(url, *row[1:])

    def pending(self) -> Iterator[str]:
        """Yield the URLs that were asked for and not tried to the end: pending ones, in the order they came."""
        yield from self._urls_with(PENDING, PENDING)

    def failed(self) -> Iterator[str]:
        """Yield the URLs that failed, for good or not, in the order they came."""
        yield from self._urls_with(PERMANENT, TEMPORARY)

    def _urls_with(self, status: str, other: str) -> Iterator[str]:
        number = -1
        while rows := self._db.execute(
            "SELECT number, url FROM urls WHERE number > ? AND status IN (?, ?) ORDER BY number LIMIT ?",
            (number, status, other, _BATCH),
        ).fetchall():
            yield from (url for _, url in rows)
            number = rows[-1][0]

    def histogram(self) -> dict[str, int]:
        """Return how many URLs are `done`, `pending`, or failed for which reason, the most frequent first."""
        rows = self._db.execute(
            "SELECT CASE reason WHEN '' THEN status ELSE reason END AS name, COUNT(*) FROM urls "
            "GROUP BY name ORDER BY COUNT(*) DESC, name"
        )
        return dict(rows.fetchall())

    def urls_of(self, digest: str) -> list[str]:
        """Return the URLs that gave an image, sorted. It reads the whole table."""
        rows = self._db.execute("SELECT url FROM urls WHERE digest = ? ORDER BY url", (digest,))
        return [url for (url,) in rows]

    def forget(self, urls: Iterable[str]) -> int:
        """Remove URLs so that no byte of them stays in the file, and return how many there were.

        To be called inside `locked`, lest a process that fetches them records them again. The file is written anew,
        which takes its size in free space.

        Raises:
            HydrationStateError: Another process reads or writes the file and does not let go.
        """
        self.commit()
        before = self._db.total_changes
        try:
            self._begin()
            self._db.executemany("DELETE FROM urls WHERE url = ?", ((_text(url),) for url in urls))
            removed = self._db.total_changes - before
            self.commit()
            self._db.execute("VACUUM")
        except sqlite3.OperationalError as error:
            raise HydrationStateError(f"{self.path}: {error}; end the process that uses it and try again") from error
        return removed

    def _begin(self) -> None:
        if not self._db.in_transaction:
            self._db.execute("BEGIN IMMEDIATE")


def _text(url: str) -> str:
    """Return a URL as SQLite can keep it: lone surrogates, which broken input holds, as escapes."""
    return url.encode("utf-8", "backslashreplace").decode()
