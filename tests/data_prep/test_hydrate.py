import threading
from collections import Counter, defaultdict

import pytest
from image_server import ImageServer, Response, gzip_bomb, redirect
from small_fetch import numbered_jpeg as jpeg

from data_prep.fetching.adopt import Adopted, adopt
from data_prep.fetching.fetch import Fetched, FetchError
from data_prep.fetching.hydration_state import DONE, PERMANENT, TEMPORARY, HydrationState, Outcome
from data_prep.fetching.store import Store
from data_prep.hydrate import HydrationError, HydrationSettings, hydrate, wait_seconds

LOOPBACK = {"ports": (), "private_networks": ("127.0.0.1/32",)}
FAST = HydrationSettings(
    **LOOPBACK, requests_per_second=0, backoff_seconds=0.01, total_seconds=5.0, read_seconds=5.0, max_bytes=100_000
)


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
