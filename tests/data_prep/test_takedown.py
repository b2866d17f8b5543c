"""A takedown end to end, on a work folder and records made by hand: nothing removed is found, nothing else changes."""

import hashlib
import itertools
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_work import Entry, planted, post_id, remark, staying, write_world

from data_prep import takedown
from data_prep.curation.pair import STAGES, Decision, Pair
from data_prep.curation.rows import read_rows
from data_prep.removing.byte_scan import byte_scan, image_needles, text_needles
from data_prep.removing.purge import stand_in
from data_prep.removing.takedown_requests import Request, read_requests
from data_prep.removing.tombstones import SALT_NAME, Tombstones
from data_prep.sources.post import Post
from data_prep.verify import find_problems
from plip_jax.data.records import open_records, read_manifest

GONE = planted()
STAY = staying(GONE)
GONE["remark"] = remark(STAY["answered"])


def request_lines() -> list[dict[str, object]]:
    """All ways to ask for what is planted, but for copies, replies and reposts, which follow."""
    digest = GONE["sha"].pair
    phash = GONE["phash"].pair
    assert digest is not None
    assert phash is not None
    near = f"{int(phash.phash, 16) ^ 0b101:016x}"
    return [
        {"kind": "post", "source": "twitter", "value": post_id(0), "request": "mail-7", "time": "2024-05-06"},
        {"kind": "post", "value": post_id(1)},
        {"id": post_id(2), "action": "delete", "created_at": "2024-01-01T00:00:00.000Z", "reason": "deleted"},
        {"delete": {"status": {"id": int(post_id(3)), "id_str": post_id(3), "user_id_str": "9"}, "timestamp_ms": "17"}},
        {"data": {"delete": {"event_at": "2024-01-01", "tweet": {"id": post_id(4), "author_id": "9"}}}},
        {"kind": "post", "value": post_id(5)},
        {"kind": "author", "platform": "x", "value": "somebody"},
        {"scrub_geo": {"user_id_str": "9", "up_to_status_id_str": "11"}},
        {"kind": "url", "value": "https://pbs.example/media/url-20.jpg"},
        {"kind": "url", "value": f"https://x.example/page/status/{post_id(21)}"},
        {"kind": "image", "value": "sha256:" + digest.digest},
        {"kind": "image", "value": "phash:" + near},
        {"kind": "image", "value": "asked.jpg"},
        {"kind": "post", "value": post_id(34)},
        {"kind": "post", "value": post_id(35)},
        {"kind": "post", "value": post_id(36)},
        {"kind": "post", "value": post_id(38)},
    ]


def hash_author(platform: str, author: str) -> str:
    return {"x somebody": "a" * 32}[f"{platform} {author}"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """WORK and atlas/ (the records) with everything in them, and the requests; not to be written to."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder / "work", folder / "atlas", [*GONE.values(), *STAY.values()])
    (folder / "work" / SALT_NAME).write_text("5a" * 32)  # so that two takedowns of one world can be compared
    (folder / "requests.jsonl").write_text("\n".join(map(json.dumps, request_lines())))
    (folder / "asked.jpg").write_bytes(GONE["file"].original)
    return folder


def requests_of(world: Path) -> tuple[Request, ...]:
    read = read_requests(world / "requests.jsonl", hash_author=hash_author)
    assert read.malformed == ()
    assert read.ignored == {"scrub_geo": 1}
    return read.requests


def copied(world: Path, to: Path) -> tuple[Path, Path]:
    for name in ("work", "atlas"):
        shutil.copytree(world / name, to / name)
    return to / "work", to / "atlas"


@pytest.fixture(scope="module")
def purged(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A copy of the world after the takedown; not to be written to."""
    work, out = copied(world, tmp_path_factory.mktemp("purged"))
    takedown.take_down(work, [out], requests_of(world), date="2024-06-01")
    return work, out


def needles(entries: dict[str, Entry]) -> dict[str, tuple[bytes, ...]]:
    found = {f"{name} {n}": text_needles(text) for name, one in entries.items() for n, text in enumerate(one.secrets)}
    for name, one in entries.items():
        if one.pair is not None and one.name != "remark":  # the image it is about stays
            found |= {f"{name} original": image_needles(one.original), f"{name} clean": image_needles(one.clean)}
    return found


def gone_needles() -> dict[str, tuple[bytes, ...]]:
    """Of all that is removed; the remark's image and its address stay, with the pair of the one who posted it."""
    kept = {text for one in STAY.values() for text in one.secrets}
    wanted = needles(GONE)
    return {name: forms for name, forms in wanted.items() if forms[0].decode(errors="replace") not in kept}


def snapshot(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows_of(work: Path, stage: str, name: str) -> list:
    kind = Decision if name == "dropped" else Post if stage == "source" else Pair
    return list(read_rows(work / "stages" / stage / name, kind))


def test_the_scan_finds_everything_before_and_nothing_after(world: Path, purged: tuple[Path, Path]):
    wanted = gone_needles()
    assert len(GONE) == 23
    assert len(wanted) > 150
    before = {hit.needle for hit in byte_scan([world / "work", world / "atlas"], wanted)}
    refused = {"refused 0", "refused 1"}  # only its id and page were ever written: it did not pass the source
    assert {name for name in wanted if not name.startswith("refused")} | refused == before
    assert byte_scan(purged, wanted) == []


def test_what_stays_is_still_found(purged: tuple[Path, Path]):
    # A text had the address of a removed post, which is cut out; a pair was dropped before its image was fetched.
    lost = ("quoting 2", "short 5", "short 6", "short original", "short clean")
    wanted = {name: forms for name, forms in needles(STAY).items() if name not in lost}
    assert {hit.needle for hit in byte_scan(purged, wanted)} == wanted.keys()


def test_rows_of_what_stays_are_as_they_were(world: Path, purged: tuple[Path, Path]):
    work, _ = purged
    staying_ids = {one.post.id for one in STAY.values()}
    for stage in STAGES:
        for name in ("kept", "dropped"):
            old = [row for row in rows_of(world / "work", stage, name) if _post_of(row) in staying_ids]
            new = [row for row in rows_of(work, stage, name) if not row.id.startswith("takedown:")]
            assert [row.id for row in new] == [row.id for row in old], (stage, name)
            changed = {_post_of(row) for row, before in zip(new, old, strict=True) if row != before}
            assert changed <= {STAY[name].post.id for name in ("answered", "unchosen", "guest", "quoting")}


def _post_of(row: Post | Pair | Decision) -> str:
    if isinstance(row, Post):
        return row.id
    return row.pair.post_id if isinstance(row, Decision) and row.pair is not None else row.post_id


def test_references_to_removed_posts_become_pseudonyms(purged: tuple[Path, Path]):
    work, _ = purged
    posts = {row.id: row for row in rows_of(work, "source", "kept")}
    unchosen, guest, quoting = (posts[STAY[name].post.id] for name in ("unchosen", "guest", "quoting"))
    assert unchosen.reply_to == unchosen.conversation_id
    assert unchosen.reply_to.startswith("takedown-")
    assert guest.conversation_id.startswith("takedown-")
    assert guest.conversation_id != unchosen.conversation_id
    assert quoting.captions == ("As seen in  and at https://lab.example/atlas, a fine case of it",)
    pairs = {row.post_id: row for row in rows_of(work, "split", "kept")}
    assert pairs[guest.id].conversation_id == f"twitter:{guest.conversation_id}"
    assert pairs[STAY["answered"].post.id].duplicate_group.startswith("takedown-")
    detail = [row.detail for row in rows_of(work, "thread", "dropped") if row.post_id == unchosen.id]
    assert detail == [""]


def test_the_stages_still_add_up(world: Path, purged: tuple[Path, Path]):
    work, _ = purged
    done = {stage: json.loads((work / "stages" / stage / "DONE.json").read_text())["counts"] for stage in STAGES}
    for stage in STAGES:
        assert done[stage]["kept"] == len(rows_of(work, stage, "kept"))
        assert done[stage]["dropped"] == len(rows_of(work, stage, "dropped"))
    for before, after in itertools.pairwise(STAGES):
        assert done[after]["read"] == done[before]["kept"]
    before = json.loads((world / "work" / "stages" / "source" / "DONE.json").read_text())["counts"]
    assert done["source"]["read"] == before["read"]
    stones = [row for row in rows_of(work, "source", "dropped") if row.reason == "takedown"]
    assert len(stones) == len(GONE)
    assert {row.unit for row in stones} == {"post"}


def test_only_what_held_it_is_written(world: Path, purged: tuple[Path, Path]):
    work, out = purged
    before, after = snapshot(world / "atlas"), snapshot(out)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    held = set()
    for split in ("train", "test"):
        for shard in read_manifest(world / "atlas").splits[split]:
            ids = set(_ids(world / "atlas", split, shard.file))
            if ids & {one.pair.id for one in GONE.values() if one.pair is not None}:
                held.add(shard.file)
    assert 0 < len(held) < len([name for name in before if "array_record" in name])
    infos = {"records.json", "dataset_info.json", "1.0.0/dataset_info.json"}
    assert changed == held | infos | {"decisions.parquet", "funnel.html"}
    assert list(find_problems(out)) == []
    store = {path.name for path in (work / "store").rglob("*") if path.is_file()}
    digests = [(one.pair.digest, one.pair.clean_digest) for one in STAY.values() if one.pair and one.name != "short"]
    assert store == {digest for both in digests for digest in both}


def _ids(out: Path, split: str, file: str) -> list[str]:
    first = 0
    for shard in read_manifest(out).splits[split]:
        if shard.file == file:
            return [record.id for record in open_records(out, split)[first : first + shard.num_examples]]
        first += shard.num_examples
    raise AssertionError(file)


def test_records_keep_their_order_and_content(world: Path, purged: tuple[Path, Path]):
    removed = {one.pair.id for one in GONE.values() if one.pair is not None}
    for split in ("train", "test"):
        before = [record for record in open_records(world / "atlas", split) if record.id not in removed]
        assert list(open_records(purged[1], split)) == before


def test_vectors_verdicts_and_urls_of_the_others_stay(world: Path, purged: tuple[Path, Path]):
    work, _ = purged
    names = json.loads((world / "work" / "vectors" / "clip.json").read_text())["digests"]
    left = json.loads((work / "vectors" / "clip.json").read_text())["digests"]
    array = np.load(work / "vectors" / "clip.npy")
    assert array.shape == (len(left), 3)
    assert [int(row[0]) // 3 for row in array] == [names.index(name) for name in left]
    verdicts = (work / "verdicts" / "human.jsonl").read_text().splitlines()
    kept = [one for one in STAY.values() if one.pair is not None and one.name != "short"]
    assert verdicts[0] == "not a verdict"
    assert len(verdicts) == 1 + len(kept)
    with sqlite3.connect(work / "hydration.sqlite") as database:
        urls = {row[0] for row in database.execute("SELECT url FROM urls")}
    database.close()
    assert urls == {one.pair.url for one in kept if one.pair is not None}
    assert not (work / "review").exists() or not list((work / "review").iterdir())
    rows = pq.read_table(purged[1] / "decisions.parquet").to_pylist()
    assert {row["post_id"] for row in rows} == {one.post.id for one in STAY.values()}


def test_the_report_names_no_id(world: Path, purged: tuple[Path, Path]):
    work, out = purged
    report = json.loads((work / takedown.REPORT_NAME).read_text())
    pairs = [one.pair.id for one in GONE.values() if one.pair is not None]
    assert report["found"]["pairs"] == len(set(pairs)) == 19
    assert report["found"]["posts"] == len(GONE) - 1  # one was refused at the source
    before, after = ({row["split"]: row for row in report[name]} for name in ("before", "after"))
    for split in ("train", "test"):
        assert before[split]["fingerprint"] == open_records(world / "atlas", split).fingerprint
        assert after[split]["fingerprint"] == open_records(out, split).fingerprint
    held = {row["fingerprint"]: row["held"] for row in report["datasets that held removed pairs"]}
    kept = [one.pair.split for one in GONE.values() if one.pair is not None and one.stage == "kept"]
    assert held == {before[split]["fingerprint"]: kept.count(split) for split in ("train", "test")}


def test_a_second_takedown_changes_nothing(world: Path, purged: tuple[Path, Path], tmp_path: Path):
    work, out = copied(purged[0].parent, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    content = snapshot(tmp_path)
    found = takedown.take_down(work, [out], requests_of(world), date="2024-06-02")
    assert found.counts["rows"] == 0
    # The history knows the copied folder as a new one; nothing else is written.
    history = {"work/fingerprints.jsonl"}
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert {str(path.relative_to(tmp_path)) for path in after if after[path] != before.get(path)} <= history
    assert {name: value for name, value in snapshot(tmp_path).items() if name not in history} == {
        name: value for name, value in content.items() if name not in history
    }


def test_a_folder_that_was_not_named_is_purged_later(world: Path, purged: tuple[Path, Path], tmp_path: Path):
    work, out = copied(purged[0].parent, tmp_path)
    shutil.copytree(world / "atlas", tmp_path / "older")
    takedown.take_down(work, [tmp_path / "older"], [], date="2024-06-02")
    assert byte_scan([tmp_path], gone_needles()) == []
    assert snapshot(tmp_path / "older") == snapshot(out)


def test_later_runs_refuse_what_was_removed(purged: tuple[Path, Path]):
    tombstones = Tombstones.load(purged[0])
    for name, one in GONE.items():
        assert tombstones.covers(one.post), name
        if one.pair is not None and name != "remark":
            assert tombstones.covers_image(one.pair.digest)
            assert tombstones.covers_image("", one.pair.phash)
    for name, one in STAY.items():
        assert not tombstones.covers(one.post), name
        assert one.pair is None or not tombstones.covers_image(one.pair.digest, one.pair.phash), name
    sha = GONE["sha"].pair
    assert sha is not None
    assert tombstones.covers_image("", f"{int(sha.phash, 16) ^ 1 << 40:016x}")
    assert tombstones.covers_image("", f"{int(sha.phash, 16) ^ 7 << 40:016x}")
    assert not tombstones.covers_image("", f"{int(sha.phash, 16) ^ 15 << 40:016x}")
    stones = {stand_in(one.post, tombstones.salt) for one in GONE.values() if one.stage != "source"}
    assert stones < {row for row in rows_of(purged[0], "source", "dropped") if row.reason == "takedown"}
    unchosen = tombstones.redact(STAY["unchosen"].post)
    assert unchosen in rows_of(purged[0], "source", "kept")


def test_a_dry_run_writes_nothing(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    work, out = copied(world, tmp_path)
    lines = [line for line in request_lines() if line.get("kind") not in ("author", "image")]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, lines)))
    before = snapshot(tmp_path)
    arguments = ["--work", str(work), "--out", str(out), "--requests", str(tmp_path / "asked.jsonl"), "--dry-run"]
    assert takedown.main(arguments) == 0
    assert snapshot(tmp_path) == before
    assert "would remove" in capsys.readouterr().out


class KilledError(BaseException):
    """The process is gone."""


def kill_at(monkeypatch: pytest.MonkeyPatch, last: int) -> Callable[[], int]:
    """Let every change of the file system fail from the one with this number on; returns how many there were."""
    count = 0

    def counted(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def changed(*args: object, **kwargs: object) -> object:
            nonlocal count
            count += 1
            if count > last:
                raise KilledError
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, changed)

    for name in ("replace", "rename", "unlink", "rmdir", "mkdir", "write_bytes", "write_text"):
        counted(Path, name)
    counted(shutil, "rmtree")
    return lambda: count


def kill_and_finish(world: Path, expected: Path, folder: Path, last: int) -> bool:
    """Kill a takedown behind a number of changes and run it again; says whether it got that far."""
    work, out = copied(world, folder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        kill_at(monkeypatch, last)
        try:
            takedown.take_down(work, [out], requests_of(world), date="2024-06-01")
        except KilledError:
            pass
        else:
            return False
    takedown.take_down(work, [out], requests_of(world), date="2024-06-01")
    assert comparable(folder) == comparable(expected), last
    # The other files are those of a takedown that the scan has seen.
    assert byte_scan([work / "hydration.sqlite"], gone_needles()) == [], last
    return True


def comparable(folder: Path) -> dict[str, str]:
    """Content of the files; what a database was packed to differs, and the name of the folder itself."""
    names = ("fingerprints.jsonl", takedown.REPORT_NAME)
    place = str(folder.resolve()).encode()
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {
        name: hashlib.sha256(data.replace(place, b"") if Path(name).name in names else data).hexdigest()
        for name, data in files.items()
        if not name.endswith(".sqlite")
    }


def test_a_killed_takedown_is_finished_by_the_next(world: Path, purged: tuple[Path, Path], tmp_path: Path):
    for last in (3, 8, 40, 112):
        assert kill_and_finish(world, purged[0].parent, tmp_path / str(last), last)


@pytest.mark.slow  # all of some hundred kills; the quick test takes four of them
def test_a_takedown_killed_anywhere_is_finished_by_the_next(world: Path, purged: tuple[Path, Path], tmp_path: Path):
    # Every third change: each takes a second, and there are more than 300. PLIP_JAX_KILL_EACH=1 kills at all of them.
    each = int(os.environ.get("PLIP_JAX_KILL_EACH", "3"))
    last = 0
    while kill_and_finish(world, purged[0].parent, tmp_path / str(last), last):
        shutil.rmtree(tmp_path / str(last))
        last += each
    assert last > 100
