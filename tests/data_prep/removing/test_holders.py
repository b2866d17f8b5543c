"""Who held removed records: the history of a folder, and the runs that say they read it."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from small_records import write_tiles

from data_prep.removing.holders import Dataset, datasets_that_held, find_holders, read_history, record_fingerprints
from data_prep.removing.purge_records import remove_records
from data_prep.removing.tombstones import load_salt, seal
from plip_jax.data.pipeline import DataConfig, SourceConfig, make_train_iterator
from plip_jax.data.records import open_records


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiles(tmp_path_factory.mktemp("tiles") / "tiles", count=14, tests=4)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def tokenize(texts: list[str]):
    raise AssertionError("no text is read")


def write_checkpoint(workdir: Path, step: int, config: dict, data_state: dict) -> None:
    """What of a checkpoint tells its data; the layout is orbax's."""
    folder = workdir / "checkpoints" / str(step)
    folder.mkdir(parents=True)
    said = {"custom_metadata": {"config": config, "data_state": data_state}}
    (folder / "_CHECKPOINT_METADATA").write_text(json.dumps(said))


def train(workdir: Path, *folders: Path, step: int = 5, seed: int = 3, init_from: str = "") -> None:
    """Write the checkpoint that a run on these folders would."""
    sources = tuple(SourceConfig(str(folder)) for folder in folders)
    data = DataConfig(sources, global_batch_size=4, image_size=32, seed=seed, packing=False)
    iterator = make_train_iterator(data, tokenize)  # type: ignore[arg-type] # nothing is tokenized
    config = {"seed": seed, "data.global_batch_size": 4, "model.init_from": init_from}
    for number, folder in enumerate(folders):
        block = f"data.sources.s{number}"
        config |= {f"{block}.path": str(folder), f"{block}.split": "train", f"{block}.weight": None}
    config["data.sources.more.path"] = ""
    write_checkpoint(workdir, step, config, iterator.get_state())


def test_each_state_is_recorded_once(tiles: Path, work: Path, tmp_path: Path):
    out = shutil.copytree(tiles, tmp_path / "tiles")
    first = record_fingerprints(work, out, date="2024-01-01")
    assert [(one.split, one.records, one.date) for one in first] == [
        ("test", 4, "2024-01-01"),
        ("train", 10, "2024-01-01"),
    ]
    assert first[1].fingerprint == open_records(out, "train").fingerprint
    record_fingerprints(work, out, date="2024-02-02")
    assert read_history(work) == first
    remove_records(out, lambda record: record.id == "tile3")
    second = record_fingerprints(work, out, date="2024-03-03")
    assert second[0].fingerprint == first[0].fingerprint
    assert [(one.split, one.records, one.date) for one in read_history(work)[2:]] == [("train", 9, "2024-03-03")]


def test_what_held_an_id_is_told_without_it(tiles: Path, work: Path, tmp_path: Path):
    out = shutil.copytree(tiles, tmp_path / "tiles")
    before = {one.split: one.fingerprint for one in record_fingerprints(work, out)}
    remove_records(out, lambda record: record.id == "tile3")
    record_fingerprints(work, out)
    salt = load_salt(work)
    asked = [seal(salt, "pair", name) for name in ("tile3", "tile13", "tile99")]
    assert datasets_that_held(work, asked) == {before["train"]: 1, before["test"]: 2 - 1}
    assert datasets_that_held(work, [seal(salt, "pair", "tile99")]) == {}
    assert not any(b"tile" in path.read_bytes() for path in (work / "fingerprints").iterdir())


def test_runs_on_data_that_held_it_are_found(tiles: Path, work: Path, tmp_path: Path):
    out = shutil.copytree(tiles, tmp_path / "tiles")
    other = write_tiles(tmp_path / "other", count=12)
    runs = tmp_path / "runs"
    before = {one.split: one.fingerprint for one in record_fingerprints(work, out)}
    train(runs / "alone", out)
    train(runs / "mixed", other, out)
    train(runs / "elsewhere", other)
    train(runs / "deep" / "after", other, init_from=str(runs / "alone"))
    remove_records(out, lambda record: record.id == "tile3")
    record_fingerprints(work, out)
    train(runs / "alone", out, step=9)  # it went on with what is left
    train(runs / "clean", out)
    (runs / "notes" / "checkpoints" / "1").mkdir(parents=True)
    found = find_holders([runs], read_history(work), [before["train"]])
    told = [(Path(one.workdir).name, one.step, one.evidence) for one in found]
    assert sorted(told) == [
        ("after", 5, "init_from"),
        ("alone", 5, "fingerprint"),
        ("alone", 9, "earlier step"),
        ("clean", 5, "folder"),
        ("mixed", 5, "fingerprint"),
    ]


def test_a_run_that_records_fingerprints_needs_no_data(tmp_path: Path):
    write_checkpoint(tmp_path / "run", 2, {}, {"records": ["abc", "def"]})
    history = [Dataset("/gone", "train", "def", 7)]
    assert [dataclasses.astuple(one)[1:] for one in find_holders([tmp_path / "run"], history, ["def"])] == [
        (2, "fingerprint")
    ]
    assert find_holders([tmp_path / "run"], history, ["other"]) == []
