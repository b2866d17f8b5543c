"""The scan finds a needle in every form that a file of the pipeline can have; each form is made by another library."""

import base64
import bz2
import gzip
import json
import lzma
import sqlite3
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from small_work import make_image

from data_prep.removing.byte_scan import byte_scan, image_needles, text_needles
from plip_jax.data.records import Record, encode_record, open_shard_writer

TEXT = 'Caption of a "naevus" <b>näher</b> & more'
DIGEST = "0123456789abcdef" * 4
IMAGE = make_image(5, "JPEG")
NEEDLES = {"text": text_needles(TEXT), "digest": text_needles(DIGEST), "image": image_needles(IMAGE)}
LONG = ("filler " * 40 + TEXT + " filler" * 40).encode()


def forms(folder: Path, needle: str) -> set[str]:
    return {hit.form for hit in byte_scan([folder], NEEDLES) if hit.needle == needle}


@pytest.mark.parametrize(
    ("name", "data", "form"),
    [
        ("a.txt", TEXT.encode(), "as it lies"),
        ("a.json", json.dumps({"caption": TEXT}).encode(), "as it lies"),
        ("a.html", b"<p>Caption of a &quot;naevus&quot; &lt;b&gt;n\xc3\xa4her&lt;/b&gt; &amp; more", "as it lies"),
        ("a.url", b"q=Caption%20of%20a%20%22naevus%22%20%3Cb%3En%C3%A4her%3C%2Fb%3E%20%26%20more", "as it lies"),
        ("a.utf16", TEXT.encode("utf-16"), "as it lies"),
        ("a.gz", gzip.compress(LONG, mtime=0), "gzip"),
        ("a.xz", lzma.compress(LONG), "xz"),
        ("a.bz2", bz2.compress(LONG), "bzip2"),
        ("a.zst", zstandard.ZstdCompressor().compress(LONG), "zstandard"),
        ("a.xz.gz", gzip.compress(lzma.compress(LONG), mtime=0), "gzip, xz"),
        ("page.html", b"<img src='data:text/plain;base64," + base64.b64encode(LONG) + b"'>", "Base64"),
    ],
)
def test_a_text_is_found_in(tmp_path: Path, name: str, data: bytes, form: str):
    (tmp_path / name).write_bytes(data)
    assert form in forms(tmp_path, "text")


def test_a_digest_is_found_as_name_as_text_and_as_bytes(tmp_path: Path):
    (tmp_path / "01").mkdir()
    (tmp_path / "01" / DIGEST).write_bytes(b"")
    assert forms(tmp_path, "digest") == {"path"}
    (tmp_path / "names.npy").write_bytes(b"")
    np.save(tmp_path / "names.npy", np.asarray([DIGEST]))
    np.save(tmp_path / "bytes.npy", np.frombuffer(bytes.fromhex(DIGEST), np.uint8))
    found = {Path(hit.path).name for hit in byte_scan([tmp_path], NEEDLES) if hit.form == "as it lies"}
    assert found == {"bytes.npy", "names.npy"}


def test_tables_are_read(tmp_path: Path):
    table = pa.table({"caption": [TEXT, "other"] * 500, "digest": [DIGEST, ""] * 500, "scores": [{"a": 1}] * 1000})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    assert "parquet" in forms(tmp_path, "text")
    assert "parquet" in forms(tmp_path, "digest")


def test_a_long_value_of_a_database_is_found_across_its_pages(tmp_path: Path):
    long = "x" * 4060 + TEXT + "y" * 4000  # longer than a page of 4096 bytes: it lies in pieces
    with sqlite3.connect(tmp_path / "a.sqlite") as database:
        database.execute("CREATE TABLE urls (url TEXT)")
        database.execute("INSERT INTO urls VALUES (?)", (long,))
    database.close()
    assert "table urls" in forms(tmp_path, "text")
    (tmp_path / "a.sqlite.gz").write_bytes(gzip.compress((tmp_path / "a.sqlite").read_bytes()))
    assert "gzip, table urls" in forms(tmp_path, "text")


def test_records_and_archives_are_opened(tmp_path: Path):
    writer = open_shard_writer(tmp_path / "a-train.array_record-00000-of-00001")
    for number in range(3):
        image = IMAGE if number == 1 else make_image(70 + number)
        writer.write(encode_record(Record(f"id{number}", image, (TEXT if number == 2 else "other",))))
    writer.close()
    assert "record 2" in forms(tmp_path, "text")
    assert "record 1" in forms(tmp_path, "image")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.txt", LONG)
    assert "zip inner.txt" in forms(tmp_path, "text")


def test_image_needles_are_not_in_another_image_of_its_kind(tmp_path: Path):
    (tmp_path / "page.html").write_text(base64.b64encode(IMAGE).decode())
    assert forms(tmp_path, "image") == {"Base64"}
    for number in range(20):
        (tmp_path / f"{number}.jpg").write_bytes(make_image(100 + number, "JPEG"))
        (tmp_path / f"{number}.png").write_bytes(make_image(100 + number))
    assert {Path(hit.path).name for hit in byte_scan([tmp_path], NEEDLES)} == {"page.html"}


def test_damaged_files_are_searched_as_they_lie(tmp_path: Path):
    for name, data in {
        "a.gz": gzip.compress(LONG, mtime=0)[:30],
        "b.parquet": b"PAR1",
        "c.sqlite": b"SQLite format 3\0",
    }.items():
        (tmp_path / name).write_bytes(data + TEXT.encode())
    found = [Path(hit.path).name for hit in byte_scan([tmp_path], NEEDLES) if hit.needle == "text"]
    assert found == ["a.gz", "b.parquet", "c.sqlite"]
