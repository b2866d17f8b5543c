import dataclasses
import json
import lzma

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from write_instagram import graphql_node, graphql_page, instaloader_node, mobile_item, mobile_page

from data_prep.sources import instagram, instagram_mobile, instaloader
from data_prep.sources.instagram import InstagramSettings, shortcode_of
from data_prep.sources.instagram_mobile import InstagramMobileSettings
from data_prep.sources.instaloader import InstaloaderSettings
from data_prep.sources.post import Drop, Media, Post

POST = Post(
    id="Cbu-BgfL3W3",
    media=(Media("0", "https://cdn.example/1.jpg?x=1&y=2"),),
    captions=("Basal cell carcinoma 🔬 #dermpath #BCC",),
    source="instagram",
    author="314159",
    created_at="2022-03-30T12:00:00Z",
    likes=27,
    hashtags=("dermpath", "BCC"),
    permalink="https://www.instagram.com/p/Cbu-BgfL3W3/",
)
CAROUSEL = dataclasses.replace(
    POST,
    id="CcAroUsEl01",
    media=(
        Media("0", "https://cdn.example/a.jpg"),
        Media("1", "https://cdn.example/b.mp4", kind="video"),
        Media("2", "https://cdn.example/c.jpg"),
    ),
    permalink="https://www.instagram.com/p/CcAroUsEl01/",
    version=3600,
    likes=None,
    sensitive=True,
)
SILENT = dataclasses.replace(POST, captions=(), hashtags=())

SHORTCODES = st.text("ABCabc019-_", min_size=1, max_size=11)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@st.composite
def posts(draw):
    code, text = draw(SHORTCODES), draw(TEXTS)
    kinds = draw(st.lists(st.sampled_from(["photo", "video"]), min_size=1, max_size=4))
    media = [Media(str(n), f"https://cdn.example/{code}/{n}", kind=kind) for n, kind in enumerate(kinds)]
    return Post(
        id=code,
        media=tuple(media),
        captions=(text,) if text else (),
        source="s",
        author=str(draw(st.integers(1, 2**40))),
        created_at=draw(st.datetimes().filter(lambda t: t.year > 1970)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        version=draw(st.integers(0, 10_000)) if text else 0,
        likes=draw(st.none() | st.integers(0, 10_000)),
        sensitive=draw(st.booleans()),
        permalink=f"https://www.instagram.com/p/{code}/",
    )


def read(reader, own_settings, path, document):
    path.write_text(json.dumps(document))
    return list(reader.read_posts(path, own_settings, source="instagram"))


def read_page(path, document):
    return read(instagram, InstagramSettings(), path, document)


def read_mobile(path, document):
    return read(instagram_mobile, InstagramMobileSettings(), path, document)


def places_cut(found):
    return [dataclasses.replace(post, where="") for post in found]


@pytest.fixture
def page(tmp_path):
    return tmp_path / "page.json"


def test_a_page_as_the_browser_got_it(page):
    node = {
        "__typename": "GraphImage",
        "id": "2805452400384505271",
        "shortcode": "Cbu-BgfL3W3",
        "edge_media_to_caption": {"edges": [{"node": {"text": "Granuloma annulare #dermpath"}}]},
        "edge_liked_by": {"count": 12},
        "display_url": "https://scontent.example/v/1_n.jpg?stp=dst&_nc_ht=x",
        "taken_at_timestamp": 1648641600,
        "owner": {"id": "4512"},
        "comments_disabled": False,
    }
    top = {"edges": [{"node": node | {"shortcode": "Top"}}]}
    hashtag = {
        "name": "dermpath",
        "edge_hashtag_to_media": {"edges": [{"node": node}]},
        "edge_hashtag_to_top_posts": top,
    }
    first, second = read_page(page, {"graphql": {"hashtag": hashtag}})
    assert first == Post(
        id="Cbu-BgfL3W3",
        media=(Media("0", "https://scontent.example/v/1_n.jpg?stp=dst&_nc_ht=x"),),
        captions=("Granuloma annulare #dermpath",),
        source="instagram",
        where="page.json line 1 edge_hashtag_to_media[0]",
        author="4512",
        created_at="2022-03-30T12:00:00Z",
        likes=12,
        hashtags=("dermpath",),
        permalink="https://www.instagram.com/p/Cbu-BgfL3W3/",
    )
    assert (second.id, second.where) == ("Top", "page.json line 1 edge_hashtag_to_top_posts[0]")


def test_the_shortcode_is_the_number_in_base_64():
    # a pair that Instagram itself shows on one page
    assert shortcode_of("2805452400384505271") == "Cbu-BgfL3W3"
    assert shortcode_of("2805452400384505271_4512") == "Cbu-BgfL3W3"
    assert [shortcode_of(v) for v in (1, 64, 2**64, 0, -5, None, "x", True)] == ["B", "BA", *[""] * 6]


@pytest.mark.parametrize("name", ["edge_hashtag_to_media", "edge_owner_to_timeline_media"])
def test_listings_are_found_wherever_they_stand(page, name):
    document = {"entry_data": {"Page": [{"graphql": {"x": {name: {"edges": [{"node": graphql_node(POST)}]}}}}]}}
    assert places_cut(read_page(page, document)) == [POST]


@pytest.mark.parametrize("name", ["shortcode_media", "xdt_shortcode_media"])
def test_the_page_of_one_post(page, name):
    node = graphql_node(CAROUSEL)
    if name.startswith("xdt"):
        node["__typename"] = "XDTGraphSidecar"
    node["owner"]["edge_owner_to_timeline_media"] = {"count": 12}
    assert places_cut(read_page(page, {"data": {name: node}})) == [CAROUSEL]


def test_a_profile_that_tells_only_how_many_posts_there_are_gives_none(page):
    assert read_page(page, {"user": {"edge_owner_to_timeline_media": {"count": 12}}}) == []


def test_a_carousel_listed_without_its_children_is_its_first_image(page):
    node = graphql_node(CAROUSEL)
    del node["edge_sidecar_to_children"]
    (post,) = read_page(page, {"shortcode_media": node})
    assert post.media == (Media("0", "https://cdn.example/a.jpg"),)


def test_a_damaged_child_is_dropped_and_the_keys_of_the_others_stay(page):
    node = graphql_node(CAROUSEL)
    node["edge_sidecar_to_children"]["edges"][0]["node"]["display_url"] = None
    drop, post = read_page(page, {"shortcode_media": node})
    assert drop == Drop(
        "malformed_media",
        "page.json line 1 shortcode_media child 0",
        "CcAroUsEl01",
        "display_url: expected a web address",
    )
    assert [one.key for one in post.media] == ["1", "2"]


def test_the_newest_caption_has_the_greatest_version(page):
    versions = []
    for version in (0, 60, 7200):
        (post,) = read_page(page, graphql_page([dataclasses.replace(POST, version=version)]))
        versions.append(post.version)
    assert versions == [0, 60, 7200]
    node = graphql_node(POST) | {"caption_is_edited": True}
    assert [post.version for post in read_page(page, {"shortcode_media": node})] == [1]


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        ({"shortcode": None}, "malformed", "shortcode: expected a text"),
        ({"__typename": "GraphStoryImage"}, "not_a_post", "__typename is none of GraphImage, GraphSidecar, GraphVideo"),
        ({"display_url": 5}, "malformed", "display_url: expected a web address"),
        ({"edge_media_to_caption": None}, "malformed", "edge_media_to_caption: expected an object, got null"),
        ({"edge_media_to_caption": []}, "malformed", "edge_media_to_caption: expected an object, got a list"),
        (
            {"edge_media_to_caption": {"edges": [{"node": {"text": ["Dr. Secret"]}}]}},
            "malformed",
            "edge_media_to_caption.edges[0].node.text: expected a text, got a list",
        ),
    ],
)
def test_malformed_nodes_are_named_and_the_others_stay(page, change, reason, detail):
    document = graphql_page([POST, POST])
    document["data"]["hashtag"]["edge_hashtag_to_media"]["edges"][0]["node"] |= change
    drop, post = read_page(page, document)
    name = "" if "shortcode" in change else POST.id
    assert drop == Drop(reason, "page.json line 1 edge_hashtag_to_media[0]", name, detail)
    assert post.where == "page.json line 1 edge_hashtag_to_media[1]"


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"edge_hashtag_to_media": []}, "malformed"),
        ({"edge_hashtag_to_media": {"edges": None}}, "malformed"),
        ({"edge_hashtag_to_media": {"edges": [7]}}, "malformed"),
        ({"edge_hashtag_to_media": {"edges": [{"node": None}]}}, "malformed"),
        ({"message": "login_required"}, "no_posts"),
    ],
)
def test_pages_of_another_shape_are_counted(page, document, reason):
    assert [drop.reason for drop in read_page(page, document)] == [reason]
    assert [drop.reason for drop in read_page(page, {"edge_hashtag_to_media": {"edges": []}})] == []


@settings(max_examples=60, deadline=None)
@given(written=st.lists(posts(), min_size=1, max_size=4))
def test_what_was_written_is_read_in_all_three_formats(tmp_path_factory, written):
    folder = tmp_path_factory.mktemp("posts")
    web = folder / "page.json"
    web.write_text(json.dumps(graphql_page(written)))
    mobile = folder / "mobile.json"
    mobile.write_text(json.dumps(mobile_page(written)))
    expected = [dataclasses.replace(post, hashtags=instagram.find_hashtags("".join(post.captions))) for post in written]
    assert places_cut(instagram.read_posts(web, InstagramSettings(), source="s")) == expected
    assert places_cut(instagram_mobile.read_posts(mobile, InstagramMobileSettings(), source="s")) == expected
    for post in expected:
        file = folder / f"{post.id}.json.xz"
        file.write_bytes(lzma.compress(json.dumps(instaloader_node(post)).encode()))
        assert places_cut(instaloader.read_posts(file, InstaloaderSettings(), source="s")) == [post]


def test_instaloader_takes_the_images_beside_the_file(tmp_path):
    name = "2022-03-30_12-00-00_UTC"
    single, several = tmp_path / f"{name}.json", tmp_path / f"{name[:-4]}.json.xz"
    single.write_text(json.dumps(instaloader_node(POST)))
    several.write_bytes(lzma.compress(json.dumps(instaloader_node(CAROUSEL)).encode()))
    for file in (f"{name}.jpg", f"{name[:-4]}_3.webp", f"{name[:-4]}_2.mp4", f"{name[:-4]}_2.jpg"):
        (tmp_path / file).write_bytes(b"x")

    def media(path, *, local_images=True):
        found = instaloader.read_posts(path, InstaloaderSettings(local_images), source="s")
        return [(one.key, one.url, one.path, one.kind) for post in found for one in post.media]

    assert media(single) == [("0", "", str(tmp_path / f"{name}.jpg"), "photo")]
    assert (
        media(several)
        == [
            ("0", "https://cdn.example/a.jpg", "", "photo"),
            ("1", "https://cdn.example/b.mp4", "", "video"),  # its still is no image of the post
            ("2", "", str(tmp_path / f"{name[:-4]}_3.webp"), "photo"),
        ]
    )
    assert media(single, local_images=False) == [("0", POST.media[0].url, "", "photo")]


def test_instaloader_files_of_profiles_and_stories_are_no_posts(tmp_path):
    lines = [
        instaloader_node(POST) | {"instaloader": {"node_type": "StoryItem"}},
        {"node": graphql_node(POST)},
        {"nodes": []},
        {"node": None},
    ]
    path = tmp_path / "x.json"
    path.write_text("\n".join(map(json.dumps, lines)))
    found = list(instaloader.read_posts(path, InstaloaderSettings(), source="s"))
    assert [one.reason if isinstance(one, Drop) else one.id for one in found] == [
        "not_a_post",
        POST.id,
        "malformed",
        "malformed",
    ]


@pytest.mark.parametrize("wrap", ["items", "sections", "bare", "media", "top", "clips"])
def test_mobile_responses_of_all_layouts(page, wrap):
    item = mobile_item(POST)
    medias = {"layout_content": {"medias": [item]}}
    document = {
        "items": {"items": [item["media"]], "num_results": 1},
        "sections": {"sections": [medias]},
        "bare": item["media"],
        "media": item,
        "top": {"data": {"top": {"sections": [medias]}, "recent": {"sections": []}}},
        "clips": {"layout_content": {"one_by_two_item": {"clips": {"items": [item]}}, "fill_items": []}},
    }[wrap]
    assert places_cut(read_mobile(page, document)) == [POST]


def test_mobile_posts_are_the_web_s_posts(page):
    for post in (POST, CAROUSEL, SILENT):
        assert places_cut(read_mobile(page, mobile_page([post]))) == places_cut(read_page(page, graphql_page([post])))


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"media_type": 5}, "media_type: expected 1, 2 or 8"),
        ({"media_type": True}, "media_type: expected 1, 2 or 8"),
        ({"code": None, "pk": None}, "code and pk: expected a text or a number"),
        ({"image_versions2": None}, "image_versions2: expected an object, got null"),
        (
            {"image_versions2": {"candidates": [None, {"url": "ftp://x"}]}},
            "image_versions2.candidates: none has a web address",
        ),
        ({"caption": "Dr. Secret"}, "caption: expected an object, got a text"),
        ({"caption": {"text": None}}, "caption.text: expected a text, got null"),
        ({"media_type": 8}, "carousel_media: expected a list, got null"),
    ],
)
def test_malformed_mobile_items_are_named_and_the_others_stay(page, change, detail):
    document = {"items": [mobile_item(POST)["media"] | change, mobile_item(POST)["media"]]}
    drop, post = read_mobile(page, document)
    assert drop == Drop("malformed", "page.json line 1 items[0]", "" if "code" in change else POST.id, detail)
    assert post.where == "page.json line 1 items[1]"


def test_a_mobile_post_without_a_code_has_that_of_its_number(page):
    media = mobile_item(POST)["media"] | {"code": None, "pk": "2805452400384505271"}
    assert [post.id for post in read_mobile(page, {"items": [media]})] == ["Cbu-BgfL3W3"]
