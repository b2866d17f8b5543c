"""Building records from a table: what is kept, what is dropped and said about it."""

import csv
import io
import json
import os
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data_prep import build, verify
from data_prep.seen_ids import SeenIds
from data_prep.sources.csv_table import Columns, TableError, read_posts
from data_prep.sources.post import Drop, Post
from plip_jax.data.records import open_records


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (6, 5, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


class Workspace:
    """A table, its images, and the command that builds from them."""

    def __init__(self, root: Path) -> None:
        self.root, self.images, self.out = root, root / "images", root / "set"
        self.images.mkdir()

    def image(self, *names: str) -> None:
        for name in names:
            (self.images / name).parent.mkdir(parents=True, exist_ok=True)
            (self.images / name).write_bytes(png(len(name)))

    def table(self, *rows, name: str = "captions.csv", delimiter: str = ",") -> None:
        with (self.root / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows(rows)

    def build(self, *arguments: str, name: str = "captions.csv") -> int:
        table, images, out = str(self.root / name), str(self.images), str(self.out)
        return build.main(["--source", "csv", "--table", table, "--images", images, "--out", out, *arguments])

    def report(self) -> dict:
        return json.loads((self.out / "build_report.json").read_text())


@pytest.fixture
def space(tmp_path) -> Workspace:
    return Workspace(tmp_path)


def test_rows_become_records(space, capsys):
    space.image("a/1.png", "2.png")
    space.table(["image", "caption"], ["a/1.png", " a gland,\nin two lines "], ["2.png", 'the "lumen"'])
    assert space.build() == 0
    first, second = open_records(space.out)
    assert (first.id, first.captions, first.image) == ("a/1.png", ("a gland,\nin two lines",), png(7))
    assert (first.group_id, first.source, first.label) == ("a/1.png", "captions", "")
    assert second.captions == ('the "lumen"',)
    assert "kept 2 (train 2)" in capsys.readouterr().out
    assert verify.main([str(space.out)]) == 0


def test_columns_are_chosen_by_name(space):
    space.image("1.png")
    space.table(["no", "file", "slide", "title", "text", "organ"], ["7", "1.png", "s1", "T", "", "colon"])
    chosen = ["--image-column", "file", "--caption-column", "title", "--caption-column", "text", "--id-column", "no"]
    assert space.build(*chosen, "--group-column", "slide", "--label-column", "organ", "--source-name", "atlas") == 0
    (record,) = open_records(space.out)
    assert (record.id, record.group_id, record.label, record.source) == ("7", "s1", "colon", "atlas")
    assert record.captions == ("T",)


def test_tab_separated_with_byte_order_mark(space):
    space.image("1.png")
    text = "\ufeffimage\tcaption\r\n1.png\ta, b\r\n"
    (space.root / "t.tsv").write_bytes(text.encode())
    assert space.build(name="t.tsv") == 0
    assert open_records(space.out)[0].captions == ("a, b",)


def test_every_drop_is_counted_and_listed(space, capsys):
    space.image("1.png", "2.png", "3.png")
    (space.images / "broken.png").write_bytes(png()[:60])
    (space.images / "empty.png").write_bytes(b"")
    (space.root / "secret.png").write_bytes(png())
    space.table(
        ["image", "caption", "id"],
        ["1.png", "one", "a"],
        ["2.png", "  ", "b"],
        ["2.png", "two", "a"],
        ["3.png", "three", ""],
        ["gone.png", "x", "c"],
        ["broken.png", "x", "d"],
        ["empty.png", "x", "e"],
        ["../secret.png", "x", "f"],
        [str(space.root / "secret.png"), "x", "g"],
        ["", "x", "h"],
        ["1.png", "too", "many", "fields"],
        ["nul\0.png", "x", "i"],
        [".", "x", "j"],
        ["3.png", "three", "k"],
    )
    assert space.build("--id-column", "id") == 0
    assert [record.id for record in open_records(space.out)] == ["a", "k"]
    report = space.report()
    assert report["dropped"] == {
        "bad_image": 2,
        "duplicate_id": 1,
        "empty_caption": 1,
        "empty_id": 1,
        "missing_file": 4,
        "outside_images": 2,
        "wrong_number_of_fields": 1,
    }
    assert (report["read"], report["kept"], report["drops_not_listed"]) == (14, {"train": 2}, 0)
    listed = {(drop["where"], drop["reason"]) for drop in report["drops"]}
    assert ("captions.csv line 7", "bad_image") in listed
    assert ("captions.csv line 9", "outside_images") in listed
    assert "2 bad_image, first: captions.csv line 7: d" in capsys.readouterr().out


def test_a_second_row_about_an_image_is_a_second_record_of_its_group(space):
    space.image("1.png")
    space.table(["image", "caption"], ["1.png", "a"], ["1.png", "b"], ["1.png", "a"])
    assert space.build() == 0
    assert [(r.id, r.group_id) for r in open_records(space.out)] == [("1.png", "1.png"), ("1.png#3", "1.png")]
    assert space.report()["dropped"] == {"duplicate_row": 1}


def test_nothing_kept_is_an_error_and_leaves_nothing(space, capsys):
    space.table(["image", "caption"], ["gone.png", "x"])
    assert space.build() == 1
    assert "nothing was kept" in capsys.readouterr().err
    assert not space.out.exists()
    assert not list(space.root.glob(".set*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"image,captoin\n", "no column 'caption' (nearest: 'captoin'). Columns found: 'image', 'captoin'"),
        (b"image,caption,caption\n", "2 columns named 'caption'"),
        (b"image,caption\nx,\xff\n", "not UTF-8"),
        (b'image,caption\nx,"never closed\n', "near line 1: unexpected end of data; is a quote not closed"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(space, capsys, content, message):
    (space.root / "captions.csv").write_bytes(content)
    assert space.build() == 1
    assert message in capsys.readouterr().err


def test_missing_inputs_and_bad_options_say_so(space, capsys):
    space.image("1.png")
    assert space.build() == 1
    assert "captions.csv cannot be read" in capsys.readouterr().err
    space.table(["image", "caption"], ["1.png", "a"])
    for options, message in [
        (["--holdout", "test=1.5"], "expected NAME=SHARE"),
        (["--holdout", "train=0.1"], "not train"),
        (["--holdout", "a=0.6", "--holdout", "b=0.6"], "nothing is left for train"),
        (["--images", str(space.root / "none")], "no such folder"),
    ]:
        assert space.build(*options) == 1
        assert message in capsys.readouterr().err
    assert space.build() == 0
    assert space.build() == 1
    assert "--overwrite" in capsys.readouterr().err
    assert space.build("--overwrite") == 0


def test_holdout_keeps_groups_together_and_has_the_asked_size(space):
    space.image(*(f"{i}.png" for i in range(400)))
    space.table(["image", "caption", "slide"], *([f"{i}.png", f"c{i}", f"s{i // 2}"] for i in range(400)))
    assert space.build("--group-column", "slide", "--holdout", "test=0.2", "--holdout", "val=0.1") == 0
    groups = {split: Counter(r.group_id for r in open_records(space.out, split)) for split in ("train", "test", "val")}
    assert all(set(counts.values()) == {2} for counts in groups.values())
    # 200 groups: three standard deviations are 17 of an expected 40 and 13 of 20
    assert 23 <= len(groups["test"]) <= 57
    assert 7 <= len(groups["val"]) <= 33
    first = set(groups["test"])
    assert space.build("--group-column", "slide", "--holdout", "test=0.2", "--seed", "1", "--overwrite") == 0
    assert first != {r.group_id for r in open_records(space.out, "test")}


def test_an_empty_holdout_is_pointed_out(space, capsys):
    space.image("1.png")
    space.table(["image", "caption"], ["1.png", "a"])
    assert space.build("--holdout", "test=0.001") == 0
    assert "split 'test' is empty" in capsys.readouterr().out


def test_equal_input_gives_byte_equal_folders(tmp_path):
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        space = Workspace(tmp_path / name)
        space.image("1.png", "2.png")
        space.table(["image", "caption"], ["1.png", "a"], ["2.png", "b"], ["3.png", "c"])
        assert space.build("--holdout", "test=0.5") == 0
        contents.append({p.relative_to(space.out): p.read_bytes() for p in space.out.rglob("*") if p.is_file()})
    assert contents[0] == contents[1]


def test_memory_does_not_grow_with_the_table(tmp_path):
    table = tmp_path / "t.csv"
    peaks = []
    for rows in (500, 4_000):
        with table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "caption"])
            writer.writerows([f"{i}.png", "caption " * 500] for i in range(rows))
        tracemalloc.start()
        assert sum(isinstance(post, Post) for post in read_posts(table, Columns(), source="t")) == rows
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # the table grew by 14 MB; what stays is a hash of each id and row
    assert peaks[1] - peaks[0] < 2_000_000


def test_seen_ids_remembers_across_its_internal_merges(monkeypatch):
    monkeypatch.setattr(SeenIds, "_PENDING", 7)
    seen = SeenIds()
    assert all(seen.add(f"id{i}") for i in range(100))
    assert not any(seen.add(f"id{i}") for i in range(100))
    assert seen.add("another")


def test_read_posts_yields_drops_in_place(tmp_path):
    (tmp_path / "t.csv").write_text('image,caption\na,"x\ny"\n\nb\nc,z\n')
    kinds = [(type(p), p.where) for p in read_posts(tmp_path / "t.csv", Columns(), source="t")]
    assert kinds == [(Post, "t.csv line 2"), (Drop, "t.csv line 5"), (Post, "t.csv line 6")]
    with pytest.raises(TableError, match="cannot be read"):
        list(read_posts(tmp_path / "none.csv", Columns(), source="t"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_in_the_images_folder_does_not_hang_the_build(space):
    space.image("1.png")
    os.mkfifo(space.images / "pipe.png")
    space.table(["image", "caption"], ["pipe.png", "x"], ["1.png", "y"])
    assert space.build() == 0
    assert space.report()["dropped"] == {"missing_file": 1}


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pathology_atlas", ["--label-column", "organ", "--holdout", "test=0.1"]),
        ("openstax_histology", ["--caption-column", "title", "--caption-column", "caption", "--caption-column", "alt"]),
    ],
)
def test_real_tables_build_verify_and_open_in_three_readers(realdata, tmp_path, name, options):
    table, out = realdata / name / "captions.csv", tmp_path / name
    arguments = ["--source", "csv", "--table", str(table), "--images", str(realdata / name), "--out", str(out)]
    assert build.main([*arguments, *options]) == 0
    assert verify.main([str(out)]) == 0
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    by_folder, by_name = tfds.builder_from_directory(out).as_data_source(), tfds.data_source(name, data_dir=tmp_path)
    ids = []
    for split in by_folder:
        ours = open_records(out, split)
        assert len(ours) == len(by_folder[split]) == len(by_name[split])
        assert by_folder[split][0]["id"].decode() == by_name[split][0]["id"].decode() == ours[0].id
        ids.extend(record.id.partition("#")[0] for record in ours)
    assert sorted(ids) == sorted(row["image"] for row in rows)
