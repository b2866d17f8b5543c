"""The command line of a takedown, and what the programs around it may rely on."""

import json
import shutil
from pathlib import Path

import pytest
from small_work import Entry, entry, make_image, write_world

from data_prep import takedown
from data_prep.removing.purge_records import record_ids
from data_prep.removing.takedown_requests import Request

GONE = entry("gone", 1)
WORLD = [GONE, *(entry(f"stay{number}", number) for number in range(2, 6))]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    write_world(tmp_path / "work", tmp_path / "atlas", WORLD)
    (tmp_path / "asked.jsonl").write_text(json.dumps({"kind": "post", "value": GONE.post.id}) + "\n")
    return tmp_path


def run(world: Path, *options: str) -> int:
    folders = ["--work", str(world / "work"), "--out", str(world / "atlas")]
    return takedown.main([*folders, "--requests", str(world / "asked.jsonl"), *options])


def ids(world: Path) -> set[str]:
    return {name for split in ("train", "test") for name in record_ids(world / "atlas", split)}


def test_the_program_removes_scans_and_reports(world: Path, capsys: pytest.CaptureFixture[str]):
    assert run(world, "--date", "2024-01-01") == 0
    told = capsys.readouterr().out
    assert "removed 1 posts, 1 pairs, 1 images" in told
    assert "needles: 0 found" in told
    assert GONE.post.id not in told
    report = (world / "work" / takedown.REPORT_NAME).read_text()
    assert json.loads(report)["date"] == "2024-01-01"
    assert GONE.post.id not in report
    assert len(ids(world)) == 4


def test_what_a_program_left_elsewhere_is_told(world: Path, capsys: pytest.CaptureFixture[str]):
    (world / "work" / "log.bin").write_text(f"fetched for {GONE.post.id}")
    assert run(world) == 1
    told = capsys.readouterr().out
    assert "log.bin" in told
    assert GONE.post.id not in told


def test_a_malformed_line_stops_everything(world: Path, capsys: pytest.CaptureFixture[str]):
    with (world / "asked.jsonl").open("a") as file:
        file.write('{"kind": "post"}\n')
    assert run(world) == 1
    assert "asked.jsonl line 2: it has no value" in capsys.readouterr().err
    assert len(ids(world)) == 5
    assert run(world, "--skip-malformed") == 0
    assert len(ids(world)) == 4


def test_a_folder_that_is_not_there_stops_everything(world: Path, capsys: pytest.CaptureFixture[str]):
    assert run(world, "--out", str(world / "atlsa")) == 1
    assert "atlsa: no such folder" in capsys.readouterr().err
    assert len(ids(world)) == 5


def test_a_killed_takedown_is_pending_until_it_is_finished(world: Path, monkeypatch: pytest.MonkeyPatch):
    work = world / "work"

    def killed(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(takedown, "purge_out", killed)
        with pytest.raises(KeyboardInterrupt):
            run(world)
    assert takedown.is_pending(work)
    journal = (work / takedown.JOURNAL_NAME).read_text()
    assert not any(secret in journal for secret in GONE.secrets)
    assert takedown.main(["--work", str(work)]) == 0  # the journal knows the records folder
    assert not takedown.is_pending(work)
    assert len(ids(world)) == 4


def test_the_hooks_are_called(world: Path):
    work, out = world / "work", world / "atlas"
    calls: list[object] = []
    hooks = takedown.Hooks(
        forget_urls=lambda path, urls: calls.append((path.name, list(urls))),
        rebuild_reports=lambda work, out: calls.append((work.name, out.name, len(ids(world)))) or "",
    )
    takedown.take_down(work, [out], [Request("post", f":{GONE.post.id}")], hooks=hooks)
    assert calls == [("hydration.sqlite", [GONE.post.media[0].url]), ("work", "atlas", 4)]


def test_authors_are_found_by_the_key(world: Path, monkeypatch: pytest.MonkeyPatch):
    hashes = {("x", "someone"): GONE.post.author}
    monkeypatch.setattr(takedown, "author_hasher", lambda *_, **__: lambda *author: hashes[author])
    (world / "asked.jsonl").write_text('{"kind": "author", "platform": "x", "value": "someone"}')
    assert run(world) == 1  # no key
    assert run(world, "--author-key", "key") == 0
    assert len(ids(world)) == 4


def test_scan_looks_for_texts_and_images(world: Path, capsys: pytest.CaptureFixture[str]):
    (world / "seen.png").write_bytes(GONE.clean)
    (world / "strange.png").write_bytes(make_image(99))
    (world / "needles.txt").write_text(f"{GONE.post.permalink}\nseen.png\nstrange.png\nnowhere to be found\n")
    arguments = ["scan", "--needles", str(world / "needles.txt"), str(world / "work"), str(world / "atlas")]
    assert takedown.main(arguments) == 1
    told = capsys.readouterr().out
    assert "needle line 1 " in told
    assert "needle line 2 " in told
    assert "line 3" not in told
    assert "line 4" not in told
    assert GONE.post.permalink not in told
    assert run(world) == 0
    assert takedown.main(arguments) == 0


def test_a_reposted_copy_of_a_copy_goes(tmp_path: Path):
    """Three posts in one duplicate group, no two of them with one hash: asking for one takes all."""
    first = entry("first", 1)
    second: Entry = entry("second", 2, copies=first, stage="duplicate", reason="near_copy")
    third = entry("third", 3, group=first.pair.duplicate_group if first.pair else "")
    write_world(tmp_path / "work", tmp_path / "atlas", [first, second, third, *WORLD[-2:]])
    shutil.rmtree(tmp_path / "work" / "stages" / "thread")  # a stage that is not there is passed over
    found = takedown.take_down(tmp_path / "work", [tmp_path / "atlas"], [Request("post", f"twitter:{third.post.id}")])
    assert found.counts["posts"] == 3
    assert found.counts["pairs"] == 3
    assert len(ids(tmp_path)) == 2
