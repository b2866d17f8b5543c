import pytest

from data_prep.sources.delimited import TableError, read_header, read_lines
from data_prep.sources.post import Drop
from data_prep.sources.table import find_source


def write(tmp_path, data):
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    return path


def test_a_byte_that_is_no_text_costs_its_row_alone(tmp_path):
    path = write(tmp_path, b"id,text\n1,a\n2,caf\xe9\n3,caf\xc3\xa9\n")
    assert list(read_lines(path)) == [
        ("t.csv line 2", ["1", "a"]),
        Drop("malformed", "t.csv line 3", detail="not UTF-8"),
        ("t.csv line 4", ["3", "caf\u00e9"]),
    ]
    with pytest.raises(TableError, match="not UTF-8"):
        list(read_lines(path, strict=True))
    path.write_bytes(b"id,caf\xe9\n1,a\n")
    with pytest.raises(TableError, match="not UTF-8"):
        read_header(path)


@pytest.mark.parametrize("broken", [b'"never closed\n3,c\n4,d\n', b'"not "doubled"\n3,c\n4,d\n'])
def test_behind_a_quote_that_is_not_closed_no_line_is_sure(tmp_path, broken):
    path = write(tmp_path, b"id,text\n1,a\n\n2," + broken)
    whole, cut = read_lines(path)
    assert whole == ("t.csv line 2", ["1", "a"])
    assert (cut.reason, cut.where) == ("truncated", "t.csv line 4")
    assert cut.detail.endswith("a quote is not closed or not doubled; 2 lines behind it were not read")
    with pytest.raises(TableError, match="is a quote not closed"):
        list(read_lines(path, strict=True))


@pytest.mark.parametrize("kind", ["csv", "figures", "ipath", "openpath_csv", "laion"])
@pytest.mark.parametrize("end", [b"Twitter,a.png,caf\xe9,3,u,0\n", b'Twitter,"a.png,c,3,u,0\n'])
def test_no_reader_of_tables_stops_at_a_damaged_row(tmp_path, kind, end):
    whole = b"source,image,caption,id,weblink,URL,TEXT,punsafe\nTwitter,a.png,c,3,u,https://h/a.png,x,0.1\n"
    path = write(tmp_path, whole + end.replace(b",u,0", b",u,https://h/b.png,x,0.1"))
    source = find_source(kind)
    found = list(source.read(path, source.settings(), source="s"))
    assert sorted(type(one).__name__ for one in found) == ["Drop", "Post"]
