import hashlib
import io
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict

import pytest
from image_server import ImageServer, Response, gzip_bomb, redirect
from PIL import Image

from data_prep import hydrate as hydrate_module
from data_prep.fetching.adopt import Adopted, adopt
from data_prep.fetching.fetch import Fetched, FetchError
from data_prep.fetching.hydration_state import DONE, PERMANENT, TEMPORARY, HydrationState, Outcome
from data_prep.fetching.store import Store
from data_prep.hydrate import HydrationError, HydrationSettings, hydrate, wait_seconds
from data_prep.removing.byte_scan import byte_scan, text_needles
from data_prep.removing.tombstones import Tombstone, add_tombstones, load_salt, seal

LOOPBACK = {"ports": (), "private_networks": ("127.0.0.1/32",)}
FAST = HydrationSettings(
    **LOOPBACK, requests_per_second=0, backoff_seconds=0.01, total_seconds=5.0, read_seconds=5.0, max_bytes=100_000
)


def jpeg(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (number % 256, number // 256, 90)).save(file, "JPEG")
    return file.getvalue() + number.to_bytes(4, "big")  # no two are equal


@pytest.fixture
def state(tmp_path):
    with HydrationState(tmp_path / "hydration.sqlite") as state:
        yield state


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "originals")


@pytest.fixture(scope="module")
def server():
    with ImageServer() as server:
        yield server


class FakeNetwork:
    """Answers without a network, and a clock that moves only by sleeping."""

    def __init__(self, **answers):
        self.now = 1000.0
        self.starts = defaultdict(list)
        self.answers = answers
        self.lock = threading.Lock()

    def clock(self):
        return self.now

    def sleep(self, seconds):
        assert seconds > 0
        self.now += seconds

    def request(self, url, settings):
        with self.lock:
            self.starts[url.split("/")[2]].append(self.now)
            planned = self.answers.get(url.split("/")[2].split(".")[0], [])
            return planned.pop(0) if planned else Fetched(data=b"\xff\xd8\xff" + url.encode(), url=url, http_status=200)

    def run(self, urls, store, state, settings, **options):
        return hydrate(
            urls, store, state, settings, request=self.request, clock=self.clock, sleep=self.sleep, **options
        )


def test_every_kind_of_answer_ends_as_done_or_with_its_reason(server, store, state):
    server.add("/good", Response(jpeg(1)))
    expected = {
        server.add("/image", Response(jpeg(0))): "",
        server.add("/same", Response(jpeg(0))): "",
        server.add("/moved", redirect("/good")): "",
        server.add("/busy", Response(status=429, headers={"Retry-After": "0"}), Response(jpeg(2))): "",
        server.add("/ill", *[Response(status=503)] * 3, Response(jpeg(3))): "",
        server.add("/reset", Response(reset=True), Response(jpeg(4))): "",
        server.add("/cut", Response(jpeg(5), length=9999), Response(jpeg(5))): "",
        server.add("/dead", Response(status=503)): "http_503",
        server.add("/broken", Response(jpeg(5), length=9999)): "truncated",
        server.add("/gone", Response(status=410)): "http_410",
        server.url + "/never": "http_404",
        server.add("/page", Response(b"<html>")): "not_an_image",
        server.add("/loop", redirect("/loop")): "too_many_redirects",
        server.add("/inside", redirect("http://10.0.0.1/")): "private_address",
        server.add("/file", redirect("file:///etc/passwd")): "bad_url",
        server.add("/robots", Response(jpeg(6), headers={"X-Robots-Tag": "noai"})): "robots_tag",
        server.add("/big", Response(jpeg(7) + bytes(200_000), length=-1)): "too_large",
        server.add("/bomb", gzip_bomb(1_000_000)): "too_large",
        "nonsense": "bad_url",
        "http://192.168.0.1/x.jpg": "private_address",
    }
    summary = hydrate([*expected, *expected], store, state, FAST, progress=False)
    assert {url: getattr(state.lookup(url), "reason", None) for url in expected} == expected
    assert (summary.asked, summary.fetched, summary.done_before, summary.skipped) == (20, 7, 0, 0)
    assert summary.failed == Counter(reason for reason in expected.values() if reason)
    image = state.lookup(server.url + "/image")
    assert image == Outcome(image.url, DONE, "", 1, image.digest, 200, len(jpeg(0)), server.host)
    assert store.read(image.digest, verify=True) == jpeg(0)
    assert state.lookup(server.url + "/same").digest == image.digest
    assert store.read(state.lookup(server.url + "/moved").digest) == jpeg(1)
    assert state.lookup(server.url + "/dead") == Outcome(
        server.url + "/dead", TEMPORARY, "http_503", 4, http_status=503, final_host=server.host
    )
    assert state.lookup("nonsense") == Outcome("nonsense", PERMANENT, "bad_url")
    assert len(list(store.digests())) == 6
    assert state.histogram() == {**dict(summary.failed), "done": 7}
    assert server.counts()["/dead"] == 4
    assert server.counts()["/loop"] == 6  # the first and five redirects
    assert server.counts()["/image"] == 1

    # Again: nothing that is settled is asked.
    asked = len(server.asked)
    again = hydrate(expected, store, state, FAST, progress=False)
    assert (again.asked, again.done_before, again.fetched, again.requests) == (20, 7, 0, 0)
    assert again.failed == summary.failed
    assert len(server.asked) == asked


def test_only_failures_are_tried_again_when_asked_to(server, store, state):
    good = server.add("/r/good", Response(jpeg(0)))
    healed = server.add("/r/healed", *[Response(status=500)] * 4, Response(jpeg(1)))
    found = server.add("/r/found", Response(status=404), Response(jpeg(2)))
    gone = server.add("/r/gone", Response(status=404))
    new = server.add("/r/new", Response(jpeg(3)))
    hydrate([good, healed, found, gone], store, state, FAST, progress=False)
    assert [state.lookup(url).attempts for url in (good, healed, found, gone)] == [1, 4, 1, 1]
    before = server.counts()
    summary = hydrate([good, healed, found, gone, new], store, state, FAST, retry_failures=True, progress=False)
    assert server.counts() - before == {"/r/healed": 1, "/r/found": 1, "/r/gone": 1}
    assert (summary.done_before, summary.fetched, summary.skipped, summary.failed) == (1, 2, 1, {"http_404": 1})
    assert state.lookup(healed) == Outcome(
        healed, DONE, "", 1, state.lookup(healed).digest, 200, len(jpeg(1)), server.host
    )


def test_attempts_are_counted_over_runs(server, store, state):
    url = server.add("/over-runs", Response(status=503))
    state.record(Outcome(url, TEMPORARY, "timeout", attempts=3))
    hydrate([url], store, state, FAST, progress=False)
    assert (server.counts()["/over-runs"], state.lookup(url).attempts) == (1, 4)
    hydrate([url], store, state, FAST, progress=False)
    assert server.counts()["/over-runs"] == 1


def test_an_image_that_the_store_lost_is_fetched_again(server, store, state):
    url = server.add("/lost", Response(jpeg(0)))
    hydrate([url], store, state, FAST, progress=False)
    digest = state.lookup(url).digest
    store.delete(digest)
    assert hydrate([url], store, state, FAST, progress=False).fetched == 1
    assert digest in store


def test_the_rate_of_a_host_is_kept_to_the_second(store, state):
    network = FakeNetwork()
    settings = HydrationSettings(requests_per_second=2.0, host_concurrency=1)
    urls = [f"http://{host}.test/{n}" for host in "ab" for n in range(5)]
    assert network.run(urls, store, state, settings, progress=False).fetched == 10
    assert network.starts == {
        "a.test": [1000.0, 1000.5, 1001.0, 1001.5, 1002.0],
        "b.test": [1000.0, 1000.5, 1001.0, 1001.5, 1002.0],
    }


def test_redirects_count_for_the_host_they_lead_to(store, state):
    short = [Fetched("redirect", location=f"http://long.test/{n}", http_status=301) for n in range(3)]
    network = FakeNetwork(s1=[short[0]], s2=[short[1]], s3=[short[2]])
    settings = HydrationSettings(requests_per_second=1.0)
    urls = [f"http://s{n}.test/" for n in (1, 2, 3)]
    assert network.run(urls, store, state, settings, progress=False).fetched == 3
    assert network.starts["long.test"] == [1000.0, 1001.0, 1002.0]
    assert state.lookup(urls[0]).final_host == "long.test:80"


def test_a_busy_host_is_left_alone_as_long_as_it_asks_and_others_go_on(store, state):
    network = FakeNetwork(a=[Fetched("http_429", http_status=429, retry_after=30.0)])
    settings = HydrationSettings(requests_per_second=1.0, host_concurrency=1)
    urls = [f"http://{host}.test/{n}" for host in "ab" for n in range(3)]
    assert network.run(urls, store, state, settings, progress=False).fetched == 6
    assert network.starts["a.test"] == [1000.0, 1030.0, 1031.0, 1032.0]
    assert network.starts["b.test"] == [1000.0, 1001.0, 1002.0]


def test_a_failure_that_is_the_urls_own_does_not_slow_its_host(store, state):
    network = FakeNetwork(a=[Fetched("timeout")])
    settings = HydrationSettings(requests_per_second=1.0, host_concurrency=1, backoff_seconds=40.0)
    assert network.run([f"http://a.test/{n}" for n in range(3)], store, state, settings, progress=False).fetched == 3
    assert network.starts["a.test"][:3] == [1000.0, 1001.0, 1002.0]
    assert 1020.0 <= network.starts["a.test"][3] <= 1040.0  # 40 s, less up to half of it


def test_a_host_that_stays_busy_is_given_up_after_the_attempts(store, state):
    network = FakeNetwork(a=[Fetched("http_503", http_status=503)] * 99)
    settings = HydrationSettings(max_attempts=3, backoff_seconds=10.0, requests_per_second=1.0)
    summary = network.run(["http://a.test/0"], store, state, settings, progress=False)
    assert (summary.failed, summary.requests) == ({"http_503": 1}, 3)
    first, second, third = network.starts["a.test"]
    assert 5.0 <= second - first <= 10.0 <= third - second <= 20.0


@pytest.mark.parametrize(
    ("fetched", "attempts", "least", "most"),
    [
        (Fetched("http_503", http_status=503, retry_after=7.0), 0, 7.0, 7.0),
        (Fetched("http_429", http_status=429, retry_after=1e9), 0, 600.0, 600.0),
        (Fetched("http_500", http_status=500, retry_after=7.0), 0, 1.0, 2.0),
        (Fetched("timeout"), 0, 1.0, 2.0),
        (Fetched("timeout"), 3, 8.0, 16.0),
        (Fetched("timeout"), 50, 60.0, 120.0),
        (Fetched("timeout"), 5000, 60.0, 120.0),
    ],
)
def test_waits(fetched, attempts, least, most):
    waits = {
        wait_seconds(fetched, f"http://a.test/{n}", attempts, HydrationSettings(seed=seed))
        for n in range(50)
        for seed in range(2)
    }
    assert least <= min(waits) <= max(waits) <= most
    assert len(waits) == (1 if least == most else 100)  # the jitter spreads them
    again = wait_seconds(fetched, "http://a.test/3", attempts, HydrationSettings(seed=1))
    assert again in waits


def test_a_host_that_never_answers_does_not_stall_another(store, state):
    quick_ones_done = threading.Semaphore(0)
    waited = []

    def request(url, settings):
        if url.startswith("http://slow"):  # answers only when all of the other host has been asked for
            waited.append(all(quick_ones_done.acquire(timeout=30) for _ in range(20)))
        else:
            quick_ones_done.release()
        return Fetched(data=url.encode(), url=url, http_status=200)

    urls = [f"http://slow.test/{n}" for n in range(2)] + [f"http://quick.test/{n}" for n in range(40)]
    settings = HydrationSettings(requests_per_second=0, threads=3, host_concurrency=2)
    assert hydrate(urls, store, state, settings, progress=False, request=request).fetched == 42
    assert waited == [True, True]


def test_the_threads_share_the_work_and_a_host_gets_its_share_only(server, store, state):
    with ImageServer() as other:
        urls = [
            host.add(f"/t{n}", Response(jpeg(n), delay_seconds=0.02)) for n in range(20) for host in (server, other)
        ]
        settings = HydrationSettings(**LOOPBACK, requests_per_second=0, threads=8, host_concurrency=3)
        assert hydrate(urls, store, state, settings, progress=False).fetched == 40
        assert other.most_open == 3


def test_a_store_that_cannot_be_written_ends_the_run_with_what_was_done(store, state, monkeypatch):
    put = Store.put

    def full(self, data):
        if data.endswith(b"/7"):
            raise OSError(28, "No space left on device")
        return put(self, data)

    monkeypatch.setattr(Store, "put", full)
    network = FakeNetwork()
    urls = [f"http://a.test/{n}" for n in range(20)]
    settings = HydrationSettings(requests_per_second=1.0, host_concurrency=1)
    with pytest.raises(HydrationError, match="No space left"):
        network.run(urls, store, state, settings, progress=False)
    assert state.histogram() == {"pending": 13, "done": 7}
    monkeypatch.undo()
    assert network.run(urls, store, state, settings, progress=False).fetched == 13


def test_the_same_urls_in_any_order_and_with_any_threads_leave_the_same_behind(server, tmp_path):
    urls = [server.add(f"/o{n}", Response(jpeg(n // 2))) for n in range(30)] + [server.url + "/o404", "x"]
    left = []
    for name, order, threads in (("a", urls, 1), ("b", urls[::-1], 8)):
        store = Store(tmp_path / name)
        with HydrationState(tmp_path / f"{name}.sqlite") as state:
            settings = HydrationSettings(**LOOPBACK, requests_per_second=0, threads=threads)
            hydrate(order, store, state, settings, progress=False)
            left.append(([state.lookup(url) for url in urls], list(store.digests())))
    assert left[0] == left[1]
    assert len(left[0][1]) == 15


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"threads": 0}, "threads"), ({"requests_per_second": -1.0}, "requests_per_second"), ({"max_bytes": 0}, "max_b")],
)
def test_settings_that_cannot_be_used(changes, message):
    with pytest.raises((HydrationError, FetchError), match=message):
        HydrationSettings(**changes)


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


def test_local_files_are_adopted_with_the_same_reasons(tmp_path, store):
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    (tmp_path / "big.jpg").write_bytes(jpeg(0) + bytes(100_000))
    (tmp_path / "notes.jpg").write_text("no image")
    names = ("a.jpg", "big.jpg", "notes.jpg", "none.jpg", "zero\0byte.jpg", "")
    paths = [str(tmp_path / name) for name in names]
    digest, *reasons = adopt(paths, store, FAST)
    assert digest == Adopted(paths[0], store.put(jpeg(0)))
    expected = ["too_large", "not_an_image", "missing_file", "missing_file", "missing_file"]
    assert reasons == [Adopted(path, reason=reason) for path, reason in zip(paths[1:], expected, strict=True)]
