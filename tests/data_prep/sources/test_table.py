import dataclasses

import pytest

from data_prep.sources.post import Drop, Post
from data_prep.sources.table import SOURCES, SourceError, find_source, input_files


def test_every_source_has_a_reader_and_settings_with_defaults():
    for name, source in SOURCES.items():
        assert dataclasses.is_dataclass(source.settings), name
        assert source.settings.__dataclass_params__.frozen, name
        kinds = {type(value) for value in dataclasses.asdict(source.settings()).values()}
        assert kinds <= {str, int, float, bool, tuple, type(None)}, name
        assert callable(source.read), name


def test_one_person_has_one_platform():
    platforms = {name: source.platform for name, source in SOURCES.items()}
    assert {platforms[name] for name in ("instagram", "instaloader", "instagram_mobile")} == {"instagram"}


def test_an_unknown_source_names_the_nearest_and_the_known():
    with pytest.raises(SourceError, match=r"no source 'redit' \(nearest: 'reddit'\); known are .*instagram, .*ipath"):
        find_source("redit")


def test_the_files_of_a_folder_are_in_the_order_of_their_paths(tmp_path):
    names = ["b/1.json", "B.JSON.XZ", "a.jsonl.gz", "b.ndjson", "b/readme.txt", ".c.json", ".d/e.json", "c.csv"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in input_files("instagram", tmp_path)]
    assert found == ["B.JSON.XZ", "a.jsonl.gz", "b.ndjson", "b/1.json"]
    assert input_files("csv", tmp_path) == [tmp_path / "c.csv"]
    assert input_files("folder", tmp_path) == [tmp_path]
    assert input_files("csv", tmp_path / "b" / "readme.txt") == [tmp_path / "b" / "readme.txt"]


def test_a_dump_without_an_ending_is_found(tmp_path):
    for name in ("RS_2019-01", "RS_2019-02.zst", "pathology_submissions.zst"):
        (tmp_path / name).touch()
    assert len(input_files("reddit", tmp_path)) == 3


def test_a_folder_without_files_of_the_source_says_what_was_looked_for(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(SourceError, match=r"no file of a source 'laion' in it; expected \*\.parquet, \*\.csv"):
        input_files("laion", tmp_path)
    with pytest.raises(SourceError, match="found nothing there"):
        input_files("laion", tmp_path / "none")


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("csv", "t.csv", "image,caption\n1.png,x\n"),
        ("figures", "t.csv", "image,caption\n1.png,x\n"),
        ("ipath", "t.csv", "image,caption\n1.png,x\n"),
        ("laion", "t.csv", "URL,TEXT,punsafe\nhttps://x.example/1.png,x,0.1\n"),
        ("instagram", "t.json", "{}"),
        ("instaloader", "t.json", "{}"),
        ("instagram_mobile", "t.json", "{}"),
        ("reddit", "t.json", "{}"),
    ],
)
def test_all_are_read_in_one_form(tmp_path, kind, name, text):
    (tmp_path / name).write_text(text)
    source = find_source(kind)
    (path,) = input_files(kind, tmp_path)
    (found,) = source.read(path, source.settings(), source="s")
    assert isinstance(found, Drop if name.endswith("json") else Post)
    assert isinstance(found, Drop) or found.source == "s"
