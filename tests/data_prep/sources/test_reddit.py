import dataclasses
import io
import json

import pytest
import zstandard
from write_tables import reddit_submission

from data_prep.sources.post import Drop, Media, Post
from data_prep.sources.reddit import RedditError, RedditSettings, read_posts

POST = Post(
    id="abc12",
    media=(Media("0", "https://i.redd.it/q1w2e3.jpg"),),
    captions=("Spitz nevus, 8 year old #dermpath\n\nKamino bodies & clefts\nin the nests",),
    source="reddit",
    author="t2_zz9",
    created_at="2021-03-04T05:06:07Z",
    likes=41,
    hashtags=("dermpath",),
    permalink="https://www.reddit.com/r/pathology/comments/abc12/spitz/",
)
GALLERY = dataclasses.replace(
    POST,
    id="gal01",
    media=(
        Media("zz", "https://preview.redd.it/zz.jpg?width=640&s=1"),
        Media("aa", "https://preview.redd.it/aa.jpg?width=640&s=2"),
    ),
    version=1_614_900_000,
    sensitive=True,
)
DELETED = Post(id="gone1", source="reddit", kind="deletion")
CROSSPOST = dataclasses.replace(POST, id="cross", kind="repost")


def read(path, *submissions, **own_settings):
    path.write_text("".join(f"{json.dumps(one)}\n" for one in submissions))
    return list(read_posts(path, RedditSettings(**own_settings), source="reddit"))


def media_of(path, **changes):
    (post,) = read(path, reddit_submission(dataclasses.replace(POST, media=())) | changes)
    return [(one.key, one.url, one.kind) for one in post.media]


@pytest.fixture
def dump(tmp_path):
    return tmp_path / "RS_2021-03"


def test_what_was_written_is_read(dump):
    written = [POST, GALLERY, DELETED, CROSSPOST]
    found = read(dump, *map(reddit_submission, written))
    assert [dataclasses.replace(post, where="") for post in found] == written
    assert [post.where for post in found] == [f"RS_2021-03 line {n}" for n in (1, 2, 3, 4)]


def test_a_dump_packed_with_the_long_window_reads_the_same(dump):
    lines = "".join(f"{json.dumps(reddit_submission(post))}\n" for post in (POST, GALLERY)).encode()
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=27, enable_ldm=True)
    packed = io.BytesIO()
    with zstandard.ZstdCompressor(compression_params=parameters).stream_writer(packed, closefd=False) as writer:
        writer.write(lines)
    dump.write_bytes(packed.getvalue())
    found = list(read_posts(dump, RedditSettings(), source="reddit"))
    assert [dataclasses.replace(post, where="") for post in found] == [POST, GALLERY]


def test_a_listing_of_the_api_reads_the_same(dump):
    children = [{"kind": "t3", "data": reddit_submission(POST)}, {"kind": "t3"}]
    post, drop = read(dump, {"kind": "Listing", "data": {"children": children}})
    assert dataclasses.replace(post, where="") == POST
    assert (drop.reason, drop.where) == ("malformed", "RS_2021-03 line 1 children[1]")


def test_the_caption_may_be_the_title_alone(dump):
    (post,) = read(dump, reddit_submission(POST), caption="title")
    assert post.captions == ("Spitz nevus, 8 year old #dermpath",)
    with pytest.raises(RedditError, match="title, title_and_text"):
        read(dump, caption="text")


@pytest.mark.parametrize(
    "change",
    [
        {"removed_by_category": "moderator"},
        {"removed_by_category": "copyright_takedown"},
        {"selftext": "[removed]"},
        {"selftext": "[deleted]"},
        {"title": "[deleted by user]"},
        {"author": "[deleted]"},
    ],
)
def test_what_is_gone_is_a_deletion_with_nothing_else_in_it(dump, change):
    (post,) = read(dump, reddit_submission(POST) | change)
    assert post == Post("abc12", source="reddit", where="RS_2021-03 line 1", kind="deletion")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"url": "https://i.redd.it/abc"}, ("0", "https://i.redd.it/abc", "photo")),
        ({"url": "https://x.example/a.PNG?s=1&amp;t=2"}, ("0", "https://x.example/a.PNG?s=1&t=2", "photo")),
        ({"url": "https://x.example/a.gif"}, ("0", "https://x.example/a.gif", "animation")),
        ({"url": "https://i.imgur.com/a.gifv"}, ("0", "https://i.imgur.com/a.gifv", "video")),
        (
            {"url": "https://old.example/a.jpg", "url_overridden_by_dest": "https://new.example/b.jpg"},
            ("0", "https://new.example/b.jpg", "photo"),
        ),
        ({"url": "https://x.example/image/7", "post_hint": "image"}, ("0", "https://x.example/image/7", "photo")),
        ({"url": "https://v.redd.it/abc", "is_video": True}, ("0", "", "video")),
    ],
)
def test_links_to_images(dump, changes, expected):
    assert media_of(dump, **changes) == [expected]


@pytest.mark.parametrize("url", ["https://x.example/page", "/r/pathology/comments/abc12/", "https://[x/a.jpg", None, 7])
def test_links_to_pages_are_no_images(dump, url):
    assert media_of(dump, url=url) == []


def test_the_preview_is_the_last_resort_and_can_be_left_out(dump):
    preview = {"images": [{"source": {"url": "https://preview.redd.it/p.jpg?auto=webp&amp;s=1"}}]}
    link = {"url": "https://imgur.com/abc", "preview": preview}
    assert media_of(dump, **link) == [("0", "https://preview.redd.it/p.jpg?auto=webp&s=1", "photo")]
    assert media_of(dump, preview=preview, url="https://x.example/a.jpg")[0][1] == "https://x.example/a.jpg"
    (post,) = read(dump, reddit_submission(dataclasses.replace(POST, media=())) | link, preview=False)
    assert post.media == ()


def test_a_gallery_names_what_it_lacks_and_keeps_the_rest(dump):
    submission = reddit_submission(GALLERY)
    submission["gallery_data"]["items"] += [{"media_id": "failed"}, {"media_id": "zz"}, {"id": 9}, None]
    submission["media_metadata"]["failed"] = {"status": "failed"}
    *drops, post = read(dump, submission)
    assert dataclasses.replace(post, where="") == GALLERY
    assert [(drop.reason, drop.id, drop.detail) for drop in drops] == [
        ("malformed_media", "gal01", "image 2: media_metadata has no address of it"),
        ("malformed_media", "gal01", "2 items of gallery_data without a media_id"),
    ]


def test_images_in_the_text_and_animations(dump):
    described = {
        "in1": {"status": "valid", "e": "Image", "s": {"u": "https://preview.redd.it/in1.png?s=1&amp;t=2"}},
        "in2": {"status": "valid", "e": "AnimatedImage", "s": {"gif": "https://i.redd.it/in2.gif"}},
        "in3": {"status": "valid", "e": "RedditVideo"},
    }
    assert media_of(dump, media_metadata=described) == [
        ("in1", "https://preview.redd.it/in1.png?s=1&t=2", "photo"),
        ("in2", "https://i.redd.it/in2.gif", "animation"),
        ("in3", "", "video"),
    ]


def test_fields_that_old_dumps_have_otherwise(dump):
    old = reddit_submission(POST) | {"created_utc": "1614834367", "edited": True}
    del old["author_fullname"], old["over_18"], old["removed_by_category"]
    (post,) = read(dump, old)
    assert dataclasses.replace(post, where="") == dataclasses.replace(POST, author="someone")
    (post,) = read(dump, reddit_submission(POST) | {"created_utc": 1614834367.0, "score": -3})
    assert (post.created_at, post.likes) == ("2021-03-04T05:06:07Z", None)


def test_what_is_no_submission_is_counted(dump):
    found = read(
        dump,
        {"id": "c1", "body": "nice", "link_id": "t3_abc12"},
        {"title": "no id"},
        reddit_submission(POST) | {"title": None},
        reddit_submission(POST) | {"selftext": ["Dr. Secret"]},
    )
    assert found == [
        Drop("not_a_submission", "RS_2021-03 line 1", "c1"),
        Drop("malformed", "RS_2021-03 line 2", detail="id: expected a text"),
        Drop("malformed", "RS_2021-03 line 3", "abc12", "title: expected a text, got null"),
        Drop("malformed", "RS_2021-03 line 4", "abc12", "selftext: expected a text, got a list"),
    ]
