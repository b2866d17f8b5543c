import bz2
import gzip
import io
import json
import lzma

import pytest
import zstandard

from data_prep.sources import json_lines
from data_prep.sources.json_lines import DocumentsError, read_documents
from data_prep.sources.post import Drop


def entries(path, **settings):
    return [item for item in read_documents(path, **settings) if not isinstance(item, Drop)]


def drops(path, **settings):
    return [(one.reason, one.where) for one in read_documents(path, **settings) if isinstance(one, Drop)]


def write(tmp_path, data, name="page3.json"):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_lines_are_read_with_their_places_whatever_their_ends(tmp_path):
    path = write(tmp_path, b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": "x\xe2\x80\xa8y"}\n{"a": 3}')
    assert list(read_documents(path)) == [
        ("page3.json line 1", {"a": 1}),
        ("page3.json line 4", {"a": "x\u2028y"}),
        ("page3.json line 5", {"a": 3}),
    ]


@pytest.mark.parametrize("indent", [None, 0, 1, 4])
@pytest.mark.parametrize(
    "document", [{"a": [1, {"b": "x\ny"}], "c": "d"}, {"data": [{"id": "1"}, {"id": "2"}], "meta": {"n": 2}}]
)
def test_one_document_is_read_whatever_its_indentation(tmp_path, document, indent):
    path = write(tmp_path, json.dumps(document, indent=indent))
    place = "page3.json line 1" if indent is None else "page3.json"
    assert list(read_documents(path)) == [(place, document)]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[{"a": 1}, {"a": 2}]', "page3.json line 1 item {}"),
        ('[\n{"a": 1},\n{"a": 2}\n]\n', "page3.json item {}"),
        ('[{"a": 1},\n{"a": 2}]', "page3.json item {}"),
        ('\n[\n  {\n    "a": 1\n  },\n  {"a": 2}]', "page3.json item {}"),
    ],
)
def test_a_list_gives_its_entries(tmp_path, text, place):
    path = write(tmp_path, text)
    assert list(read_documents(path)) == [(place.format(1), {"a": 1}), (place.format(2), {"a": 2})]


def test_pretty_printed_documents_may_follow_each_other(tmp_path):
    path = write(tmp_path, '{\n "a": 1\n}\n{\n "a": 2\n}\n\n[\n {"a": 3}\n]\n')
    assert list(read_documents(path)) == [
        ("page3.json", {"a": 1}),
        ("page3.json line 4", {"a": 2}),
        ("page3.json line 8 item 1", {"a": 3}),
    ]


@pytest.mark.parametrize(
    "bad",
    [
        b'{"a": ',
        b'{"a": 1',
        b'{"a": 1}}',
        b'{"a": 1,}',
        b"{'a': 1}",
        b'{"a": "x',
        b'{"a": "\xff"}',
        b'{"a": "\0"}',
        b"\0\0\0\0",
        b"17",
        b'"text"',
        b"null",
        b"[[1]]",
        b"[" * 200_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[",
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_bad_line_is_named_and_costs_no_other(tmp_path, bad, place):
    lines = [b'{"id": 1}', b'{"id": 2}', b'{"id": 3}']
    lines.insert(place, bad)
    path = write(tmp_path, b"\n".join(lines) + b"\n")
    where = f"page3.json line {place + 1}"
    assert [entry for _, entry in entries(path)] == [{"id": 1}, {"id": 2}, {"id": 3}]
    assert [(reason, at.removesuffix(" item 1")) for reason, at in drops(path)] == [("malformed", where)]


def test_a_detail_says_where_and_holds_nothing_of_the_text(tmp_path):
    path = write(tmp_path, b'{"text": "secret", oops}\n{"text": "secret \xff"}\n' + b'{"a": "secret"')
    details = [one.detail for one in read_documents(path) if isinstance(one, Drop)]
    assert len(details) == 3
    assert "line 1 column 20" in details[0]
    assert details[1] == "not UTF-8 at byte 17"
    assert not any("secret" in detail or "oops" in detail for detail in details)


def test_a_broken_document_over_lines_is_one_drop(tmp_path):
    path = write(tmp_path, '{\n "a": 1\n}\n{\n "a": [1,\n  oops]\n}\n')
    assert entries(path) == [("page3.json", {"a": 1})]
    assert drops(path) == [("malformed", "page3.json line 4")]
    assert drops(write(tmp_path, b'{\n "a": "\xff"\n}')) == [("malformed", "page3.json")]


def test_long_lines_and_long_documents_are_left_out(tmp_path):
    path = write(tmp_path, json.dumps({"a": 1}) + "\n" + json.dumps({"a": "x" * 100_000}) + '\n{"a": 2}\n')
    assert entries(path, max_bytes=50) == [("page3.json line 1", {"a": 1}), ("page3.json line 3", {"a": 2})]
    assert drops(path, max_bytes=50) == [("malformed", "page3.json line 2")]
    line = b'{"a": "12345"}'
    assert entries(write(tmp_path, line + b"\n" + line), max_bytes=len(line)) == [
        ("page3.json line 1", {"a": "12345"}),
        ("page3.json line 2", {"a": "12345"}),
    ]
    path = write(tmp_path, json.dumps({"a": list(range(50))}, indent=1))
    assert drops(path, max_bytes=100) == [("malformed", "page3.json")]


def pack_zstd(data, threads=0):
    return zstandard.ZstdCompressor(threads=threads).compress(data)


PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": pack_zstd}
# digits that do not pack well, so that a file cut in half has lost half of its lines
LINES = b"".join(b'{"id": %d, "noise": "%d"}\n' % (index, index**97) for index in range(2000))


@pytest.mark.parametrize("packer", PACKERS.values(), ids=PACKERS)
def test_packed_files_are_told_by_their_bytes(tmp_path, packer):
    path = write(tmp_path, packer(LINES) + packer(b'{"id": 2000}\n'), "page.json")
    found = entries(path)
    assert [entry["id"] for _, entry in found] == list(range(2001))
    assert found[-1][0] == "page.json line 2001"
    assert drops(path) == []
    assert list(read_documents(write(tmp_path, packer(b"")))) == []


@pytest.mark.parametrize("packer", PACKERS.values(), ids=PACKERS)
def test_a_file_that_breaks_off_gives_what_came_before(tmp_path, packer):
    packed = packer(LINES)
    path = write(tmp_path, packed[: len(packed) // 2], "page.json.gz")
    found = entries(path)
    assert [entry["id"] for _, entry in found] == list(range(len(found)))
    assert drops(path)[-1] == ("truncated", f"page.json.gz line {len(found) + 1}")
    assert len(drops(path)) == 1
    if packer is not bz2.compress and packer is not pack_zstd:  # those unpack blocks of 900 and 128 KB, or nothing
        assert 500 < len(found) < 1500
    document = packer(json.dumps({"a": [LINES.decode()]}, indent=1).encode())
    path = write(tmp_path, document[: len(document) // 2])
    assert [reason for reason, _ in drops(path)] == ["truncated"]


@pytest.mark.parametrize("packer", PACKERS.values(), ids=PACKERS)
def test_damage_within_a_packed_file_ends_it_and_raises_nothing(tmp_path, packer):
    packed = bytearray(packer(LINES))
    packed[len(packed) // 2 : len(packed) // 2 + 64] = bytes(64)
    found = list(read_documents(write(tmp_path, bytes(packed))))
    assert isinstance(found[-1], Drop)
    assert found[-1].reason == "truncated"
    # gzip finds garbled lines only by the checksum behind them: they are read, or are drops
    intact = found[: len(found) // 3]
    assert [entry[1]["id"] for entry in intact if isinstance(entry, tuple)] == list(range(len(intact)))


def test_zstd_frames_with_a_long_window_are_read(tmp_path):
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=27, enable_ldm=True)
    packed = io.BytesIO()
    with zstandard.ZstdCompressor(compression_params=parameters).stream_writer(packed, closefd=False) as writer:
        writer.write(LINES)
    assert len(entries(write(tmp_path, packed.getvalue()))) == 2000


def test_what_is_no_file_is_an_error_and_an_empty_one_is_nothing(tmp_path):
    with pytest.raises(DocumentsError, match="No such file"):
        next(read_documents(tmp_path / "absent.json"))
    with pytest.raises(DocumentsError, match="directory"):
        next(read_documents(tmp_path))
    assert list(read_documents(write(tmp_path, b""))) == []
    assert list(read_documents(write(tmp_path, b"\n \n"))) == []


def test_lines_are_streamed(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "_read_whole", lambda *_: pytest.fail("a file of lines was read whole"))
    reader = read_documents(write(tmp_path, LINES))
    assert next(reader)[1]["id"] == 0
