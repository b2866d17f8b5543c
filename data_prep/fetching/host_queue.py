"""Requests that wait for their turn, host by host.

Owns the order: how often and how many at once a host is asked, and that a host that must wait keeps no other waiting.
It knows no network, no thread and no clock; every method that depends on the time is given it.

The queue is a private SQLite database that moves from memory to an unnamed temporary file as it grows, so that
millions of URLs at millions of hosts take a few megabytes of memory. It is gone with the process.
"""

import dataclasses
import sqlite3
from collections.abc import Iterable

_TABLES = """
CREATE TABLE tasks (
    host TEXT, ready REAL, number INTEGER, asked TEXT, url TEXT, attempts INTEGER, redirects INTEGER,
    PRIMARY KEY (host, ready, number)
) WITHOUT ROWID;
CREATE TABLE hosts (host TEXT PRIMARY KEY, next_start REAL, running INTEGER, due REAL) WITHOUT ROWID;
CREATE INDEX hosts_by_due ON hosts(due);
"""


@dataclasses.dataclass(frozen=True)
class Task:
    """One request to make.

    Attributes:
        host: "host:port" that limits are counted by.
        asked: The URL that somebody wants.
        url: The URL to ask now: the same, or where it was redirected to.
        attempts: Earlier ones that failed.
        redirects: Followed in this attempt.
    """

    host: str
    asked: str
    url: str
    attempts: int = 0
    redirects: int = 0


class HostQueue:
    """Tasks by host.

    Args:
        requests_per_second: Starts at one host; 0 for no limit.
        host_concurrency: Requests that run at one host at the same time.
    """

    def __init__(self, requests_per_second: float, host_concurrency: int) -> None:
        self._interval = 1.0 / requests_per_second if requests_per_second else 0.0
        self._concurrency = host_concurrency
        self._count = 0
        self._number = 0
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.executescript(f"PRAGMA journal_mode = OFF; {_TABLES}")

    def __len__(self) -> int:
        return self._count

    def close(self) -> None:
        """Drop all that waits."""
        self._db.close()

    def add(self, tasks: Iterable[Task], ready: float = 0.0) -> None:
        """Queue tasks, to start at `ready` (seconds of the caller's clock) or later."""
        hosts = set()
        for task in tasks:
            self._number += 1
            self._db.execute(
                "INSERT INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?)",
                (task.host, ready, self._number, task.asked, task.url, task.attempts, task.redirects),
            )
            self._count += 1
            hosts.add(task.host)
        for host in hosts:
            self._db.execute("INSERT OR IGNORE INTO hosts VALUES (?, 0, 0, NULL)", (host,))
            self._set_due(host)

    def take(self, now: float) -> Task | None:
        """Take the task whose host has been due the longest; None where no host is due.

        The caller says `release` when the request has ended.
        """
        found = self._db.execute("SELECT host FROM hosts WHERE due <= ? ORDER BY due LIMIT 1", (now,)).fetchone()
        if found is None:
            return None
        ready, number, *task = self._db.execute(
            "SELECT ready, number, host, asked, url, attempts, redirects FROM tasks "
            "WHERE host = ? ORDER BY ready, number LIMIT 1",
            found,
        ).fetchone()
        self._db.execute("DELETE FROM tasks WHERE host = ? AND ready = ? AND number = ?", (*found, ready, number))
        self._count -= 1
        self._db.execute(
            "UPDATE hosts SET running = running + 1, next_start = ? WHERE host = ?", (now + self._interval, *found)
        )
        self._set_due(*found)
        return Task(*task)

    def release(self, host: str, not_before: float = 0.0) -> None:
        """Note that a request has ended, and that its host wants to be left alone until a time."""
        self._db.execute(
            "UPDATE hosts SET running = running - 1, next_start = max(next_start, ?) WHERE host = ?", (not_before, host)
        )
        self._set_due(host)

    def next_due(self) -> float | None:
        """Return when the next task can start; None where that takes a `release` or an `add`."""
        return self._db.execute("SELECT min(due) FROM hosts").fetchone()[0]

    def _set_due(self, host: str) -> None:
        # SQLite's max() of several values is NULL where one is: a host without tasks is never due.
        self._db.execute(
            "UPDATE hosts SET due = CASE WHEN running < ? THEN "
            "max(next_start, (SELECT min(ready) FROM tasks WHERE tasks.host = hosts.host)) END WHERE host = ?",
            (self._concurrency, host),
        )
