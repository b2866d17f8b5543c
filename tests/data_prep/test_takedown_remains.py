"""What a takedown must not leave: in older datasets, beside folders, in other sources, in what a killed run made."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from small_work import Entry, entry, write_stages, write_world

from data_prep import takedown
from data_prep.curation import authors
from data_prep.curation.pair import STAGES, Decision, Pair
from data_prep.curation.rows import read_rows
from data_prep.removing.byte_scan import byte_scan, text_needles
from data_prep.removing.purge_records import record_ids
from data_prep.removing.takedown_requests import Request
from data_prep.sources.post import Post

GONE = entry("gone", 1)
OTHERS = [entry(f"stay{number}", number) for number in range(2, 6)]
WORLD = [GONE, *OTHERS]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    write_world(tmp_path / "work", tmp_path / "atlas", WORLD)
    ask(tmp_path, {"kind": "post", "value": GONE.post.id})
    return tmp_path


def ask(world: Path, *lines: dict[str, str]) -> None:
    (world / "asked.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def run(world: Path, *options: str, out: str = "atlas") -> int:
    folders = ["--work", str(world / "work"), "--out", str(world / out)]
    return takedown.main([*folders, "--requests", str(world / "asked.jsonl"), *options])


def ids(out: Path) -> set[str]:
    return {name for split in ("train", "test") for name in record_ids(out, split)}


def rows(work: Path, stage: str, name: str, kind: type) -> list:
    return list(read_rows(work / "stages" / stage / name, kind))


def pair_of(one: Entry) -> Pair:
    assert one.pair is not None
    return one.pair


def test_a_dataset_of_rows_that_the_stages_forgot_is_purged(world: Path):
    """The work folder has gone on to another dump; one pair is known from the decisions, the other by its id alone."""
    shutil.rmtree(world / "work" / "stages")
    write_stages(world / "work", OTHERS[1:])
    ask(world, {"kind": "image", "value": pair_of(GONE).digest}, {"kind": "post", "value": OTHERS[0].post.id})
    (world / "bare").mkdir()
    shutil.copytree(world / "atlas", world / "bare" / "atlas")
    (world / "bare" / "atlas" / "decisions.parquet").unlink()
    assert run(world, "--out", str(world / "bare" / "atlas")) == 0
    for out in (world / "atlas", world / "bare" / "atlas"):
        assert ids(out) == {pair_of(one).id for one in OTHERS[1:]}
    assert byte_scan([world / "work", world / "atlas"], {"url": text_needles(GONE.post.media[0].url)}) == []


def test_a_dataset_that_is_not_named_stops_everything(world: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(world / "atlas", world / "older")
    ask(world)
    assert run(world, "--out", str(world / "older")) == 0
    ask(world, {"kind": "post", "value": GONE.post.id})
    assert run(world) == 1
    assert "older: made of" in capsys.readouterr().err
    assert len(ids(world / "atlas")) == 5
    (world / "older").rename(world / ".older.old")  # a publishing that was killed between its renames
    assert run(world) == 1
    assert run(world, "--out", str(world / "older")) == 0
    assert len(ids(world / "older")) == 4
    shutil.rmtree(world / "older")
    assert takedown.main(["--work", str(world / "work"), "--out", str(world / "atlas")]) == 0


@pytest.mark.parametrize("name", [".atlas.partial", ".atlas.old", ".atlas.changed", ".atlas.partial-77"])
def test_what_a_killed_publishing_left_beside_is_removed(world: Path, name: str):
    shutil.copytree(world / "atlas", world / name)
    (world / ".atlas.notes").mkdir()
    assert run(world) == 0
    assert not (world / name).exists()
    assert (world / ".atlas.notes").exists()


def in_source(one: Entry, source: str, **of_post: object) -> Entry:
    """The same post as another source tells it."""
    pair = pair_of(one)
    changed = {"id": pair.id.replace("twitter:", f"{source}:"), "source": of_post.pop("called", source), "author": ""}
    return dataclasses.replace(
        one,
        post=dataclasses.replace(one.post, source=source, author="", **of_post),
        pair=dataclasses.replace(pair, **changed, image_author="", digest="9" * 64, clean_digest="8" * 64, phash=""),
    )


def write_run(world: Path, **sources: str) -> None:
    blocks = {"sources": {name: {"kind": kind} for name, kind in sources.items()}}
    (world / "work" / "run.json").write_text(json.dumps(blocks))


def test_a_post_goes_from_all_sources_of_its_platform(tmp_path: Path):
    again = in_source(GONE, "table", id=f"{GONE.post.id}#2")
    again = dataclasses.replace(again, pair=dataclasses.replace(pair_of(again), post_id=f"{GONE.post.id}#2"))
    elsewhere = in_source(OTHERS[0], "figures", id=GONE.post.id)
    moved = dataclasses.replace(pair_of(elsewhere), post_id=GONE.post.id, digest="7" * 64, clean_digest="6" * 64)
    elsewhere = dataclasses.replace(elsewhere, pair=moved)
    write_stages(tmp_path / "work", [*WORLD[:1], *OTHERS[1:], again, elsewhere])
    write_run(tmp_path, twitter="x_v2", table="openpath_csv", figures="figures")
    asked = Request("author", GONE.post.author)
    found = takedown.take_down(tmp_path / "work", [], [asked])
    left = {(post.source, post.id) for post in rows(tmp_path / "work", "source", "kept", Post)}
    assert left == {("figures", GONE.post.id), *(("twitter", one.post.id) for one in OTHERS[1:])}
    assert found.unmatched == ()
    assert found.repeated == {"ids and texts": 1, "rows": 9}  # the id, which in another source is another thing
    later = takedown.Tombstones.load(tmp_path / "work")
    assert later.covers(again.post)
    assert not later.covers(elsewhere.post)


def test_the_image_of_a_tables_reply_stays_with_its_post(tmp_path: Path):
    """A row of the released table for a reply has the image that it was about, and nobody said whose that is."""
    reply = in_source(GONE, "table", role="reply", called="table_reply")
    shown = dataclasses.replace(OTHERS[0], pair=dataclasses.replace(pair_of(OTHERS[0]), digest="9" * 64))
    for entries, goes in (([reply, shown], False), ([reply], True)):
        work = tmp_path / str(len(entries))
        write_stages(work, [*entries, *OTHERS[1:]])
        found = takedown.take_down(work, [], [Request("post", f":{GONE.post.id}")])
        assert ("9" * 64 in found.targets["image"]) == goes
        assert found.counts["posts"] == 1


def test_a_text_that_others_repeat_is_told(world: Path, capsys: pytest.CaptureFixture[str]):
    copied = dataclasses.replace(OTHERS[0].post, captions=GONE.post.captions)
    repeats = dataclasses.replace(OTHERS[0], post=copied)
    shutil.rmtree(world / "work" / "stages")
    write_stages(world / "work", [GONE, repeats, *OTHERS[1:]])
    assert run(world) == 2
    told = capsys.readouterr().err
    assert "1 ids and texts of removed posts, still said by 1 other rows" in told
    assert GONE.post.captions[0] not in told
    report = json.loads((world / "work" / takedown.REPORT_NAME).read_text())
    assert report["still said by other rows"] == {"ids and texts": 1, "rows": 1}


def test_what_a_later_run_refused_goes_with_its_post(world: Path):
    """After a takedown another post brings the image back; the next takedown leaves neither it nor a post without."""
    assert run(world) == 0
    again = entry("again", 9, copies=GONE, same_bytes=True, stage="image", reason="takedown")
    blanked = dataclasses.replace(entry("blanked", 10), stage="hydrate", reason="takedown")
    shutil.rmtree(world / "work" / "stages")
    write_stages(world / "work", [again, blanked, *OTHERS])
    ask(world, {"kind": "post", "value": OTHERS[0].post.id})
    assert run(world) == 0
    work = world / "work"
    assert {post.id for post in rows(work, "source", "kept", Post)} == {one.post.id for one in OTHERS[1:]}
    assert len(rows(work, "source", "dropped", Decision)) == 3  # stand-ins: every post is accounted for
    assert not [row for stage in STAGES[1:] for row in rows(work, stage, "dropped", Decision)]


def test_a_repost_that_comes_later_is_refused(world: Path):
    assert run(world) == 0
    later = takedown.Tombstones.load(world / "work")
    repost = Post("77", source="twitter", kind="repost", reply_to=GONE.post.id, captions=("RT @someone: cut",))
    assert later.covers(repost)
    assert not later.covers(dataclasses.replace(repost, kind="reply"))
    assert not later.covers(dataclasses.replace(repost, reply_to=OTHERS[0].post.id))


def test_a_stage_that_plans_over_all_pairs_begins_anew(world: Path):
    for stage in ("duplicate", "split"):
        (world / "work" / "stages" / stage / "plan.json").write_text('{"pairs": 5}')
    (world / "work" / "stages" / "split" / "DONE.json").unlink()  # killed in it: some parts are finished
    assert run(world) == 0
    assert not (world / "work" / "stages" / "split").exists()
    plan = json.loads((world / "work" / "stages" / "duplicate" / "plan.json").read_text())
    assert plan["pairs"] == 5
    assert plan["note"].startswith("as planned")


def test_image_bytes_that_lie_about_are_found(world: Path, capsys: pytest.CaptureFixture[str]):
    (world / "work" / "cache.bin").write_bytes(b"some" + GONE.original)
    assert run(world) == 1
    assert "cache.bin: needle image 1" in capsys.readouterr().out


def test_verdicts_elsewhere_are_told_and_those_inside_purged(world: Path, capsys: pytest.CaptureFixture[str]):
    verdicts = "".join(json.dumps({"id": pair_of(one).id, "keep": True}) + "\n" for one in (GONE, OTHERS[0]))
    inside, outside = world / "work" / "judged.txt", world / "judged.jsonl"
    for path in (inside, outside):
        path.write_text(verdicts)
    files = [str(inside), str(outside), str(world / "lost.jsonl")]
    (world / "work" / "run.json").write_text(json.dumps({"verdicts": {"files": files}}))
    assert run(world) == 2
    told = capsys.readouterr().err
    assert f"{outside} has 1 verdicts" in told
    assert "lost.jsonl, with verdicts, is no longer there" in told
    assert outside.read_text() == verdicts
    assert inside.read_text() == verdicts.splitlines(keepends=True)[1]
    report = json.loads((world / "work" / takedown.REPORT_NAME).read_text())
    assert report["verdicts elsewhere about removed pairs, yours to purge"] == {files[1]: 1, files[2]: None}


def test_requests_about_nothing_are_named_by_their_lines(world: Path, capsys: pytest.CaptureFixture[str]):
    ask(
        world,
        {"kind": "post", "value": "1367000000000000005"},
        {"kind": "url", "value": f"https://twitter.com/someone/status/{GONE.post.id}?s=20"},
        {"kind": "post", "source": "x", "value": OTHERS[0].post.id},
        {"kind": "image", "value": "a" * 64},
        {"id": "1367000000000000006", "action": "delete"},
    )
    assert run(world, "--dry-run") == 2
    assert run(world) == 2
    told = capsys.readouterr()
    assert "2 requests are about nothing that is here: asked.jsonl line 1, 4." in told.err
    assert "1 events are about nothing" in told.out
    assert "13670000" not in told.err + told.out
    assert len(ids(world / "atlas")) == 3


def test_another_key_is_refused(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(authors, "key_check", lambda key: key.secret.hex(), raising=False)
    authors.make_author_key(world / "key")
    authors.make_author_key(world / "other")
    (world / "work" / "author_key_check").write_text((world / "key").read_bytes().hex() + "\n")
    ask(world, {"kind": "author", "platform": "twitter", "value": "7"})
    assert run(world, "--author-key", str(world / "other")) == 1
    assert "made with another key" in capsys.readouterr().err
    assert run(world, "--author-key", str(world / "key")) == 2  # it is followed, and nobody is there


def test_reports_that_cannot_be_made_do_not_hold_the_takedown_up(world: Path):
    told: list[str] = []
    hooks = takedown.Hooks(rebuild_reports=lambda work, out: "stages of two runs", tell=told.append)
    asked = [Request("post", f":{GONE.post.id}")]
    takedown.take_down(world / "work", [world / "atlas"], asked, hooks=hooks)
    assert not takedown.is_pending(world / "work")
    assert len(told) == 1
    assert told[0].endswith("atlas: its reports still count what was removed: stages of two runs")


def test_reports_are_made_after_a_kill(world: Path):
    made: list[str] = []

    def killed(work: Path, out: Path) -> str:
        assert not takedown.is_pending(work)  # what counts is finished
        raise KeyboardInterrupt

    hooks = takedown.Hooks(rebuild_reports=killed)
    with pytest.raises(KeyboardInterrupt):
        takedown.take_down(world / "work", [world / "atlas"], [Request("post", f":{GONE.post.id}")], hooks=hooks)
    hooks = takedown.Hooks(rebuild_reports=lambda work, out: made.append(out.name) or "")
    for _ in range(2):
        takedown.take_down(world / "work", [], [], hooks=hooks)
    assert made == ["atlas"]
