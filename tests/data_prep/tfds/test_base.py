"""What every builder shares, on a set that the test makes up."""

import functools
import io
from collections.abc import Sequence

import pytest
from PIL import Image

from data_prep.tfds import build as build_module
from data_prep.tfds.base import About, EvaluationSet, Item, SetError, find_files, find_folder
from data_prep.tfds.build import SETS, build, main
from plip_jax.data.examples import open_examples
from plip_jax.data.split_manifest import Part, SplitScheme


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (level, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


class Toy(EvaluationSet, skip_registration=True):
    """Three images; what they are called and how they are split is changed by the tests."""

    about = About(
        title="Toy",
        homepage="https://example.org",
        licence="CC0",
        citation="",
        layout="nothing",
        classes=("a", "b"),
        verified_counts={"sources": {"": 2}},
        verified_schemes={"halves/test": {"": 1, "b": 1}, "thirds": {"": 5}, "absent": {"": 7}},
    )
    items_made: Sequence[Item] = ()
    schemes_made: Sequence[SplitScheme] = ()

    def find_items(self) -> Sequence[Item]:
        self.notes.append("a toy")
        self.more_counts["sources"] = {"old": 1, "new": 1}
        return self.items_made

    def make_schemes(self, items: Sequence[Item]) -> Sequence[SplitScheme]:
        return self.schemes_made


ITEMS = [
    Item(name, functools.partial(png, 10 * n), label=label)
    for n, (name, label) in enumerate(zip("xyz", "aab", strict=True))
]
HALVES = SplitScheme("halves", "", {"train": Part(("x", "y")), "test": Part(("z",))}, is_default=True)


@pytest.fixture
def toy(monkeypatch):
    """Set what the toy set holds, and let the program know it."""

    def make(items=ITEMS, schemes=(HALVES,)):
        monkeypatch.setattr(Toy, "items_made", items)
        monkeypatch.setattr(Toy, "schemes_made", schemes)
        monkeypatch.setitem(build_module.SETS, "toy", Toy)

    make()
    return make


def test_every_set_is_built_under_the_name_it_is_asked_for_by():
    assert {name: builder.name for name, builder in SETS.items()} == {name: name for name in SETS}


def test_notes_are_printed_and_schemes_of_other_labels_counted(toy, tmp_path, capsys):
    thirds = SplitScheme("thirds", "", {"test": Part(("x", "y"), ("b", "b"))})
    toy(schemes=(HALVES, thirds))
    with pytest.raises(SetError, match=r"thirds in all: expected 5, got 2 \(-3\)"):
        build("toy", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [
        e.label for e in open_examples(build("toy", tmp_path, tmp_path / "out", allow_counts=True), "thirds/test")
    ] == ["b", "b"]
    said = capsys.readouterr()
    assert "note: a toy" in said.out
    assert "thirds in all: expected 5, got 2 (-3)" in said.err


@pytest.mark.parametrize(
    ("schemes", "message"),
    [
        ([SplitScheme("halves", "", {"test": Part(("z",))})], "expected one default scheme, got none"),
        ([HALVES, HALVES], "got halves, halves"),
        (
            [SplitScheme("halves", "", {"test": Part(("z", "q"))}, is_default=True)],
            "halves/test names 1 unknown files, first 'q'",
        ),
        (
            [SplitScheme("halves", "", {"test": Part(("x",))}, is_default=True)],
            r"halves/test b: expected 1, got 0 \(-1\)",
        ),
    ],
)
def test_schemes_are_checked_before_anything_is_written(toy, tmp_path, schemes, message):
    toy(schemes=schemes)
    with pytest.raises(SetError, match=message):
        build("toy", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "holds no images"),
        ([*ITEMS, ITEMS[0]], "1 file names are there twice, first 'x'"),
        ([Item("x", functools.partial(png, 1), label="c")], "classes c: expected a, b"),
        ([Item("x", functools.partial(png, 1), label_set=("a", "d"))], "classes d: expected a, b"),
    ],
)
def test_items_are_checked(toy, tmp_path, items, message):
    toy(items=items)
    with pytest.raises(SetError, match=message):
        build("toy", tmp_path, tmp_path / "out")


def test_a_build_that_fails_leaves_the_older_set_as_it_was(toy, tmp_path, capsys):
    out = tmp_path / "out"
    built = build("toy", tmp_path, out)
    with pytest.raises(SetError, match="is there already"):
        build("toy", tmp_path, out)
    toy(items=[*ITEMS[:2], Item("z", lambda: b"not an image", label="b")])
    command = ["--set", "toy", "--manual-dir", str(tmp_path), "--out", str(out), "--overwrite"]
    assert main(command) == 1
    assert "image 'z'" in capsys.readouterr().err
    assert [e.id for e in open_examples(built, "halves/train")] == ["x", "y"]
    assert [entry.name for entry in out.iterdir()] == ["toy"]
    toy(items=[*ITEMS[:2], Item("z", functools.partial(png, 99), label="b")])
    assert main(command) == 0
    with Image.open(io.BytesIO(open_examples(built, "test")[0].image)) as image:
        assert image.getpixel((0, 0)) == (99, 0, 0)


def test_folders_and_files_are_found_below_what_archivers_leave(tmp_path):
    (tmp_path / "X" / "X").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "X").mkdir(parents=True)
    for name in ("X/X/a.png", "X/X/._a.png", "__MACOSX/X/b.png", "X/Thumbs.db"):
        (tmp_path / name).write_bytes(b"")
    assert find_folder(tmp_path, "X") == tmp_path / "X" / "X"
    assert [path.name for path in find_files(tmp_path, "*")] == ["a.png"]
    (tmp_path / "Y" / "X").mkdir(parents=True)
    with pytest.raises(SetError, match="expected one folder 'X', found"):
        find_folder(tmp_path, "X")
    with pytest.raises(SetError, match="expected a folder 'Z' at any depth, found X, Y"):
        find_folder(tmp_path, "Z")
