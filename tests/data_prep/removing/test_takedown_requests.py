"""Requests and compliance events, line by line."""

import hashlib
import json
from pathlib import Path

import pytest
from small_work import make_image

from data_prep.removing.takedown_requests import Request, RequestError, read_requests


def read(folder: Path, *lines: object, **options):
    path = folder / "requests.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return read_requests(path, hash_author=lambda platform, author: f"{platform}/{author}", **options)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ({"kind": "post", "value": 12}, Request("post", ":12")),
        ({"kind": "post", "source": "twitter", "value": " 12 "}, Request("post", "twitter:12")),
        (
            {"kind": "url", "value": "https://a/b.jpg", "request": "mail-3", "time": "2024"},
            Request("url", "https://a/b.jpg", "2024", "mail-3"),
        ),
        ({"kind": "author", "platform": "instagram", "value": "9"}, Request("author", "instagram/9")),
        ({"kind": "image", "value": "SHA256:" + "A" * 64}, Request("image", "a" * 64)),
        ({"kind": "image", "value": "b" * 64}, Request("image", "b" * 64)),
        ({"kind": "image", "value": "phash:00FF00ff00ff00ff"}, Request("phash", "00ff00ff00ff00ff")),
        (
            {"id": "7", "action": "delete", "created_at": "2019-10-29T17:02:47.000Z", "reason": "deleted"},
            Request("post", ":7", "2019-10-29T17:02:47.000Z"),
        ),
        ({"delete": {"status": {"id": 7, "id_str": "7", "user_id_str": "3"}}}, Request("post", ":7")),
        ({"data": {"delete": {"event_at": "2021", "tweet": {"id": "7"}}}}, Request("post", ":7", "2021")),
        ({"drop": {"status": {"id": 7, "user_id": 3}}}, Request("post", ":7")),
        ({"data": {"drop": {"event_at": "2022", "tweet": {"id": "7"}}}}, Request("post", ":7", "2022")),
        ({"kind": "author", "platform": "twitter", "value": "9"}, Request("author", "x/9")),
        ({"kind": "author", "source": "x", "value": "9"}, Request("author", "x/9")),
        ({"user_delete": {"id": 3, "timestamp_ms": "1481739004510"}}, Request("author", "x/3", "1481739004510")),
        ({"user_protect": {"id": 3}}, Request("author", "x/3")),
        ({"user_suspend": {"id": 3}}, Request("author", "x/3")),
        ({"data": {"user_protect": {"event_at": "2021", "user": {"id": "3"}}}}, Request("author", "x/3", "2021")),
    ],
)
def test_a_line_gives_its_request(tmp_path: Path, line: dict[str, object], expected: Request):
    found = read(tmp_path, line)
    assert found.requests == (expected,)
    assert found.malformed == ()


@pytest.mark.parametrize(
    ("link", "asked"),
    [
        ("https://twitter.com/someone/status/1367?s=20", Request("post", "x:1367")),
        ("https://mobile.twitter.com/someone/statuses/1367", Request("post", "x:1367")),
        ("http://x.com/i/web/status/1367#m", Request("post", "x:1367")),
        ("https://www.x.com/i/status/1367/photo/1", Request("post", "x:1367")),
        ("https://instagram.com/someone/p/CaB-_9/?hl=de", Request("url", "https://www.instagram.com/p/CaB-_9/")),
        ("https://old.reddit.com/r/pathology/comments/ab12/a_title/", Request("post", "reddit:ab12")),
        ("https://www.reddit.com/r/pathology/comments/ab12/a_title/cd34/", None),
        ("https://www.instagram.com/p/CaB-_9/", None),
        ("https://twitter.com/someone", None),
        ("https://lab.example/x.com/i/status/1367", None),
    ],
)
def test_a_link_to_a_post_asks_for_the_post_too(tmp_path: Path, link: str, asked: Request | None):
    found = read(tmp_path, {"kind": "url", "value": link}).requests
    assert found == (Request("url", link), *([asked] if asked else []))


def test_a_request_of_ours_knows_its_line(tmp_path: Path):
    lines = ({"kind": "post", "value": "1"}, {"id": 3, "action": "delete"}, {"kind": "url", "value": "https://x.com/a"})
    assert [one.line for one in read(tmp_path, *lines).requests] == [1, 0, 3]


def test_ids_of_a_job_about_users_are_authors(tmp_path: Path):
    line = {"id": "3", "action": "protect", "created_at": "2020"}
    assert read(tmp_path, line, events_of="users").requests == (Request("author", "x/3", "2020"),)


def test_a_source_is_taken_for_lines_without_one(tmp_path: Path):
    lines = (
        {"kind": "post", "value": "1"},
        {"kind": "post", "source": "b", "value": "2"},
        {"id": 3, "action": "delete"},
    )
    assert [one.value for one in read(tmp_path, *lines, source="a").requests] == ["a:1", "b:2", "a:3"]


def test_an_image_file_is_asked_for_by_its_bytes_and_its_look(tmp_path: Path):
    (tmp_path / "seen.png").write_bytes(make_image(3))
    first, second = read(tmp_path, {"kind": "image", "value": "seen.png"}).requests
    assert first == Request("image", hashlib.sha256(make_image(3)).hexdigest())
    assert second.kind == "phash"
    assert len(second.value) == 16
    (tmp_path / "broken.png").write_bytes(b"no image, all the same these bytes")
    assert [one.kind for one in read(tmp_path, {"kind": "image", "value": "broken.png"}).requests] == ["image"]


def test_events_that_remove_nothing_are_counted(tmp_path: Path):
    lines = [{"scrub_geo": {"user_id": 1}}, {"user_undelete": {"id": 1}}, {"scrub_geo": {"user_id": 2}}]
    found = read(tmp_path, *lines, {"id": "1", "action": "scrub_geo"})
    assert found.ignored == {"scrub_geo": 3, "user_undelete": 1}
    assert found.requests == ()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "not a JSON object"),
        ("[1]", "not a JSON object"),
        ({"kind": "post"}, "no value"),
        ({"kind": "post", "value": True}, "no value"),
        ({"kind": "person", "value": "secret-1"}, "post, author, url, image"),
        ({"kind": "author", "value": "secret-1"}, "platform"),
        ({"kind": "author", "platform": "twiter", "value": "secret-1"}, "platform"),
        ({"kind": "image", "value": "phash:secret-1"}, "16 hexadecimal"),
        ({"kind": "image", "value": "secret-1.jpg"}, "nor a file"),
        ({"id": "secret-1", "action": "dance"}, "unknown action"),
        ({"delete": {"secret-1": 1}}, "without its post"),
        ({"hello": "secret-1"}, "neither a request"),
    ],
)
def test_a_malformed_line_is_named_and_not_repeated(tmp_path: Path, line: object, why: str):
    found = read(tmp_path, {"kind": "post", "value": "1"}, "", line)
    assert len(found.requests) == 1
    assert len(found.malformed) == 1
    assert found.malformed[0].startswith("requests.jsonl line 3: ")
    assert why in found.malformed[0]
    assert "secret-1" not in found.malformed[0]


def test_an_author_needs_the_key(tmp_path: Path):
    (tmp_path / "asked.jsonl").write_text('{"kind": "author", "platform": "x", "value": "1"}')
    assert "--author-key" in read_requests(tmp_path / "asked.jsonl").malformed[0]


def test_a_table_is_read_like_lines(tmp_path: Path):
    path = tmp_path / "asked.csv"
    path.write_bytes(
        b"\xef\xbb\xbfkind,source,value,request\r\npost,twitter,12,\r\nurl,,https://a/b,mail\r\npost,,,\r\n"
    )
    found = read_requests(path)
    assert found.requests == (Request("post", "twitter:12"), Request("url", "https://a/b", "", "mail"))
    assert found.malformed == ("asked.csv line 4: it has no value",)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path):
    with pytest.raises(RequestError, match="cannot be read"):
        read_requests(tmp_path / "nothing.jsonl")
