"""Stages: the same bytes on every runner and in every order; what is finished is not done again."""

import dataclasses
import functools
from pathlib import Path

import pytest
from small_stages import conversation, even_only, pair

from data_prep.curation.engine import Engine, EngineError, EngineSettings, StageFolder, read_keyed, run_here, run_stage
from data_prep.curation.pair import Decision, Pair
from data_prep.curation.rows import part_files, read_rows, write_part

PARTS = 5


def run(work: Path, settings: EngineSettings, *, order: int = 1, fingerprint: str = "a", log: Path | None = None):
    parts = work / "in"
    if not parts.exists():
        for part in range(4):
            write_part(parts, part, [pair(number) for number in range(part * 25, part * 25 + 25)][::order])
    stage = StageFolder(work / "stages" / "text")
    with Engine(settings) as engine:
        run_stage(
            engine,
            stage,
            fingerprint,
            inputs=part_files(parts)[::order],
            read=functools.partial(read_keyed, kind=Pair, key=conversation, partitions=settings.partitions),
            kind=Pair,
            task=functools.partial(even_only, log=log),
        )
    return stage


def content(stage: StageFolder) -> dict[str, bytes]:
    return {str(path.relative_to(stage.folder)): path.read_bytes() for path in stage.folder.rglob("part-*")}


def test_a_stage_keeps_and_drops_and_counts(tmp_path):
    stage = run(tmp_path, EngineSettings(partitions=PARTS))
    kept, dropped = list(read_rows(stage.kept, Pair)), list(read_rows(stage.dropped, Decision))
    assert stage.counts() == {"kept": 50, "dropped": 50}
    assert {row.post_id for row in kept} == {f"{number:03d}" for number in range(0, 100, 2)}
    assert {(row.stage, row.reason, row.pair.raw_text) for row in dropped} == {("text", "odd", pair(1).raw_text)}
    # A conversation is in one part, and its rows come in the order of their lines.
    numbers = [int(row.caption) for row in sorted(kept, key=lambda row: row.id) if row.conversation_id == "s:0"]
    assert numbers == [1, 3, 5]


def test_order_and_number_of_workers_change_no_byte(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # where the workers find small_stages
    expected = content(run(tmp_path / "one", EngineSettings(partitions=PARTS)))
    assert len(expected) == 2 * PARTS  # the conversations fill them all
    assert content(run(tmp_path / "back", EngineSettings(partitions=PARTS), order=-1)) == expected
    assert content(run(tmp_path / "two", EngineSettings(partitions=PARTS, workers=2))) == expected


def test_a_cluster_of_two_workers_writes_the_same_bytes(tmp_path):
    pytest.importorskip("dask.distributed", reason="the runner's extra is not installed")
    expected = content(run(tmp_path / "one", EngineSettings(partitions=PARTS)))
    assert content(run(tmp_path / "dask", EngineSettings(runner="dask", workers=2, partitions=PARTS))) == expected


def test_what_is_finished_is_not_done_again(tmp_path):
    log = tmp_path / "log"
    settings = EngineSettings(partitions=PARTS)
    stage = run(tmp_path, settings, log=log)
    expected = content(stage)
    run(tmp_path, settings, log=log)
    assert len(log.read_text().split()) == PARTS  # the second run ran nothing
    (stage.folder / "DONE.json").unlink()  # killed: two parts are missing, one of them had written its drops
    for part in (1, 2):
        (stage.kept / f"part-{part:05d}.jsonl").unlink()
    (stage.dropped / "part-00002.jsonl").unlink()
    run(tmp_path, settings, log=log)
    assert len(log.read_text().split()) == PARTS + 2
    assert content(stage) == expected
    run(tmp_path, settings, log=log, fingerprint="b")  # other settings: all of it
    assert len(log.read_text().split()) == 2 * PARTS + 2


def test_another_number_of_parts_begins_an_unfinished_stage_anew(tmp_path):
    stage = run(tmp_path, EngineSettings(partitions=PARTS))
    (stage.folder / "DONE.json").unlink()
    (stage.kept / "part-00000.jsonl").unlink()
    again = run(tmp_path, EngineSettings(partitions=2))
    assert again.counts() == {"kept": 50, "dropped": 50}
    assert {row.post_id for row in read_rows(again.kept, Pair)} == {f"{number:03d}" for number in range(0, 100, 2)}


def test_a_kill_while_an_old_stage_is_removed_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    stage = run(tmp_path, EngineSettings(partitions=PARTS))

    def killed(folder: Path) -> None:
        (folder / "kept" / "part-00000.jsonl").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("data_prep.curation.engine.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, EngineSettings(partitions=PARTS), fingerprint="b")
    assert not stage.is_done("a")
    assert run(tmp_path, EngineSettings(partitions=PARTS)).counts() == {"kept": 50, "dropped": 50}


def test_a_stage_here_maps_part_to_part(tmp_path):
    before = run(tmp_path, EngineSettings(partitions=PARTS))
    stage = StageFolder(tmp_path / "stages" / "here")
    run_here(
        stage,
        "a",
        inputs=part_files(before.kept),
        kind=Pair,
        task=lambda part, rows: [dataclasses.replace(r, caption="x") for r in rows],
    )
    assert stage.counts() == {"kept": 50, "dropped": 0}
    assert [p.name for p in part_files(stage.kept)] == [p.name for p in part_files(before.kept)]


def test_an_unknown_runner_is_refused():
    with (
        pytest.raises(EngineError, match="known are local, dask"),
        Engine(EngineSettings("flnk")),
    ):
        pass
    with pytest.raises(EngineError, match="got 0 and 64"):
        EngineSettings(workers=0)
