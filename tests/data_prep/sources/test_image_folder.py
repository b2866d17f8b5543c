import hashlib
import os

import pytest

from data_prep.sources.image_folder import FolderError, FolderSettings, read_posts
from data_prep.sources.post import Drop, Media, Post


def fill(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def read(folder, **own_settings):
    return list(read_posts(folder, FolderSettings(**own_settings), source="folder"))


def test_images_with_the_texts_beside_them_in_the_order_of_their_paths(tmp_path):
    fill(
        tmp_path,
        {
            "b/2.PNG": "",
            "b/2.caption": "\ufeff two\n",
            "a/1.jpg": "",
            "a/1.txt": "one",
            "a/1.json": '{"caption": "not the first"}',
            "a.tiff": "",
            "a.json": '{"caption": " three "}',
            "c.webp": "",
            "notes.txt": "no image",
            ".hidden/4.jpg": "",
            "b/._2.png": "",
        },
    )
    posts = read(tmp_path, licence="CC0")
    assert [(post.where, post.captions) for post in posts] == [
        ("a.tiff", ("three",)),
        ("c.webp", ()),
        ("a/1.jpg", ("one",)),
        ("b/2.PNG", ("two",)),
    ]
    assert posts[2] == Post(
        hashlib.sha256(b"a/1.jpg").hexdigest()[:32],
        (Media(path="a/1.jpg"),),
        ("one",),
        source="folder",
        where="a/1.jpg",
        licence="CC0",
    )


def test_captions_from_file_names(tmp_path):
    fill(tmp_path, {"basal_cell-carcinoma__x40.jpg": "", "b.jpg": "", "b.txt": "from the side"})
    captions = {
        how: [post.captions for post in read(tmp_path, caption=how)] for how in ("file_name", "sidecar_or_file_name")
    }
    assert captions == {
        "file_name": [("b",), ("basal cell carcinoma x40",)],
        "sidecar_or_file_name": [("from the side",), ("basal cell carcinoma x40",)],
    }


def test_labels_from_folders(tmp_path):
    fill(tmp_path, {"1.jpg": "", "TUM/2.jpg": "", "x/STR/3.jpg": ""})
    assert [post.label for post in read(tmp_path, label="folder")] == ["", "TUM", "STR"]
    assert [post.label for post in read(tmp_path)] == ["", "", ""]


@pytest.mark.parametrize(
    ("name", "content", "detail"),
    [
        ("1.txt", b"\xff\xfe", "not UTF-8, or not JSON (UnicodeDecodeError)"),
        ("1.txt", b"x" * (2**20 + 1), "more than 1048576 bytes"),
        ("1.json", b"{", "not UTF-8, or not JSON (JSONDecodeError)"),
        ("1.json", b"[" * 100_000, "not UTF-8, or not JSON (RecursionError)"),
        ("1.json", b"[]", "JSON: expected an object, got a list"),
        ("1.json", b'{"caption": null}', "caption: expected a text, got null"),
    ],
)
def test_a_damaged_text_drops_its_image_alone(tmp_path, name, content, detail):
    fill(tmp_path, {"1.jpg": "", name: content, "2.jpg": ""})
    drop, post = read(tmp_path)
    name = hashlib.sha256(b"1.jpg").hexdigest()[:32]
    assert drop == Drop("malformed", "sidecar of 1.jpg", name, detail)
    assert post.where == "2.jpg"


@pytest.mark.skipif(os.name == "nt", reason="file names are Unicode there")
def test_a_name_that_is_no_utf_8_is_counted(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.jpg", "wb"):
        pass
    assert [drop.reason for drop in read(tmp_path)] == ["unreadable_name"]


def test_links_to_folders_are_not_followed(tmp_path):
    fill(tmp_path, {"in/1.jpg": "", "out/2.jpg": ""})
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "out").symlink_to(tmp_path / "out")
    assert [post.where for post in read(tmp_path / "in")] == ["1.jpg"]


def test_what_is_asked_for_wrongly_is_named(tmp_path):
    with pytest.raises(FolderError, match="expected one of sidecar, file_name, sidecar_or_file_name"):
        read(tmp_path, caption="names")
    with pytest.raises(FolderError, match="label='class': expected one of none, folder"):
        read(tmp_path, label="class")
    with pytest.raises(FolderError, match="found no such folder"):
        read(tmp_path / "none")


@pytest.mark.realdata
def test_a_real_folder_of_regions(realdata):
    posts = read(realdata / "colon_regions3" / "test", label="folder")
    assert len(posts) == 254
    assert {post.label for post in posts} == {"ADI", "BACK", "NORM"}
