"""The ARCH builders on archives that the test writes in the published layout, with its faults planted."""

import json

import pytest
from PIL import Image

from data_prep.tfds.base import SetError
from data_prep.tfds.build import build
from plip_jax.data.examples import open_examples


def row(uuid, caption, figure=None, letter=None):
    found = {"letter": letter, "caption": caption, "uuid": uuid}
    return found if figure is None else {"figure_id": figure, **found}


BOOKS = [
    row("b-1", "Renal cell carcinoma,\nclear cells", "4122", "A"),
    row("b-2", "Renal cell carcinoma, clear cells", "4122", "B"),
    row("b-1", "Nests of clear cells", "4122", "A"),  # a second caption of the first image
    row("b-1", "Nests of clear cells", "4122", "A"),  # the same again
    row("b-3", "Normal spleen", "5000"),
    row("gone", "A caption without an image", "5001"),
    row("b-4", " ", "5002"),
]
PUBMED = [row("p-1", "Mitoses"), row("p-2", "Mitoses"), row("p-3", "Necrosis")]  # these rows name no figure


def write_set(root, folder, rows, images):
    (root / folder / folder / "images").mkdir(parents=True)
    for number, name in enumerate(images):
        Image.new("RGB", (30, 20), (number, 0, 0)).save(root / folder / folder / "images" / name)
    content = {str(index): content for index, content in enumerate(rows)}
    (root / folder / folder / "captions.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    root = tmp_path_factory.mktemp("arch")
    write_set(root, "books_set", BOOKS, ["b-1.png", "b-2.png", "b-3.png", "b-4.png"])
    write_set(root, "pubmed_set", PUBMED, ["p-1.jpg", "p-2.png", "p-3.jpg"])
    (root / "lists").mkdir()
    (root / "lists" / "arch_book.csv").write_text(
        'image_name\tcaption\narch_book_b-3.png\tNormal spleen\narch_book_b-1.png\tRenal "clear", cells\n'
    )
    (root / "lists" / "other.csv").write_text("a,b\n1,2\n")
    debris = root / "__MACOSX" / "books_set" / "images"
    debris.mkdir(parents=True)
    (debris / "._b-1.png").write_bytes(b"not an image")
    return root


@pytest.fixture(scope="module")
def books(archive, tmp_path_factory):
    return build("arch_books", archive, tmp_path_factory.mktemp("built"), allow_counts=True)


def test_images_have_all_their_captions_and_their_figure(books):
    assert [(e.id, e.captions, e.group_id, e.attributes["letter"]) for e in open_examples(books, "test")] == [
        ("b-1.png", ("Renal cell carcinoma, clear cells", "Nests of clear cells"), "4122", "A"),
        ("b-2.png", ("Renal cell carcinoma, clear cells",), "4122", "B"),
        ("b-3.png", ("Normal spleen",), "5000", ""),
    ]


def test_a_deduplicated_list_beside_the_archive_is_a_scheme(books):
    assert [e.id for e in open_examples(books, "deduplicated/test")] == ["b-3.png", "b-1.png"]


def test_images_without_a_figure_are_grouped_by_caption(archive, tmp_path, capsys):
    test = open_examples(build("arch_pubmed", archive, tmp_path), "all/test")
    assert [e.id for e in test] == ["p-1.jpg", "p-2.png", "p-3.jpg"]
    groups = [e.group_id for e in test]
    assert groups[0] == groups[1] != groups[2]
    assert all(groups)
    assert "never verified differ: in all: expected 3,309, got 3 (-3,306)" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no split 'deduplicated/test'"):  # the list is that of the books
        open_examples(tmp_path / "arch_pubmed", "deduplicated/test")


def test_what_is_left_out_is_said_and_the_list_s_count_checked(archive, tmp_path, capsys):
    with pytest.raises(SetError, match=r"deduplicated in all: expected 1,306, got 2 \(-1,304\)"):
        build("arch_books", archive, tmp_path / "strict")
    build("arch_books", archive, tmp_path / "out", allow_counts=True)
    said = capsys.readouterr().out
    for note in ("1 captions have no image", "1 captions are empty", "1 images have no caption"):
        assert f"note: {note}: left out" in said


def test_damaged_captions_are_named(tmp_path):
    write_set(tmp_path, "books_set", BOOKS, ["b-1.png"])
    path = tmp_path / "books_set" / "books_set" / "captions.json"
    path.write_text('{"0": {"caption": "no uuid"}}')
    with pytest.raises(SetError, match="expected rows with uuid and caption"):
        build("arch_books", tmp_path, tmp_path / "out")
    path.write_text('{"0": ')
    with pytest.raises(SetError, match="is not JSON"):
        build("arch_books", tmp_path, tmp_path / "out")
    path.unlink()
    with pytest.raises(SetError, match=r"expected captions.json beside images/"):
        build("arch_books", tmp_path, tmp_path / "out")
