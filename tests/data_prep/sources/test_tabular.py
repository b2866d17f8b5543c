import csv
import gzip
import json

import openpyxl
import pyarrow as pa
import pyarrow.parquet
import pytest

from data_prep.sources.csv_table import TableError
from data_prep.sources.post import Drop
from data_prep.sources.tabular import cell, find_column, read_rows

ROWS = [{"file": "1.png", "caption": 'a "b"\nc', "n": "1"}, {"file": "2.png", "caption": "Pâté", "n": "2"}]
NEEDS = {"image": ("image", "file"), "caption": ("caption",)}


def write(path, rows):
    suffix = path.suffix
    if suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif suffix == ".xlsx":
        workbook = openpyxl.Workbook()
        workbook.active.append(list(rows[0]))
        for row in rows:
            workbook.active.append(list(row.values()))
        workbook.save(path)
    elif suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif suffix == ".gz":
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.xlsx", "t.parquet", "t.json", "t.jsonl.gz"])
def test_every_format_gives_the_same_rows(tmp_path, name):
    found = list(read_rows(write(tmp_path / name, ROWS), NEEDS))
    assert [row for _, row in found] == ROWS
    assert all(where.startswith(f"{name} ") for where, _ in found)


def test_places_are_those_of_the_file(tmp_path):
    places = {
        name: [where for where, _ in read_rows(write(tmp_path / name, ROWS), NEEDS)] for name in ("t.csv", "t.xlsx")
    }
    assert places == {"t.csv": ["t.csv line 2", "t.csv line 4"], "t.xlsx": ["t.xlsx row 2", "t.xlsx row 3"]}


def test_an_object_of_objects_is_a_table(tmp_path):
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"0": ROWS[0], "1": ROWS[1]}))
    assert list(read_rows(path, NEEDS)) == [
        ("captions.json line 1 row 1", ROWS[0]),
        ("captions.json line 1 row 2", ROWS[1]),
    ]


def test_a_row_of_another_length_is_dropped_in_place(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("file,caption\n1.png\n\n2.png,b,c\n3.png,d\n")
    assert list(read_rows(path, NEEDS)) == [
        Drop("wrong_number_of_fields", "t.csv line 2", detail="1 fields, the header has 2"),
        Drop("wrong_number_of_fields", "t.csv line 4", detail="3 fields, the header has 2"),
        ("t.csv line 5", {"file": "3.png", "caption": "d"}),
    ]


def test_a_sheet_may_be_ragged_and_have_empty_rows(tmp_path):
    workbook = openpyxl.Workbook()
    for row in (["file", None, "caption"], [], ["1.png"], [None, "x", 3.0]):
        workbook.active.append(row)
    workbook.save(tmp_path / "t.xlsx")
    assert [row for _, row in read_rows(tmp_path / "t.xlsx", NEEDS)] == [
        {"file": "1.png", "": None, "caption": None},
        {"file": None, "": "x", "caption": 3},
    ]


@pytest.mark.parametrize("name", ["t.csv", "t.xlsx", "t.parquet"])
def test_the_error_for_a_missing_column_lists_what_there_is(tmp_path, name):
    path = write(tmp_path / name, [{"picture": "1.png", "text": "x"}])
    expected = (
        r"no column for the image \(looked for image, file\); no column for the caption .*found: 'picture', 'text'"
    )
    with pytest.raises(TableError, match=expected):
        list(read_rows(path, NEEDS))


def test_a_needed_column_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("file,caption,caption,x,x\n")
    with pytest.raises(TableError, match="2 columns named 'caption'"):
        list(read_rows(tmp_path / "t.csv", NEEDS))


@pytest.mark.parametrize("name", ["t.csv", "t.xlsx", "t.parquet"])
@pytest.mark.parametrize("data", [None, b"", b"\xff\xfe\x00", b"PK\x03\x04 no archive", b'file,"caption\n1.png,x\n'])
def test_files_that_are_no_tables_are_named(tmp_path, name, data):
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(TableError, match=name):
        list(read_rows(path, NEEDS))


def test_an_unknown_format_lists_the_known_ones(tmp_path):
    with pytest.raises(TableError, match=r"expected a table \(\.csv, \.tsv, \.tab, \.xlsx, \.parquet, .*got \.ods"):
        list(read_rows(tmp_path / "t.ods", NEEDS))


@pytest.mark.parametrize(
    ("header", "names", "column"),
    [
        (("URL", "url"), ("url",), "url"),
        (("URL", "x"), ("url",), "URL"),
        (("Image Path",), ("image_path",), "Image Path"),
        (("image-path",), ("file", "imagePath"), "image-path"),
        (("b", "a"), ("a", "b"), "a"),
        (("images",), ("image",), None),
        ((), ("image",), None),
    ],
)
def test_the_column_of_a_name(header, names, column):
    assert find_column(header, names) == column


def test_a_cell_of_a_row_that_lacks_the_column_is_none():
    assert cell({"Caption": "x"}, ("caption",)) == "x"
    assert cell({"Caption": "x"}, ("text",)) is None
