"""Four kinds of places hold the same images: the same ids, order and bytes; what is no image is counted, not read."""

import csv
import errno
import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from small_records import write_tiles

from plip_jax.data.image import ImageError
from plip_jax.data.records import RecordError, RecordFolder, open_records
from plip_jax.image_sources import ImageSource, ImageSourceError, open_images, read_images

NAMES = ["a/2.png", "a/deep/1.JPG", "b.png", "é ö.tif"]


def content(source: ImageSource) -> list[tuple[str, bytes]]:
    found = [source.read(index) for index in range(len(source))]
    return [(one.id, one.image.read_bytes() if isinstance(one.image, Path) else one.image) for one in found]


def draw(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "tiles"
    for index, name in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(draw(index))
    return root


def write_tar(file: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file


def test_a_folder_a_list_and_a_tar_hold_the_same_images(folder, tmp_path):
    expected = [(name, draw(index)) for index, name in enumerate(NAMES)]
    listed = folder / "list.txt"
    listed.write_text("\ufeff" + "\r\n".join(NAMES) + "\n\n", encoding="utf-8")
    archive = tmp_path / "tiles.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder / NAMES[0], f"./{NAMES[0]}")  # as `tar c .` names it
        for name in NAMES[1:]:
            tar.add(folder / name, name)
    assert content(open_images(folder)) == expected  # the list among them is no image
    assert content(open_images(listed)) == expected
    assert content(open_images(archive)) == expected


def test_a_folder_leaves_out_what_is_no_image_and_follows_no_folder_links(folder, tmp_path):
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "a.png").write_bytes(b"")
    (folder / "notes.txt").write_text("x")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    (folder / "gone.png").symlink_to(tmp_path / "nothing")
    (folder / "z.png").symlink_to(folder / "b.png")
    source = open_images(folder)
    assert [name for name, _ in content(source)] == [*NAMES[:3], "z.png", NAMES[3]]
    links = "links to folders (not followed; a text file with a path a line takes the images behind them)"
    assert source.left_out == {"hidden": 2, "not named as images": 1, "not files": 2, links: 1}


def test_listing_a_folder_asks_for_names_only(folder, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file was asked for")

    for function in ("stat", "lstat", "open"):
        monkeypatch.setattr(os, function, refuse)
    from plip_jax import image_sources

    assert len(image_sources._open_folder(folder)) == 4


def test_names_that_are_no_text_are_kept(tmp_path):
    name = b"caf\xe9.png"
    Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_bytes(draw(9))
    source = open_images(tmp_path)
    assert content(source) == [(os.fsdecode(name), draw(9))]
    assert len(source.fingerprint) == 64


def test_a_table_gives_coordinates(folder):
    table = folder / "tiles.csv"
    table.write_text("y,path,x\n0,b.png,512\n-7,a/2.png,1024\n")
    source = open_images(table)
    assert content(source) == [("b.png", draw(2)), ("a/2.png", draw(0))]
    assert source.coords is not None
    assert source.coords.tolist() == [[512, 0], [1024, -7]]
    moved = folder / "moved.csv"
    moved.write_text("y,path,x\n0,b.png,512\n-8,a/2.png,1024\n")
    assert open_images(moved).fingerprint != source.fingerprint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\na.png\n", r"expected the columns path or path, x, y, got file"),
        ("path,x\na.png,1\n", "expected the columns path or path, x, y"),
        ("path,x,y\na.png,1,2.5\n", "line 2: y: expected a whole number of pixels, got '2.5'"),
        ("path,x,y\na.png,1\n", "line 2: y: expected a whole number of pixels, got None"),
        ("path\na.png\n\na.png\n", "expected each image once, got 'a.png' again"),
        ("path,x\n", "expected the columns"),
        ("path\n", "no image is in it"),
        (f'path\n"{"a" * 200_000}"\n', "line 1: expected a table of paths, field larger than field limit"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path, text, message):
    file = tmp_path / "t.csv"
    file.write_text(text)
    limit = csv.field_size_limit(1 << 17)  # of the whole process: other readers of tables raise it
    try:
        with pytest.raises(ImageSourceError, match=message):
            open_images(file)
    finally:
        csv.field_size_limit(limit)


def test_a_tar_is_never_followed_or_unpacked(tmp_path):
    file = tmp_path / "bad.tar"
    with tarfile.open(file, "w") as tar:
        for name, kind in [("l.png", tarfile.SYMTYPE), ("h.png", tarfile.LNKTYPE), ("d.png", tarfile.CHRTYPE)]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        for name in ("/abs.png", "a/../../up.png", ".hidden.png", "notes.txt", "good.png"):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))
    source = open_images(file)
    assert content(source) == [("good.png", b"abc")]
    assert source.left_out == {
        "links and devices": 3,
        "names that lead outside": 2,
        "hidden": 1,
        "not named as images": 1,
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.tar"]


def test_a_tar_with_long_names_and_one_that_shrinks(tmp_path):
    long = "x" * 300 + ".png"
    file = write_tar(tmp_path / "t.tar", {long: b"1" * 1000, "b.png": b"2" * 600})
    source = open_images(file)
    assert content(source) == [(long, b"1" * 1000), ("b.png", b"2" * 600)]
    os.truncate(file, source_end := file.stat().st_size // 8)
    assert source_end < 2048
    with pytest.raises(ImageSourceError, match=r"expected 600 bytes, got 0"):
        source.read(1)


def test_damaged_compressed_and_double_tars_are_refused(tmp_path):
    whole = write_tar(tmp_path / "w.tar", {"a.png": b"1" * 5000, "b.png": b"2" * 5000})
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:8000])
    with pytest.raises(ImageSourceError, match=r"expected a whole tar, unexpected end of data"):
        open_images(tmp_path / "cut.tar")
    (tmp_path / "t.tgz").write_bytes(gzip.compress(whole.read_bytes()))
    with pytest.raises(ImageSourceError, match=r"is compressed.*unpack it with gunzip"):
        open_images(tmp_path / "t.tgz")
    with tarfile.open(whole, "a") as tar:
        member = tarfile.TarInfo("a.png")
        tar.addfile(member, io.BytesIO())
    with pytest.raises(ImageSourceError, match=r"expected each image once, got 'a.png' again"):
        open_images(whole)


def test_nothing_that_could_be_a_source_is_said(tmp_path):
    with pytest.raises(ImageSourceError, match=r"nothing is there"):
        open_images(tmp_path / "absent")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ImageSourceError, match=r"no image is in it \(left out: 1 not named as images\)"):
        open_images(tmp_path)
    (tmp_path / "one.png").write_bytes(draw(0))
    with pytest.raises(ImageSourceError, match=r"got a file that begins b'.x89PNG"):
        open_images(tmp_path / "one.png")
    with pytest.raises(ImageSourceError, match=r"split 'test' is of a records folder"):
        open_images(tmp_path, "test")


def test_records_are_read_split_after_split(tmp_path):
    records = write_tiles(tmp_path / "r", count=6, tests=2)
    both = content(open_images(records))
    expected = [(record.id, record.image) for split in ("test", "train") for record in open_records(records, split)]
    assert both == expected
    assert len(both) == 6
    one = open_images(records, "train")
    assert content(one) == expected[2:]
    assert one.fingerprint != open_images(records).fingerprint
    with pytest.raises(RecordError, match=r"no split 'val'"):
        open_images(records, "val")


def refuse_reading(monkeypatch: pytest.MonkeyPatch, broken: Path, number: int) -> None:
    read_bytes = Path.read_bytes

    def read(self: Path) -> bytes:
        if self == broken:
            raise OSError(number, os.strerror(number), str(self))
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", read)


def test_images_are_read_in_order_and_sizes_are_theirs(folder, tmp_path):
    source = open_images(folder)
    assert list(read_images(source, range(1, 4))) == [(NAMES[index], draw(index)) for index in range(1, 4)]
    (folder / NAMES[2]).write_bytes(b"12345")
    assert source.sizes is not None
    assert source.sizes(range(1, 3)).tolist() == [len(draw(1)), 5]
    assert open_images(write_tar(tmp_path / "t.tar", {"a.png": b"1"})).sizes is None  # its fingerprint has them


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES, errno.ENOENT])
def test_a_disk_that_cannot_be_read_is_no_damaged_image(folder, monkeypatch, number):
    refuse_reading(monkeypatch, folder / NAMES[2], number)
    with pytest.raises(ImageSourceError, match=r"b.png cannot be read: .* says nothing of the image"):
        list(read_images(open_images(folder), range(4)))


def test_a_listed_path_without_a_file_is_damage_unless_its_disk_has_gone(folder, tmp_path, monkeypatch):
    listed = tmp_path / "list.txt"
    (tmp_path / "disk").mkdir()
    listed.write_text("tiles/gone.png\ntiles/b.png\ntiles/a\ndisk/a.png\nabsent/a.png\n")
    source = open_images(listed)
    (_, gone), (_, there), (_, a_folder) = read_images(source, range(3))
    assert isinstance(gone, ImageError)
    assert "No such file" in str(gone)
    assert there == draw(2)
    assert isinstance(a_folder, ImageError)
    assert source.sizes is not None
    assert source.sizes(range(2)).tolist() == [-1, len(draw(2))]
    for place in (3, 4):  # a place where nothing is mounted any more; a folder that went with its disk
        with pytest.raises(ImageSourceError, match=r"a.png: No such file .* folder is empty or not there"):
            list(read_images(source, range(place, place + 1)))
    refuse_reading(monkeypatch, folder / NAMES[2], errno.ESTALE)
    with pytest.raises(ImageSourceError, match=r"says nothing of the image"):
        list(read_images(source, range(2)))


def test_a_damaged_shard_is_no_damaged_image(tmp_path, monkeypatch):
    source = open_images(write_tiles(tmp_path / "r", count=6, tests=2))

    def fail(*_: object) -> bytes:
        raise RecordError("shard 0: cannot be read from the shard")

    monkeypatch.setattr(RecordFolder, "read_bytes", fail)
    with pytest.raises(ImageSourceError, match=r"shard 0.*is the disk there"):
        source.read(0)
