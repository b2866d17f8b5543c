"""Sorting more lines than memory holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.reports.sorted_lines import keyed_line, sorted_lines, values_of

LINES = st.lists(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E)), max_size=40)


@given(lines=LINES, run_lines=st.integers(1, 10))
def test_any_run_length_gives_the_order_of_sorted(tmp_path_factory, lines, run_lines):
    folder = tmp_path_factory.getbasetemp() / "runs"
    folder.mkdir(exist_ok=True)
    assert list(sorted_lines(iter(lines), folder, run_lines=run_lines)) == sorted(lines)
    assert not list(folder.iterdir())


def test_temporary_files_go_when_the_reader_stops_early(tmp_path):
    lines = sorted_lines(map(str, range(100)), tmp_path, run_lines=7)
    assert [next(lines), next(lines)] == ["0", "1"]
    assert list(tmp_path.iterdir())
    lines.close()
    assert not list(tmp_path.iterdir())


def test_temporary_files_go_when_the_input_fails(tmp_path):
    def failing():
        yield from map(str, range(20))
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        list(sorted_lines(failing(), tmp_path, run_lines=7))
    assert not list(tmp_path.iterdir())


def test_keys_sort_part_by_part(tmp_path):
    rows = [("x_reply", "1"), ("x", "2"), ("x!", "1"), ("x", "10"), ("x", "1\n2"), ("é", '"'), ("x", "")]
    lines = list(sorted_lines((keyed_line(row, {"row": row}) for row in rows), tmp_path, run_lines=2))
    found = [tuple(values_of(line)["row"]) for line in lines]
    # a newline and "é" are escapes, and a backslash stands between capital and small letters
    assert found == [("é", '"'), ("x", ""), ("x", "10"), ("x", "1\n2"), ("x", "2"), ("x!", "1"), ("x_reply", "1")]
