"""Tables of spreadsheets: what separates is read off the header."""

import pytest

from slidelens.tables import read_rows


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_header_says_what_separates(separator):
    lines = [f"slide_id{separator} label ", f'a{separator}"x{separator}y"']
    rows, columns, found = read_rows(lines)
    assert (columns, found) == (["slide_id", "label"], separator)
    assert list(rows) == [{"slide_id": "a", "label": f"x{separator}y"}]
    assert rows.line_num == 2


def test_a_quoted_cell_may_hold_a_line_break():
    rows, _, _ = read_rows(["a,b\n", '"1\n', '2",3\n'])
    assert list(rows) == [{"a": "1\n2", "b": "3"}]


def test_nothing_has_no_columns():
    rows, columns, _ = read_rows([])
    assert columns == []
    assert list(rows) == []
