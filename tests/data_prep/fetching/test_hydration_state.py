import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys

import pytest

from data_prep.fetching.hydration_state import (
    DONE,
    PENDING,
    PERMANENT,
    TEMPORARY,
    HydrationState,
    HydrationStateError,
    Outcome,
)

A, B, C = (f"https://images.test/{name}.jpg" for name in "abc")


@pytest.fixture
def state(tmp_path):
    with HydrationState(tmp_path / "hydration.sqlite") as state:
        yield state


def test_an_added_url_is_pending_and_adding_it_again_changes_nothing(state):
    state.add([A, B, A])
    assert state.lookup(A) == Outcome(A, PENDING)
    done = Outcome(A, DONE, attempts=2, digest="ab" * 32, http_status=200, bytes=123, final_host="images.test:443")
    state.record(done)
    state.add([A])
    assert state.lookup(A) == done
    assert list(state.pending()) == [B]
    assert state.lookup(C) is None


def test_urls_that_failed_come_in_their_order(state):
    state.add([A, B, C])
    state.record(Outcome(C, TEMPORARY, "timeout"))
    state.record(Outcome(A, PERMANENT, "http_404"))
    assert list(state.failed()) == [A, C]
    assert list(state.pending()) == [B]


def test_pending_urls_come_in_their_order_while_they_are_worked_off(state):
    state.add(f"http://images.test/{n}" for n in range(25_000))
    seen = []
    for url in state.pending():
        seen.append(url)
        state.record(Outcome(url, DONE))
    assert seen == [f"http://images.test/{n}" for n in range(25_000)]
    assert list(state.pending()) == []


def test_the_histogram_counts_reasons(state):
    state.add([A, B])
    state.record(Outcome(B, DONE))
    for n, (status, reason) in enumerate([(PERMANENT, "http_404")] * 3 + [(TEMPORARY, "timeout")] * 2):
        state.record(Outcome(f"http://images.test/{n}", status, reason))
    assert state.histogram() == {"http_404": 3, "timeout": 2, "done": 1, "pending": 1}
    assert list(state.histogram()) == ["http_404", "timeout", "done", "pending"]


def test_what_was_committed_is_there_for_the_next(tmp_path):
    path = tmp_path / "hydration.sqlite"
    with HydrationState(path) as state:
        state.add([A])
        state.record(Outcome(A, TEMPORARY, "http_503", 3, http_status=503))
    with HydrationState(path) as state:
        assert state.lookup(A) == Outcome(A, TEMPORARY, "http_503", 3, http_status=503)


def test_a_kill_loses_what_was_not_committed_and_nothing_else(tmp_path):
    program = """
import os, signal, sys
from data_prep.fetching.hydration_state import DONE, HydrationState, Outcome
state = HydrationState(sys.argv[1])
state.add([sys.argv[2], sys.argv[3]])
state.record(Outcome(sys.argv[2], DONE))
state.commit()
for n in range(20_000):  # more than the cache holds: part of it is in the file already
    state.record(Outcome(f"http://images.test/{n}" + "x" * 500, DONE))
state.record(Outcome(sys.argv[3], DONE))
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "hydration.sqlite"
    ended = subprocess.run([sys.executable, "-c", program, str(path), A, B], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert path.with_name("hydration.sqlite-journal").exists()  # killed in the midst of writing
    with HydrationState(path) as state:
        assert state.histogram() == {"done": 1, "pending": 1}
        assert list(state.pending()) == [B]
        assert state.lookup(A) == Outcome(A, DONE)
    assert not path.with_name("hydration.sqlite-journal").exists()


def test_of_a_forgotten_url_no_byte_stays(tmp_path):
    path = tmp_path / "hydration.sqlite"
    marks = [f"https://images.test/purge-me-{n:05}.jpg" for n in range(3000)]
    with HydrationState(path) as state:
        state.add(marks)
        for n, url in enumerate(marks):
            state.record(Outcome(url, DONE, digest=f"{n:064x}", final_host="purge-me-too.test:443"))
        state.add([A, B])
        state.commit()
        assert b"purge-me" in path.read_bytes()
        assert state.forget([*marks, C]) == 3000
        for file in tmp_path.iterdir():
            assert b"purge-me" not in file.read_bytes(), file
        assert state.lookup(marks[7]) is None
        assert list(state.pending()) == [A, B]


def test_urls_are_found_by_their_image(state):
    state.record(Outcome(B, DONE, digest="ab" * 32))
    state.record(Outcome(A, DONE, digest="ab" * 32))
    state.record(Outcome(C, DONE, digest="cd" * 32))
    assert state.urls_of("ab" * 32) == [A, B]
    assert state.urls_of("ef" * 32) == []


@pytest.mark.parametrize("url", ["", "http://images.test/\udc80", "http://images.test/\0x", "http://images.test/日本"])
def test_any_text_can_be_kept(state, url):
    state.add([url])
    state.record(Outcome(url, PERMANENT, "bad_url"))
    assert state.lookup(url) == Outcome(url, PERMANENT, "bad_url")
    assert state.forget([url]) == 1


def _lock(path, answers):
    try:
        with HydrationState(path) as state, state.locked():
            answers.put("locked")
    except HydrationStateError as error:
        answers.put(str(error))


def test_one_process_at_a_time_fetches_and_others_may_read(tmp_path):
    path = tmp_path / "hydration.sqlite"
    context = multiprocessing.get_context("spawn")  # the locks of a fork would be shared
    answers = context.Queue()
    with HydrationState(path) as state:
        state.add([A])
        with state.locked():
            state.record(Outcome(A, DONE))  # an open transaction
            with HydrationState(path) as reader:
                assert reader.histogram() == {"pending": 1}
            other = context.Process(target=_lock, args=(path, answers))
            other.start()
            assert "another process" in answers.get(timeout=60)
            other.join()
    _lock(path, answers)
    assert answers.get(timeout=60) == "locked"


def test_a_file_that_is_no_such_table_is_refused(tmp_path):
    path = tmp_path / "hydration.sqlite"
    path.write_text("this is no database, and long enough to be taken for one" * 20)
    with pytest.raises(HydrationStateError, match="not a table of URLs"):
        HydrationState(path)
    os.remove(path)
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE urls (url TEXT)")
    other.close()
    with pytest.raises(HydrationStateError, match="not a table of URLs"):
        HydrationState(path)


def test_a_file_that_cannot_be_made_is_said(tmp_path):
    with pytest.raises(HydrationStateError, match="unable to open"):
        HydrationState(tmp_path / "none" / "hydration.sqlite")
