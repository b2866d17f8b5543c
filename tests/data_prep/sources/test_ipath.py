import hashlib

import openpyxl
import pytest

from data_prep.sources.csv_table import TableError
from data_prep.sources.ipath import IpathSettings, read_posts
from data_prep.sources.post import Drop, Media, Post


def read(path, **own_settings):
    return list(read_posts(path, IpathSettings(**own_settings), source="ipath"))


def test_a_table_and_a_folder_of_images(tmp_path):
    (tmp_path / "IPATH.csv").write_text("Image_Path,Caption,shortcode\nimages/1.jpg,Fibroadenoma #breastpath,Cbu\n")
    assert read(tmp_path / "IPATH.csv", licence="CC BY 4.0") == [
        Post(
            id=hashlib.sha256(b"images/1.jpg").hexdigest()[:32],
            media=(Media(path="images/1.jpg"),),
            captions=("Fibroadenoma #breastpath",),
            source="ipath",
            where="IPATH.csv line 2",
            hashtags=("breastpath",),
            licence="CC BY 4.0",
            group_id="Cbu",
        )
    ]


def test_a_spreadsheet_gives_the_same(tmp_path):
    workbook = openpyxl.Workbook()
    for row in (["id", "filename", "text"], [7, "1.jpg", "Fibroadenoma"], [8.0, "2.jpg", None]):
        workbook.active.append(row)
    workbook.save(tmp_path / "t.xlsx")
    assert [(post.id, post.media[0].path, post.captions) for post in read(tmp_path / "t.xlsx")] == [
        ("7", "1.jpg", ("Fibroadenoma",)),
        ("8", "2.jpg", ()),
    ]


def test_addresses_repeated_ids_and_rows_without_an_image(tmp_path):
    lines = ["url,caption", "https://x.example/1.jpg,a", "https://x.example/1.jpg,b", ",c", "https://,d"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    first, second, *drops = read(tmp_path / "t.csv")
    assert first.media == (Media(url="https://x.example/1.jpg"),)
    # printf %s https://x.example/1.jpg | sha256sum
    assert first.id == second.id == "7c384b60e9f795edb1fa679e3b4dba2f"
    malformed = "image: expected a file name or a web address"
    assert drops == [
        Drop("malformed", "t.csv line 4", detail=malformed),
        Drop("malformed", "t.csv line 5", detail=malformed),
    ]


def test_a_table_of_other_columns_is_refused_with_what_it_has(tmp_path):
    (tmp_path / "t.csv").write_text("picture,legend\n1.jpg,x\n")
    with pytest.raises(
        TableError, match=r"no column for the image \(looked for image, image_path.*'picture', 'legend'"
    ):
        read(tmp_path / "t.csv")
    (post,) = read(tmp_path / "t.csv", image=("picture",), caption=("legend",))
    assert post.captions == ("x",)
