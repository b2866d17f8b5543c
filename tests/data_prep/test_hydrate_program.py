"""``python -m data_prep.hydrate``: killed and interrupted, what it prints, what was taken down, what is wrong."""

import hashlib
import signal
import subprocess
import sys
import time

import pytest
from image_server import ImageServer, Response
from small_fetch import numbered_jpeg as jpeg

from data_prep import hydrate as hydrate_module
from data_prep.fetching.hydration_state import DONE, HydrationState
from data_prep.fetching.store import Store
from data_prep.removing.byte_scan import byte_scan, text_needles
from data_prep.removing.tombstones import Tombstone, add_tombstones, load_salt, seal


@pytest.fixture(scope="module")
def server():
    with ImageServer() as server:
        yield server


def program(*arguments):
    flags = ["--ports", "--private-networks", "127.0.0.1/32", "--requests-per-second", "60"]
    return [sys.executable, "-m", "data_prep.hydrate", *flags, *map(str, arguments)]


# What a shell runs in the background ignores SIGINT, and so do its children.
HEARS_SIGINT = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def test_killed_and_resumed_it_fetches_each_image_and_nothing_twice_that_was_done(tmp_path):
    with ImageServer() as server:
        urls = [server.add(f"/{n}", Response(jpeg(n), delay_seconds=0.01)) for n in range(120)]
        (tmp_path / "urls.txt").write_text("\n".join(urls))
        command = program("--urls", tmp_path / "urls.txt", "--work", tmp_path / "work")
        path = tmp_path / "work" / "hydration.sqlite"
        settled = {}  # path -> how often it had been asked for when it was found done
        for how, code, at_least in ((signal.SIGKILL, -9, 5), (signal.SIGINT, 130, 35)):
            running = subprocess.Popen(
                [sys.executable, "-c", HEARS_SIGINT, *command[2:]], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            while not path.exists():
                assert running.poll() is None
                time.sleep(0.01)
            with HydrationState(path) as state:
                while state.histogram().get("done", 0) < at_least:
                    assert running.poll() is None
                    time.sleep(0.01)
            running.send_signal(how)
            _, errors = running.communicate(timeout=60)
            assert running.returncode == code, errors
            asked = server.counts()
            assert {place: asked[place] for place in settled} == settled
            with HydrationState(path) as state:
                done = [url.removeprefix(server.url) for url in urls if state.lookup(url).status == DONE]
            settled = {place: asked[place] for place in done}
            assert at_least <= len(settled) < 120
        assert b"interrupted" in errors
        assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0
        assert {place: server.counts()[place] for place in settled} == settled
        store = Store(tmp_path / "work" / "store" / "originals")
        with HydrationState(path) as state:
            assert [store.read(state.lookup(url).digest) for url in urls] == [jpeg(n) for n in range(120)]
        assert len(list(store.digests())) == 120
        assert [p for p in store.folder.rglob("*") if p.is_file() and p.parent.name == ".incoming"] == []


def run_main(capsys, *arguments):
    code = hydrate_module.main([*program(*arguments)[3:]])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_program_prints_what_became_of_the_urls(server, tmp_path, capsys):
    server.add("/p/a.jpg", Response(jpeg(0)))
    (tmp_path / "urls.csv").write_text(f'id,url\n1,{server.url}/p/a.jpg\n2,"{server.url}/p/b.jpg"\n3,\n4,x\n')
    arguments = ("--urls", tmp_path / "urls.csv", "--work", tmp_path / "work")
    code, out, _ = run_main(capsys, *arguments)
    assert code == 0
    assert out.splitlines() == [
        "3 URLs: 0 there before, 1 fetched (0.0 MB), 2 failed, 0 left alone",
        "        1 bad_url",
        "        1 http_404",
    ]
    server.add("/p/b.jpg", Response(jpeg(1)))
    assert "1 there before, 0 fetched" in run_main(capsys, *arguments)[1]
    assert "1 there before, 1 fetched" in run_main(capsys, *arguments, "--retry-failures")[1]
    again = run_main(capsys, "--work", tmp_path / "work", "--retry-failures")[1]
    assert again.splitlines() == [
        "1 URLs: 0 there before, 0 fetched (0.0 MB), 1 failed, 0 left alone",
        "        1 bad_url",
    ]
    histogram = run_main(capsys, "--work", tmp_path / "work", "--histogram")
    assert histogram == (0, "        2 done\n        1 bad_url\n", "")


def test_what_was_taken_down_is_not_asked_for_and_not_stored_again(server, tmp_path, capsys):
    work = tmp_path / "work"
    urls = [server.add(f"/gone/{name}.jpg", Response(jpeg(n))) for name, n in (("url", 0), ("image", 1), ("other", 2))]
    digests = [hashlib.sha256(jpeg(n)).hexdigest() for n in range(3)]
    salt = load_salt(work)
    stones = [("url", urls[0]), ("image", digests[1])]
    add_tombstones(work, [Tombstone(kind, seal(salt, kind, value)) for kind, value in stones])
    (tmp_path / "urls.txt").write_text("\n".join(urls))
    arguments = ("--urls", tmp_path / "urls.txt", "--work", work)
    for _ in range(2):
        code, out, _ = run_main(capsys, *arguments)
        assert code == 0
        assert out.splitlines()[0].endswith(" 2 failed, 0 left alone")
        assert out.splitlines()[1:] == ["        2 takedown"]
    assert "/gone/url.jpg" not in server.counts()
    assert server.counts()["/gone/image.jpg"] == 1
    assert list(Store(work / "store" / "originals").digests()) == [digests[2]]
    assert byte_scan([work], {"gone": text_needles(digests[1]), "url": text_needles(urls[0])}) == []
    (work / "takedown-journal.json").write_text("{}")
    assert run_main(capsys, *arguments)[0] == 1
    (work / "takedown-journal.json").unlink()
    assert run_main(capsys, *arguments)[0] == 0


def test_what_failed_is_tried_again_without_a_list(server, tmp_path, capsys):
    server.add("/again/a.jpg", Response(jpeg(0)))
    (tmp_path / "urls.txt").write_text(f"{server.url}/again/a.jpg\n{server.url}/again/b.jpg\n")
    work = ("--work", tmp_path / "work")
    assert "1 fetched (0.0 MB), 1 failed" in run_main(capsys, "--urls", tmp_path / "urls.txt", *work)[1]
    server.add("/again/b.jpg", Response(jpeg(1)))
    code, out, _ = run_main(capsys, *work, "--retry-failures")
    assert (code, out) == (0, "1 URLs: 0 there before, 1 fetched (0.0 MB), 0 failed, 0 left alone\n")
    assert run_main(capsys, *work, "--retry-failures")[1].startswith("0 URLs")


def test_the_program_says_what_is_wrong(tmp_path, capsys):
    (tmp_path / "links.csv").write_text("id,link\n1,x\n")
    for arguments, message in (
        (("--urls", tmp_path / "none.txt", "--work", tmp_path / "w"), "none.txt"),
        (("--urls", tmp_path / "links.csv", "--work", tmp_path / "w"), "no column 'url'; found 'id', 'link'"),
        (("--work", tmp_path / "nothing", "--histogram"), "nothing was fetched there"),
        (("--work", tmp_path / "nothing", "--retry-failures"), "nothing was fetched there"),
        (("--urls", tmp_path / "links.csv", "--work", tmp_path / "w", "--threads", "0"), "threads is 0"),
    ):
        code, out, err = run_main(capsys, *arguments)
        assert (code, out) == (1, "")
        assert err.startswith("data_prep.hydrate: ")
        assert message in err
    assert not (tmp_path / "nothing").exists()
