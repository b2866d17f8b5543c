import dataclasses
import hashlib
import json

import pytest

from data_prep.sources.csv_table import TableError
from data_prep.sources.figures import FigureSettings, read_posts
from data_prep.sources.post import Drop, Media, Post


def read(path, rows, **own_settings):
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return list(read_posts(path, FigureSettings(**own_settings), source="figures"))


@pytest.fixture
def table(tmp_path):
    return tmp_path / "figures.json"


def test_a_row_of_a_table_of_articles(tmp_path):
    text = (
        'PMCID,Figure ID,panel,caption,file_name,license\nPMC123,F2,b," Mitoses (arrows), x400 ",PMC123_F2b.jpg,CC BY\n'
    )
    (post,) = read(tmp_path / "figures.csv", text)
    assert post == Post(
        id="PMC123-F2-b",
        media=(Media(path="PMC123_F2b.jpg"),),
        captions=("Mitoses (arrows), x400",),
        source="figures",
        where="figures.csv line 2",
        licence="CC BY",
        group_id="PMC123",
    )


def test_arch_s_captions(table):
    rows = {
        "0": {"figure_id": "00", "letter": "A", "caption": "Lymphocytes", "uuid": "890e2e79-ab0a"},
        "1": {"figure_id": "00", "letter": None, "caption": "Plasma cells", "uuid": "890e2e79-ab0b"},
    }
    posts = read(table, rows, image_suffix=".png")
    assert [(post.id, post.media[0].path, post.group_id) for post in posts] == [
        ("890e2e79-ab0a", "890e2e79-ab0a.png", "00"),
        ("890e2e79-ab0b", "890e2e79-ab0b.png", "00"),
    ]


def test_the_address_is_taken_where_no_file_is_named(table):
    rows = [
        {"id": 1, "caption": "x", "url": "https://x.example/1.jpg", "image": None},
        {"id": 2, "caption": "x", "url": "https://x.example/2.jpg", "image": "2.jpg"},
    ]
    assert [post.media for post in read(table, rows)] == [
        (Media(url="https://x.example/1.jpg"),),
        (Media(path="2.jpg"),),
    ]


def test_ids_that_repeat_are_told_apart(table):
    rows = [{"figure": "3", "caption": "x", "image": f"{n}.jpg"} for n in range(3)]
    rows.insert(1, {"id": "3#2", "caption": "x", "image": "9.jpg"})
    assert [post.id for post in read(table, rows)] == ["3", "3#2", "3#3", "3#4"]


def test_malformed_rows_are_counted_and_the_others_stay(table):
    good = {"id": "good", "caption": "", "image": "1.jpg"}
    rows = [
        {"id": "a", "caption": "x"},
        {"id": "b", "caption": "x", "url": "ftp://x"},
        {"caption": "x", "url": "https://x.example/1.jpg"},
        {"id": "c", "caption": ["Dr. Secret"], "image": "1.jpg"},
        {"id": {"x": 1}, "caption": "x", "image": "1.jpg"},
        good,
    ]
    *drops, post = read(table, rows)
    assert [(drop.reason, drop.detail) for drop in drops] == [
        ("malformed", "image: expected a file name or a web address"),
        ("malformed", "image: expected a file name or a web address"),
        ("malformed", "id: expected one, or an article, a figure or a file name"),
        ("malformed", "caption: expected a text or a number, got a list"),
        ("malformed", "id: expected a text or a number, got an object"),
    ]
    assert (post.id, post.captions) == ("good", ())


def test_columns_are_a_setting_and_a_table_without_them_is_refused(tmp_path):
    own = {"caption": ("legend",), "image": ("graphic",), "url": ()}
    (post,) = read(tmp_path / "t.csv", "graphic,legend\n1.jpg,x\n", **own)
    assert (post.id, post.captions) == (hashlib.sha256(b"1.jpg").hexdigest()[:32], ("x",))
    with pytest.raises(TableError, match=r"no column for the image or its address \(looked for graphic\)"):
        read(tmp_path / "t.csv", "image,legend\n", **own)


def test_drops_of_the_table_pass_through(tmp_path):
    assert read(tmp_path / "t.jsonl", '{"id": 1, "caption": "x", "image": "a.png"}\n{"id"\n')[1] == Drop(
        "malformed", "t.jsonl line 2", detail="Expecting ':' delimiter at line 1 column 6"
    )


@pytest.mark.realdata
def test_real_figures_of_a_textbook(realdata):
    settings = dataclasses.replace(FigureSettings(), article=("section",))
    posts = list(read_posts(realdata / "openstax_histology" / "captions.csv", settings, source="openstax"))
    assert len(posts) == 72
    assert all(isinstance(post, Post) and post.captions and post.group_id for post in posts)
    assert all((realdata / "openstax_histology" / post.media[0].path).is_file() for post in posts)
