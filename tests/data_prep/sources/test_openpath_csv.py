import pytest

from data_prep.curation.threads import ThreadSettings, pair_thread
from data_prep.sources.csv_table import TableError
from data_prep.sources.openpath_csv import OpenPathSettings, read_posts
from data_prep.sources.post import Drop, Media, Post

HEADER = ",source,hashtag,weblink,id,media ID,caption\n"
TWEET = "https://twitter.com/somebody/status/1050118621198921728/photo/1"


def read(tmp_path, text, settings=None):
    path = tmp_path / "openpath.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(read_posts(path, settings, source="openpath"))


def test_a_row_of_each_source(tmp_path):
    tweet, reply, laion = read(
        tmp_path,
        HEADER
        + f'0,Twitter,GIpath,{TWEET},1050118621198921728,DpLfoo-_1,"Signet ring, cells"\n'
        + "1,Twitter reply,GIpath,https://twitter.com/other/status/1050118621198921729,1050118621198921729,DpLfoo-_1,"
        + "Diffuse type\n"
        + "2,PathLAION,----,https://example.org/a/b?id=7,77,img7,Is this a mitosis?\n",
        OpenPathSettings(cleaned_release=True),
    )
    assert tweet == Post(
        id="1050118621198921728",
        media=(Media("DpLfoo-_1"),),
        captions=("Signet ring, cells",),
        source="openpath",
        where="openpath.csv line 2",
        conversation_id="1050118621198921728",
        created_at="2018-10-10T20:19:24Z",
        hashtags=("GIpath",),
        permalink="https://x.com/i/web/status/1050118621198921728",
        role="tweet",
    )
    assert (reply.role, reply.kind, reply.captions) == ("reply", "original", ("Diffuse type",))
    assert laion == Post(
        id="77",
        media=(Media("img7", url="https://example.org/a/b?id=7"),),
        captions=("Is this a mitosis?",),
        source="openpath",
        where="openpath.csv line 4",
        conversation_id="77",
        licence="unknown",
        role="laion",
    )


def test_rows_of_laion_have_no_score_and_are_not_taken_unless_someone_vouches_for_them(tmp_path):
    text = "source,weblink,id\nPathLAION,https://example.org/a.jpg,1\nTwitter,https://h/a.jpg,20\n"
    drop, post = read(tmp_path, text)
    assert drop == Drop("no_safety_score", "openpath.csv line 2")
    assert post.role == "tweet"
    assert [one.role for one in read(tmp_path, text, OpenPathSettings(cleaned_release=True))] == ["laion", "tweet"]


def test_rows_of_one_post_are_one_post_with_several_images(tmp_path):
    rows = [f"Twitter,{tag},{TWEET},1050118621198921728,{media}" for tag, media in [("GIpath", "A"), ("Gynpath", "B")]]
    rows.insert(1, "Twitter,dermpath,https://twitter.com/x/status/20,20,C")
    rows += [f"Twitter,HemePath,{TWEET},1050118621198921728,A"]  # found under a second hashtag
    first, second = read(tmp_path, "source,hashtag,weblink,id,media ID\n" + "\n".join(rows))
    assert [one.key for one in first.media] == ["A", "B"]
    assert first.hashtags == ("GIpath", "Gynpath", "HemePath")
    assert first.captions == ()
    assert (second.id, [one.key for one in second.media]) == ("20", ["C"])


def test_images_without_an_id_are_told_apart_by_their_addresses(tmp_path):
    links = ["https://h/a.jpg", "https://h/b.jpg", "https://h/a.jpg"]
    (post,) = read(tmp_path, "source,weblink,id\n" + "".join(f"Twitter,{link},20\n" for link in links))
    assert post.media == (Media("0", "https://h/a.jpg"), Media("1", "https://h/b.jpg"))


def test_a_reply_under_the_id_of_its_post_gets_an_id_of_its_own(tmp_path):
    rows = f"Twitter,GIpath,{TWEET},1050118621198921728,A,one\nTwitter reply,GIpath,{TWEET},1050118621198921728,A,two\n"
    posts = read(tmp_path, "source,hashtag,weblink,id,media ID,caption\n" + rows)
    assert [post.id for post in posts] == ["1050118621198921728", "1050118621198921728#2"]
    assert {post.conversation_id for post in posts} == {"1050118621198921728"}
    assert {post.created_at for post in posts} == {"2018-10-10T20:19:24Z"}
    local = OpenPathSettings(image_path="{hashtag}/{media_id}.jpg")
    pairs, decisions = pair_thread(
        read(tmp_path, "source,hashtag,weblink,id,media ID,caption\n" + rows, local), ThreadSettings()
    )
    assert [(pair.source, pair.raw_text, pair.path) for pair in pairs] == [
        ("openpath_reply", "two", "GIpath/A.jpg"),
        ("openpath", "one", "GIpath/A.jpg"),
    ]
    assert decisions == []


@pytest.mark.parametrize(
    "header",
    [
        "Source,HASHTAG,Web Link,ID,media_id",
        "source , hashtag,weblink,id,MediaID",
        "\ufeffsource,hashtag,weblink,id,media id",
    ],
)
def test_the_names_of_columns_are_taken_loosely(tmp_path, header):
    (post,) = read(tmp_path, f"{header}\nTwitter,GIpath,{TWEET},1,A\n")
    assert (post.id, post.hashtags, post.media) == ("1050118621198921728", ("GIpath",), (Media("A"),))


@pytest.mark.parametrize(
    ("weblink", "stated", "expected"),
    [
        (TWEET, "1.0501186211989217e+18", "1050118621198921728"),
        ("https://x.com/a/statuses/20?s=20", "", "20"),
        ("https://t.co/abc", "20.0", "20"),
        ("https://t.co/abc", "20", "20"),
        ("https://t.co/abc", "1.05e+18", None),  # the number has lost its last digits
        ("nan", "nan", None),
        ("https://twitter.com/a/status/123456789012345678901234", "", None),
    ],
)
def test_ids_come_from_the_weblink_before_the_column(tmp_path, weblink, stated, expected):
    (item,) = read(tmp_path, f"source,weblink,id\nTwitter,{weblink},{stated}\n")
    if expected is None:
        assert (item.reason, item.where) == ("malformed", "openpath.csv line 2")
    else:
        assert item.id == expected


@pytest.mark.parametrize(
    ("source", "weblink", "settings", "expected"),
    [
        ("Twitter", "https://pbs.twimg.com/media/X?format=jpg", {}, ("", "https://pbs.twimg.com/media/X?format=jpg")),
        ("Twitter", "https://example.org/a.JPG", {}, ("", "https://example.org/a.JPG")),
        ("Twitter", TWEET, {}, ("", "")),
        ("Twitter", "javascript:a.jpg", {}, ("", "")),
        ("Twitter", TWEET, {"image_url": "https://h/{media_id}"}, ("", "https://h/M")),
        ("Twitter", TWEET, {"image_path": "{hashtag}/{media_id}.jpg", "image_url": "u"}, ("T/M.jpg", "")),
        ("PathLAION", "https://example.org/page", {"image_url": "u"}, ("", "https://example.org/page")),
        ("PathLAION", "ftp://example.org/a.jpg", {}, ("", "")),
    ],
)
def test_where_the_image_is(tmp_path, source, weblink, settings, expected):
    text = f"source,hashtag,weblink,id,media ID\n{source},T,{weblink},20,M\n"
    (post,) = read(tmp_path, text, OpenPathSettings(cleaned_release=True, **settings))
    assert (post.media[0].path, post.media[0].url) == expected


@pytest.mark.parametrize("name", ["../../etc/passwd", "..", "a/b", "a\\b", ".", "a.b"])
def test_a_name_cannot_leave_the_folder(tmp_path, name):
    settings = OpenPathSettings(image_path="{hashtag}/{media_id}.jpg")
    for row in (f"T,{TWEET},20,{name}", f"{name},{TWEET},20,M"):
        (post,) = read(tmp_path, f"source,hashtag,weblink,id,media ID\nTwitter,{row}\n", settings)
        assert post.media[0].path == ""


def test_bad_rows_are_named_and_cost_no_other(tmp_path):
    rows = (
        f'Twitter,{TWEET},20\nFacebook,{TWEET},21\n\nTwitter,{TWEET}\n"Twitter\nreply",https://x.com/a/status/22,22\n'
    )
    drops = read(tmp_path, "source,weblink,id\n" + rows)
    assert [(one.reason, one.where) for one in drops if isinstance(one, Drop)] == [
        ("unknown_source", "openpath.csv line 3"),
        ("wrong_number_of_fields", "openpath.csv line 5"),
    ]
    assert [(one.id, one.where) for one in drops if isinstance(one, Post)] == [
        ("1050118621198921728", "openpath.csv line 2"),
        ("22", "openpath.csv line 6"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "missing: source, weblink, id"),
        ("source,weblink\n", "missing: id"),
        ("source,weblink,id,ID\n", "more than once: id"),
        (b"source,weblink,id\xff\n", "not UTF-8"),
        ('source,weblink,"id\nTwitter,x,1\n', "quote"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, text, message):
    with pytest.raises(TableError, match=message):
        read(tmp_path, text)


def test_a_setting_with_an_unknown_field_is_refused(tmp_path):
    with pytest.raises(TableError, match="media_id"):
        read(tmp_path, "source,weblink,id\n", OpenPathSettings(image_path="{folder}/x"))
    with pytest.raises(TableError, match="cannot be read"):
        list(read_posts(tmp_path / "absent.csv", source="openpath"))


def test_an_image_with_an_address_gets_a_key_that_no_other_has(tmp_path):
    rows = f"Twitter,{TWEET},20,1\nTwitter,https://h/a.jpg,20,\n".replace(TWEET, "https://x.com/a/status/20")
    (post,) = read(tmp_path, "source,weblink,id,media ID\n" + rows)
    assert [(one.key, one.url) for one in post.media] == [("1", ""), ("2", "https://h/a.jpg")]


def test_an_address_is_no_id(tmp_path):
    (post,) = read(
        tmp_path, "source,weblink,id\nPathLAION,https://x.example/1.jpg,\n", OpenPathSettings(cleaned_release=True)
    )
    # printf %s https://x.example/1.jpg | sha256sum
    assert post.id == post.conversation_id == "7c384b60e9f795edb1fa679e3b4dba2f"
    assert post.media == (Media("0", "https://x.example/1.jpg"),)
