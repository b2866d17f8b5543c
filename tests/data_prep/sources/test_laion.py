import csv
import dataclasses
import hashlib
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from write_tables import laion_table

from data_prep.sources.laion import LaionError, LaionSettings, read_posts
from data_prep.sources.post import Drop, Media, Post

ROW = {
    "URL": "https://x.example/melanoma.jpg",
    "TEXT": " Melanoma, high power ",
    "WIDTH": 640,
    "similarity": 0.33,
    "hash": -4_567_890_123,
    "LICENSE": "CC0",
    "punsafe": 0.01,
    "pwatermark": 0.2,
}
POST = Post(
    id=hashlib.sha256(b"https://x.example/melanoma.jpg").hexdigest()[:32],
    media=(Media(url="https://x.example/melanoma.jpg"),),
    captions=("Melanoma, high power",),
    source="laion",
    where="part.parquet row 0",
    licence="unknown",
    role="laion",
    safety=0.01,
)


def read(path, **own_settings):
    return list(read_posts(path, LaionSettings(**own_settings), source="laion"))


def numbered(count):
    return [ROW | {"URL": f"https://x.example/{n}.jpg", "TEXT": f"image {n}"} for n in range(count)]


@pytest.fixture
def part(tmp_path):
    return tmp_path / "part.parquet"


def test_a_row_is_a_post_whose_licence_nobody_knows(part):
    assert read(laion_table(part, [ROW])) == [POST]


def test_columns_are_found_in_any_case_and_by_other_names(part):
    row = {"url": ROW["URL"], "caption": "Melanoma", "PUNSAFE": 0.01, "LANGUAGE": "EN"}
    (post,) = read(laion_table(part, [row]))
    assert post == dataclasses.replace(POST, captions=("Melanoma",), language="en")
    renamed = {"link": ROW["URL"], "alt": "Melanoma", "nsfw_score": 0.01, "key": "0007"}
    (post,) = read(
        laion_table(part, [renamed]), url=("link",), text=("alt",), safety=("nsfw_score",), id=("hash", "key")
    )
    assert post == dataclasses.replace(POST, id="0007", captions=("Melanoma",))


def test_rows_at_or_above_the_limit_or_without_a_score_end_before_anything_of_them_is_used(part):
    scores = [0.0, 0.49, 0.5, 0.99, 1.0, None, float("nan"), 7.0, -0.5]
    rows = [ROW | {"URL": f"https://secret.example/{n}.jpg", "punsafe": score} for n, score in enumerate(scores)]
    found = read(laion_table(part, rows))
    assert [post.safety for post in found[:2]] == [0.0, 0.49]
    assert [drop.reason for drop in found[2:]] == ["unsafe_score"] * 7
    assert [drop.where for drop in found[2:]] == [f"part.parquet row {n}" for n in range(2, 9)]
    hashes = [hashlib.sha256(row["URL"].encode()).hexdigest()[:32] for row in rows]
    assert not any("secret" in str(drop) or any(one in str(drop) for one in hashes) for drop in found[2:])
    assert [isinstance(one, Drop) for one in read(part, max_unsafe=0.995)] == [False] * 4 + [True] * 5


def test_an_unsafe_row_without_an_address_says_nothing_of_it_either(part):
    assert read(laion_table(part, [ROW | {"URL": None, "punsafe": 0.9}, ROW]))[0].reason == "unsafe_score"


def test_a_table_without_a_score_is_refused_unless_it_is_of_a_cleaned_release(part):
    rows = [{"URL": ROW["URL"], "TEXT": "Melanoma"}]
    with pytest.raises(LaionError, match=r"no score of being unsafe \(looked for punsafe\).*cleaned_release=True"):
        read(laion_table(part, rows))
    (post,) = read(part, cleaned_release=True)
    assert (post.safety, post.licence) == (None, "unknown")
    # a score that is there is heeded all the same
    found = read(laion_table(part, [ROW | {"punsafe": 0.9}]), cleaned_release=True)
    assert [drop.reason for drop in found] == ["unsafe_score"]


def test_rows_that_cannot_be_used_are_counted(part):
    rows = [
        ROW | {"URL": None},
        ROW | {"URL": "data:image/png;base64,AAAA"},
        ROW | {"TEXT": None},
    ]
    found = read(laion_table(part, rows))
    assert found[:2] == [Drop("no_web_address", f"part.parquet row {n}") for n in (0, 1)]
    assert found[2].captions == ()
    found = read(laion_table(part, [ROW | {"TEXT": 7}]))
    assert found == [Drop("malformed", "part.parquet row 0", detail="text: expected a text, got a number")]


def test_an_id_column_must_give_ids(part):
    assert [post.id for post in read(laion_table(part, [ROW]), id=("hash",))] == ["-4567890123"]
    found = read(laion_table(part, [ROW | {"key": None}]), id=("key",))
    assert [drop.reason for drop in found] == ["malformed"]


def test_a_csv_gives_the_same_posts(tmp_path, part):
    rows = [*numbered(3), ROW | {"URL": "https://x.example/bad.jpg", "punsafe": 0.8}, ROW | {"punsafe": ""}]
    with (tmp_path / "part.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    from_csv = read(tmp_path / "part.csv")
    rows[-1]["punsafe"] = None
    from_parquet = read(laion_table(part, rows))
    assert [dataclasses.replace(one, where="") for one in from_csv] == [
        dataclasses.replace(one, where="") for one in from_parquet
    ]
    assert from_csv[3] == Drop("unsafe_score", "part.csv row 3")


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_neighbours_restrict_the_rows_numbered_over_all_files(tmp_path, suffix):
    table, rows = tmp_path / "table", numbered(17)
    (table / "sub").mkdir(parents=True)
    cuts = {"a": rows[:5], "b": rows[5:11], "sub/c": rows[11:]}  # in the order of their paths
    for name, part in reversed(cuts.items()):
        if suffix == "parquet":
            laion_table(table / f"{name}.parquet", part, group_rows=2)
        else:
            with (table / f"{name}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, part[0])
                writer.writeheader()
                writer.writerows(part)
    wanted = [16, 0, 4, 5, 9, 4]
    rows_file = tmp_path / "neighbours.parquet"
    neighbours = {"row": wanted, "similarity": [0.9] * 6, "query": ["q"] * 6}
    pyarrow.parquet.write_table(pa.table(neighbours), rows_file)
    found = []
    for name in cuts:
        found += read(table / f"{name}.{suffix}", rows_file=str(rows_file), root=str(table))
    assert [post.captions[0] for post in found] == [f"image {n}" for n in (0, 4, 5, 9, 16)]
    assert [post.where for post in found] == [
        f"{name}.{suffix} row {row}" for name, row in (("a", 0), ("a", 4), ("b", 0), ("b", 4), ("c", 5))
    ]


@settings(max_examples=25, deadline=None)
@given(wanted=st.sets(st.integers(0, 29)), group_rows=st.integers(1, 31))
def test_wanted_rows_are_those_of_a_full_reading(tmp_path_factory, wanted, group_rows):
    folder = tmp_path_factory.mktemp("t")
    table = laion_table(folder / "t.parquet", numbered(30), group_rows=group_rows)
    rows_file = folder / "rows.csv"  # beside the table, and no part of it
    rows_file.write_text("row\n" + "".join(f"{row}\n" for row in wanted))
    assert read(table, rows_file=str(rows_file)) == [read(table)[row] for row in sorted(wanted)]


def test_neighbours_that_were_found_again_are_read_again(tmp_path):
    table = laion_table(tmp_path / "part.parquet", [ROW | {"URL": f"https://x.example/{n}.jpg"} for n in range(4)])
    rows_file = tmp_path / "rows.csv"
    for wanted in ((0, 1), (2, 3)):
        rows_file.write_text("row\n" + "".join(f"{row}\n" for row in wanted))
        os.utime(rows_file, ns=(wanted[0], wanted[0]))
        expected = [f"https://x.example/{row}.jpg" for row in wanted]
        assert [post.media[0].url for post in read(table, rows_file=str(rows_file))] == expected


def test_groups_without_a_wanted_row_are_not_read(tmp_path, monkeypatch):
    table = laion_table(tmp_path / "t.parquet", numbered(40), group_rows=4)
    (tmp_path / "rows.csv").write_text("row\n3\n38\n")
    groups = []
    original = pyarrow.parquet.ParquetFile.iter_batches

    def counted(self, *arguments, row_groups, **options):
        groups.extend(row_groups)
        return original(self, *arguments, row_groups=row_groups, **options)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", counted)
    assert len(read(table, rows_file=str(tmp_path / "rows.csv"))) == 2
    assert groups == [0, 9]


def test_neighbours_of_another_table_are_refused(tmp_path):
    for name in ("here", "elsewhere"):
        (tmp_path / name).mkdir()
    elsewhere = laion_table(tmp_path / "elsewhere" / "u.parquet", numbered(3)).parent
    table = laion_table(tmp_path / "here" / "t.parquet", numbered(3))
    rows_file = tmp_path / "rows.csv"
    rows_file.write_text("row\n0\n3\n")
    with pytest.raises(LaionError, match=r"names rows 0 to 3, the table in .* has 3"):
        read(table, rows_file=str(rows_file))
    with pytest.raises(LaionError, match="set root to their folder"):
        read(table, rows_file=str(rows_file), root=str(elsewhere))
    for number, content in enumerate(
        ("row\n0.5\n", "row,x\n1\n", "row\n9223372036854775808\n", "number\n1\n", 'row\n"0\n')
    ):
        broken = tmp_path / f"{number}.csv"
        broken.write_text(content)
        with pytest.raises(LaionError, match=r"expected .* column 'row'"):
            read(table, rows_file=str(broken))


def test_tables_that_cannot_be_used_are_named(tmp_path, part):
    with pytest.raises(LaionError, match=r"no column for the url \(looked for URL\).*found: 'TEXT', 'punsafe'"):
        read(laion_table(part, [{"TEXT": "x", "punsafe": 0.1}]))
    with pytest.raises(LaionError, match=r"no column for the id \(looked for key\)"):
        read(laion_table(part, [ROW]), id=("key",))
    with pytest.raises(LaionError, match="not a whole parquet file"):
        read(tmp_path / "none.parquet")
    data = part.read_bytes()
    part.write_bytes(data[: len(data) // 2])
    with pytest.raises(LaionError, match="not a whole parquet file"):
        read(part)
    with pytest.raises(LaionError, match=r"none\.csv cannot be read"):
        read(tmp_path / "none.csv")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "URL": st.none() | st.text(max_size=8) | st.just("https://x.example/a.jpg"),
                "TEXT": st.none() | st.text(max_size=8),
                "punsafe": st.none() | st.floats(),
            }
        ),
        min_size=1,
        max_size=5,
    )
)
def test_every_row_is_a_post_or_a_drop(tmp_path_factory, rows):
    for row in rows:
        row["URL"] = row["URL"] and row["URL"].encode("utf-8", "replace").decode()
        row["TEXT"] = row["TEXT"] and row["TEXT"].encode("utf-8", "replace").decode()
    found = read(laion_table(tmp_path_factory.mktemp("t") / "t.parquet", rows))
    assert len(found) == len(rows)
    for row, one in zip(rows, found, strict=True):
        safe = row["punsafe"] is not None and 0 <= row["punsafe"] < 0.5
        assert isinstance(one, Drop) or safe
        assert one.reason != "unsafe_score" if isinstance(one, Drop) and safe else True


@pytest.mark.parametrize("kind", [pa.int64(), pa.list_(pa.string()), pa.binary(), pa.struct({"x": pa.int8()})])
def test_columns_of_another_type_are_malformed_rows(part, kind):
    value = {"list": ["a"], "bina": b"a", "stru": {"x": 1}}.get(str(kind)[:4], 5)
    columns = {"URL": pa.array([value], kind), "TEXT": pa.array(["x"]), "punsafe": pa.array(np.float32([0.1]))}
    pyarrow.parquet.write_table(pa.table(columns), part)
    assert [drop.reason for drop in read(part)] == ["malformed"]
    columns |= {"punsafe": columns["URL"], "URL": pa.array(["https://x.example/a"])}
    pyarrow.parquet.write_table(pa.table(columns), part)
    assert [drop.reason for drop in read(part)] == ["unsafe_score"]
