import pytest

from data_prep.fetching.url_list import UrlListError, distinct, read_urls


def test_one_url_a_line(tmp_path):
    (tmp_path / "urls.txt").write_bytes(b"\xef\xbb\xbfhttp://a.test/1\r\n\n  http://a.test/2 \nhttp://a.test/\xff\n")
    assert list(read_urls(tmp_path / "urls.txt")) == ["http://a.test/1", "http://a.test/2", "http://a.test/\\xff"]


@pytest.mark.parametrize(("name", "mark"), [("t.csv", ","), ("t.tsv", "\t"), ("t.TAB", "\t")])
def test_the_column_of_a_table(tmp_path, name, mark):
    lines = [("caption", "url"), ('"one\ntwo"', "http://a.test/1"), ("no url",), ("x", ""), ("x", " http://a.test/2 ")]
    (tmp_path / name).write_text("\n".join(mark.join(line) for line in lines))
    assert list(read_urls(tmp_path / name)) == ["http://a.test/1", "http://a.test/2"]


def test_a_table_without_the_column_or_with_a_quote_that_never_ends(tmp_path):
    (tmp_path / "links.csv").write_text("id,link\n")
    with pytest.raises(UrlListError, match="no column 'url'; found 'id', 'link'"):
        list(read_urls(tmp_path / "links.csv"))
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(UrlListError, match="no column 'url'"):
        list(read_urls(tmp_path / "empty.csv"))
    (tmp_path / "open.csv").write_text('url\n"' + "x" * 2**24 + "y")
    with pytest.raises(UrlListError, match="is a quote not closed"):
        list(read_urls(tmp_path / "open.csv"))


def test_distinct_keeps_the_first_of_each_in_order():
    urls = [f"http://a.test/{n * n % 50}" for n in range(200)]
    assert list(distinct(urls)) == list(dict.fromkeys(urls))
    assert list(distinct(["\udc80", "\udc81", "\udc80"])) == ["\udc80", "\udc81"]
