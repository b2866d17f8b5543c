import hashlib
import multiprocessing
import os
import subprocess
import sys
import threading

import pytest

from data_prep.fetching.store import Store, StoreError

# sha256 of b"abc", from FIPS 180-2, appendix B.1
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_bytes_lie_under_their_sha256(tmp_path):
    store = Store(tmp_path / "store")
    assert ABC not in store
    assert store.put(b"abc") == ABC
    assert (tmp_path / "store" / "ba" / ABC).read_bytes() == b"abc"
    assert store.path(ABC) == tmp_path / "store" / "ba" / ABC
    assert ABC in store
    assert store.read(ABC, verify=True) == b"abc"


def test_the_same_bytes_twice_are_one_file_that_is_not_written_again(tmp_path):
    store = Store(tmp_path)
    store.put(b"abc")
    os.utime(store.path(ABC), (1, 1))
    assert store.put(b"abc") == ABC
    assert store.path(ABC).stat().st_mtime == 1
    assert files(tmp_path) == [f"ba/{ABC}"]


def test_an_empty_store_lists_nothing_and_makes_no_folder(tmp_path):
    store = Store(tmp_path / "none")
    assert list(store.digests()) == []
    assert store.remove_leftovers() == 0
    assert not store.folder.exists()


def test_digests_are_all_and_sorted(tmp_path):
    store = Store(tmp_path)
    expected = sorted(hashlib.sha256(bytes([n])).hexdigest() for n in range(40))
    for n in range(40):
        store.put(bytes([n]))
    (tmp_path / "readme").write_text("not ours")
    (tmp_path / expected[0][:2] / "notes").write_text("not ours")
    assert list(store.digests()) == expected


def test_delete_says_whether_it_was_there(tmp_path):
    store = Store(tmp_path)
    store.put(b"abc")
    assert store.delete(ABC)
    assert not store.delete(ABC)
    assert ABC not in store
    with pytest.raises(StoreError, match="does not hold ba78"):
        store.read(ABC)


def test_a_changed_file_is_found_by_verify_and_only_by_it(tmp_path):
    store = Store(tmp_path)
    store.put(b"abc")
    store.path(ABC).write_bytes(b"abd")
    assert store.read(ABC) == b"abd"
    with pytest.raises(StoreError, match="damaged"):
        store.read(ABC, verify=True)


def test_a_file_cut_off_by_a_loss_of_power_is_written_again(tmp_path):
    store = Store(tmp_path)
    store.put(b"abc")
    store.path(ABC).write_bytes(b"")
    store.put(b"abc")
    assert store.read(ABC) == b"abc"


@pytest.mark.parametrize("digest", ["", "ab", ABC.upper(), "../../etc/passwd", ABC + "\n", "g" * 64])
def test_what_is_no_digest_is_refused(tmp_path, digest):
    with pytest.raises(StoreError, match="no sha256"):
        Store(tmp_path).path(digest)


def test_put_file_links_where_it_can(tmp_path):
    (tmp_path / "image").write_bytes(b"abc")
    store = Store(tmp_path / "store")
    assert store.put_file(tmp_path / "image") == ABC
    assert store.path(ABC).samefile(tmp_path / "image")
    assert store.put_file(tmp_path / "image") == ABC
    assert files(tmp_path / "store") == [f"ba/{ABC}"]


def test_put_file_copies_where_it_cannot_link(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    (tmp_path / "image").write_bytes(b"abc")
    store = Store(tmp_path / "store")
    assert store.put_file(tmp_path / "image") == ABC
    assert not store.path(ABC).samefile(tmp_path / "image")
    assert files(tmp_path / "store") == [f"ba/{ABC}"]


def test_put_file_follows_a_symbolic_link_to_its_file(tmp_path):
    (tmp_path / "image").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("image")
    store = Store(tmp_path / "store")
    store.put_file(tmp_path / "link")
    assert not store.path(ABC).is_symlink()
    (tmp_path / "link").unlink()
    assert store.read(ABC) == b"abc"


def test_put_file_of_no_file_raises_and_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        Store(tmp_path / "store").put_file(tmp_path / "none")
    assert files(tmp_path) == []


def test_what_a_killed_process_left_is_no_entry_and_can_be_removed(tmp_path):
    # Killed between writing and naming: the renaming never happens.
    program = """
import os, signal, sys
from pathlib import Path
from data_prep.fetching.store import Store
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
Store(sys.argv[1]).put(b"abc")
"""
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode == -9
    store = Store(tmp_path)
    assert len(files(tmp_path)) == 1
    assert ABC not in store
    assert list(store.digests()) == []
    assert store.remove_leftovers() == 1
    assert files(tmp_path) == []


def _put_many(folder, start):
    store = Store(folder)
    for n in range(60):
        store.put(str((start + n) % 60).encode() * 5000)


def test_many_threads_and_processes_put_the_same_files(tmp_path):
    context = multiprocessing.get_context("spawn")  # the parent has threads
    processes = [context.Process(target=_put_many, args=(tmp_path, start)) for start in (0, 30)]
    threads = [threading.Thread(target=_put_many, args=(tmp_path, start)) for start in (0, 20, 40)]
    for worker in (*processes, *threads):
        worker.start()
    for worker in (*processes, *threads):
        worker.join()
    assert [process.exitcode for process in processes] == [0, 0]
    store = Store(tmp_path)
    expected = {hashlib.sha256(str(n).encode() * 5000).hexdigest(): str(n).encode() * 5000 for n in range(60)}
    assert {digest: store.read(digest) for digest in store.digests()} == expected
    assert len(files(tmp_path)) == 60
