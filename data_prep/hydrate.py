"""Fetch images by URL into the store.

    python -m data_prep.hydrate --urls FILE --work WORK --contact mailto:lab@example.org
    python -m data_prep.hydrate --retry-failures --work WORK --contact mailto:lab@example.org

Owns when which host is asked and what becomes of an answer: limits by host, back-off, resuming. How one request is
made and what it refuses is `fetch`'s, the order of requests `host_queue`'s, and `hydration_state` remembers. A kill at
any moment loses the last quarter of a second: what is recorded as done is not asked for again. What is stored and
recorded does not depend on the order of the URLs or the number of threads.
"""

if __name__ == "__main__":  # before the imports that would fail
    from data_prep.extras import need_data

    need_data("data_prep.hydrate", "pyarrow", "urllib3")

import argparse
import contextlib
import dataclasses
import hashlib
import itertools
import queue
import sys
import threading
import time
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from data_prep.fetching import fetch
from data_prep.fetching.fetch import Fetched, FetchError, FetchSettings
from data_prep.fetching.host_queue import HostQueue, Task
from data_prep.fetching.hydration_settings import HydrationError, HydrationSettings
from data_prep.fetching.hydration_state import (
    DONE,
    PERMANENT,
    TEMPORARY,
    HydrationState,
    HydrationStateError,
    Outcome,
)
from data_prep.fetching.store import Store
from data_prep.fetching.url_list import UrlListError, distinct, read_urls
from data_prep.removing.removal import TAKEDOWN, Has
from data_prep.removing.tombstones import TombstoneError, Tombstones

STATE_NAME = "hydration.sqlite"
STORE_FOLDER = "store/originals"

_BATCH = 1000
_COMMIT_SECONDS = 0.25  # what a kill can lose
_BUSY = (429, 503)  # RFC 6585, 4 and RFC 9110, 15.6.4: the server, not the URL, is the matter


@dataclasses.dataclass
class HydrationSummary:
    """What a run did with the URLs it was given.

    Attributes:
        asked: Different URLs. The sum of `done_before`, `fetched`, `failed` and `skipped`.
        done_before: Already in the store.
        fetched: By this run.
        bytes: That these have.
        failed: Reason -> URLs that have no image, also those that an earlier run gave up.
        skipped: URLs that never failed, where only failures were to be tried again.
        requests: That were made, redirects and further attempts included.
    """

    asked: int = 0
    done_before: int = 0
    fetched: int = 0
    bytes: int = 0
    failed: Counter[str] = dataclasses.field(default_factory=Counter)
    skipped: int = 0
    requests: int = 0


def hydrate(
    urls: Iterable[str],
    store: Store,
    state: HydrationState,
    settings: HydrationSettings,
    *,
    retry_failures: bool = False,
    is_removed: Has = lambda kind, value: False,
    progress: bool = True,
    request: Callable[[str, FetchSettings], Fetched] = fetch.request,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> HydrationSummary:
    """Fetch the images of URLs that are not in the store yet.

    Args:
        urls: Any number, in any order; those that come twice are fetched once.
        store: Where the images go.
        state: What is known of URLs; `lookup` there says what became of each.
        settings: Limits.
        retry_failures: Try only those that failed before, for whatever reason, with all attempts anew.
        is_removed: Says of a "url" and of an "image" (the sha256 of its bytes) whether it was taken down: the one is
            not asked for, the other not stored.
        progress: Show rate, time left and failures where there is a terminal.
        request: Makes one request.
        clock: Seconds that never go back.
        sleep: Waits for seconds.

    Raises:
        HydrationStateError: Another process fetches for the same state.
        HydrationError: The store cannot be written.
    """
    with (
        state.locked(),
        contextlib.closing(HostQueue(settings.requests_per_second, settings.host_concurrency)) as tasks,
    ):
        store.remove_leftovers()  # nobody else writes it: the lock
        run = _Run(tasks, store, state, settings, is_removed, clock, sleep)
        run.queue(urls, retry_failures)
        if len(tasks):
            state.begin_generation()
        with tqdm(total=len(tasks), desc="images", unit="", disable=None if progress else True) as bar:
            run.work_off(bar, request)
    return run.summary


@dataclasses.dataclass(frozen=True)
class _Answer:
    """What a worker hands back: of a request (its bytes are in the store by then), or an error that ends the run."""

    task: Task
    fetched: Fetched = dataclasses.field(default_factory=Fetched)
    digest: str = ""
    size: int = 0
    error: BaseException | None = None


class _Run:
    """One call of `hydrate`: only the calling thread is in here, the workers see the two queues."""

    def __init__(
        self,
        tasks: HostQueue,
        store: Store,
        state: HydrationState,
        settings: HydrationSettings,
        is_removed: Has,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self.summary = HydrationSummary()
        self._tasks = tasks
        self._store = store
        self._state = state
        self._settings = settings
        self._is_removed = is_removed
        self._clock = clock
        self._sleep = sleep

    def queue(self, urls: Iterable[str], retry_failures: bool) -> None:
        """Queue what has to be asked, and count the rest."""
        remaining = distinct(urls)
        while batch := list(itertools.islice(remaining, _BATCH)):
            allowed = [url for url in batch if not self._is_removed("url", url)]
            if removed := len(batch) - len(allowed):
                self.summary.asked += removed
                self.summary.failed[TAKEDOWN] += removed
            self._state.add(allowed)
            planned = (self._plan(url, retry_failures) for url in allowed)
            self._tasks.add(task for task in planned if task)
            self._state.commit()

    def _plan(self, url: str, retry_failures: bool) -> Task | None:
        known = self._state.lookup(url) or Outcome(url)
        summary = self.summary
        summary.asked += 1
        if known.status == DONE and known.digest in self._store:
            summary.done_before += 1
            return None
        if retry_failures and known.status not in (PERMANENT, TEMPORARY):
            summary.skipped += 1
            return None
        attempts = known.attempts if known.status == TEMPORARY and not retry_failures else 0
        if not retry_failures and (known.status == PERMANENT or attempts >= self._settings.max_attempts):
            summary.failed[known.reason] += 1
            return None
        if host := fetch.host_key(url):
            return Task(host, url, url, attempts)
        self._state.record(Outcome(url, PERMANENT, "bad_url"))
        summary.failed["bad_url"] += 1
        return None

    def work_off(self, bar: tqdm, request: Callable[[str, FetchSettings], Fetched]) -> None:
        """Make the requests until nothing waits."""
        todo: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        workers = [
            # daemons: an interrupt does not wait for the slowest server
            threading.Thread(
                target=_work, args=(todo, answers, self._store, self._settings, self._is_removed, request), daemon=True
            )
            for _ in range(min(self._settings.threads, len(self._tasks)))
        ]
        for worker in workers:
            worker.start()
        try:
            self._schedule(todo, answers, len(workers), bar)
        finally:
            self._state.commit()
            for _ in workers:
                todo.put(None)
        for worker in workers:
            worker.join()

    def _schedule(
        self, todo: "queue.SimpleQueue[Task | None]", answers: "queue.SimpleQueue[_Answer]", workers: int, bar: tqdm
    ) -> None:
        running = 0
        committed = time.monotonic()
        while running or len(self._tasks):
            while running < workers and (task := self._tasks.take(self._clock())):
                todo.put(task)
                running += 1
            due = self._tasks.next_due() if running < workers else None
            wait = _COMMIT_SECONDS if due is None else max(0.0, due - self._clock())
            if not running:
                self._state.commit()
                self._sleep(wait)
                continue
            with contextlib.suppress(queue.Empty):
                answer = answers.get(timeout=min(wait, _COMMIT_SECONDS))
                running -= 1
                self._settle(answer, bar)
            if time.monotonic() - committed > _COMMIT_SECONDS:
                self._state.commit()
                committed = time.monotonic()

    def _settle(self, answer: _Answer, bar: tqdm) -> None:
        """Record an answer, or queue the request that follows from it."""
        if isinstance(answer.error, OSError):  # those of the network are reasons by now
            raise HydrationError(f"the store cannot be written: {answer.error}") from answer.error
        if answer.error is not None:
            raise answer.error
        task, fetched = answer.task, answer.fetched
        self.summary.requests += 1
        now = self._clock()
        if fetched.reason == fetch.REDIRECT:
            host = fetch.host_key(fetched.location)
            if host and task.redirects < self._settings.max_redirects:
                self._tasks.release(task.host)
                self._tasks.add([Task(host, task.asked, fetched.location, task.attempts, task.redirects + 1)], now)
                return
            fetched = dataclasses.replace(fetched, reason="too_many_redirects" if host else "bad_url")
        wait = wait_seconds(fetched, task.asked, task.attempts, self._settings)
        self._tasks.release(task.host, now + wait if fetched.http_status in _BUSY else 0.0)
        attempts = task.attempts + 1
        status = TEMPORARY if fetched.temporary else PERMANENT if fetched.reason else DONE
        self._state.record(
            Outcome(
                task.asked, status, fetched.reason, attempts, answer.digest, fetched.http_status, answer.size, task.host
            )
        )
        if status == TEMPORARY and attempts < self._settings.max_attempts:
            self._tasks.add([Task(fetch.host_key(task.asked), task.asked, task.asked, attempts)], now + wait)
            return
        if status == DONE:
            self.summary.fetched += 1
            self.summary.bytes += answer.size
        else:
            self.summary.failed[fetched.reason] += 1
        bar.set_postfix(failed=self.summary.failed.total(), refresh=False)
        bar.update()


def wait_seconds(fetched: Fetched, url: str, attempts: int, settings: HydrationSettings) -> float:
    """Return how long to wait after a failure: what a busy server asks for (capped), else an exponential back-off.

    The jitter is a function of the URL, the attempt and the seed, so that a run can be repeated.

    Args:
        fetched: The failure.
        url: That failed.
        attempts: Earlier ones that failed.
        settings: Base, limits and seed.
    """
    if fetched.http_status in _BUSY and fetched.retry_after is not None:
        return min(fetched.retry_after, settings.max_retry_after_seconds)
    longest = min(settings.max_backoff_seconds, settings.backoff_seconds * 2.0 ** min(attempts, 64))
    key = hashlib.blake2b(f"{settings.seed}\n{attempts}\n{url}".encode(), digest_size=8).digest()
    return longest * (1.0 - 0.5 * int.from_bytes(key, "big") / 2**64)


def _work(
    todo: "queue.SimpleQueue[Task | None]",
    answers: "queue.SimpleQueue[_Answer]",
    store: Store,
    settings: HydrationSettings,
    is_removed: Has,
    request: Callable[[str, FetchSettings], Fetched],
) -> None:
    while (task := todo.get()) is not None:
        try:
            fetched = request(task.url, settings)
            if not fetched.reason and is_removed("image", hashlib.sha256(fetched.data).hexdigest()):
                fetched = Fetched(reason=TAKEDOWN, http_status=fetched.http_status)
            digest = "" if fetched.reason else store.put(fetched.data)
            # without the bytes: answers that wait to be recorded take no memory
            answers.put(_Answer(task, dataclasses.replace(fetched, data=b""), digest, len(fetched.data)))
        except BaseException as error:  # the run must hear of it: a thread that dies silently would be waited for
            answers.put(_Answer(task, error=error))


def _parse_arguments(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, typing.Any]]:
    parser = argparse.ArgumentParser(prog="python -m data_prep.hydrate", description="Fetch images by URL.")
    parser.add_argument("--urls", type=Path, help="one URL a line, or a .csv or .tsv table with a column url")
    parser.add_argument("--work", type=Path, required=True, help="work folder: state and store are made there")
    parser.add_argument(
        "--retry-failures",
        action="store_true",
        help="try those that failed again, and only those; of all URLs without --urls",
    )
    parser.add_argument("--histogram", action="store_true", help="only say what became of all URLs so far")
    settings = parser.add_argument_group("settings", "see HydrationSettings and FetchSettings")
    for field in dataclasses.fields(HydrationSettings):
        value = getattr(HydrationSettings(), field.name)
        several = isinstance(value, tuple)
        settings.add_argument(
            f"--{field.name.replace('_', '-')}",
            # the one tuple of numbers
            type=int if field.name == "ports" else str if several else type(value),
            nargs="*" if several else None,
            default=value,
            metavar="VALUE",
            help=f"(default: {' '.join(map(str, value)) if several else value})",
        )
    options = parser.parse_args(arguments)
    if not options.urls and not options.histogram and not options.retry_failures:
        parser.error("expected --urls FILE, --retry-failures or --histogram")
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(HydrationSettings)}
    return options, {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status: 0, or 1 with a message when nothing could be done."""
    # here: it imports the curation, which imports this
    from data_prep.takedown import is_pending

    options, values = _parse_arguments(arguments)
    path = options.work / STATE_NAME
    try:
        settings = HydrationSettings(**values)
        if not options.urls and not path.is_file():
            raise HydrationError(f"--work {options.work}: nothing was fetched there, it has no {STATE_NAME}")
        if is_pending(options.work):
            raise HydrationError(f"a takedown in {options.work} was begun and not finished: finish it first")
        options.work.mkdir(parents=True, exist_ok=True)
        tombstones = Tombstones.load(options.work)
        with HydrationState(path) as state:
            if not options.histogram:
                store = Store(options.work / STORE_FOLDER)
                urls = read_urls(options.urls) if options.urls else state.failed()
                retry = options.retry_failures
                summary = hydrate(urls, store, state, settings, retry_failures=retry, is_removed=tombstones.has)
                print_summary(summary)
            else:
                for name, count in state.histogram().items():
                    print(f"{count:>9} {name}")
    except (HydrationError, HydrationStateError, FetchError, TombstoneError, UrlListError, OSError) as error:
        print(f"data_prep.hydrate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("data_prep.hydrate: interrupted; what was fetched is kept, the same command continues", file=sys.stderr)
        return 130  # 128 + SIGINT, as shells have it
    return 0


def print_summary(summary: HydrationSummary) -> None:
    """Say what a run did, with a histogram of the reasons of failure."""
    print(
        f"{summary.asked} URLs: {summary.done_before} there before, {summary.fetched} fetched "
        f"({summary.bytes / 1e6:.1f} MB), {summary.failed.total()} failed, {summary.skipped} left alone"
    )
    for reason, count in sorted(summary.failed.items(), key=lambda item: (-item[1], item[0])):
        print(f"{count:>9} {reason}")


if __name__ == "__main__":
    sys.exit(main())
