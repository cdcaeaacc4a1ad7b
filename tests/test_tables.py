"""Tables of spreadsheets: what separates is read off the header."""

from pathlib import Path

import pytest

from slidelens.errors import LabelError
from slidelens.tables import read_rows, read_text, table_text

PATH = Path("t.csv")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_header_says_what_separates(separator):
    lines = [f"slide_id{separator} label ", f'a{separator}"x{separator}y"']
    rows, columns, found = read_rows(lines, PATH, LabelError)
    assert (columns, found) == (["slide_id", "label"], separator)
    assert list(rows) == [{"slide_id": "a", "label": f"x{separator}y"}]
    assert rows.line_num == 2


def test_a_quoted_cell_may_hold_a_line_break():
    rows, _, _ = read_rows(["a,b\n", '"1\n', '2",3\n'], PATH, LabelError)
    assert list(rows) == [{"a": "1\n2", "b": "3"}]


def test_nothing_has_no_columns():
    rows, columns, _ = read_rows([], PATH, LabelError)
    assert columns == []
    assert list(rows) == []


@pytest.mark.parametrize("cell", ['"5 mm', '"5" mm'])
def test_a_lone_quotation_mark_takes_no_rows_along(cell):
    lines = ["slide_id,size,label", "a,1,x", f"b,{cell},x", *(f"c{i},1,y" for i in range(20_000))]
    rows, _, _ = read_rows(lines, PATH, LabelError)
    assert next(rows)["slide_id"] == "a"
    with pytest.raises(LabelError, match=r"t\.csv: what begins on line 3 cannot be read"):
        list(rows)


def test_a_column_that_is_there_twice_is_refused():
    with pytest.raises(LabelError, match=r"t\.csv: has the column label twice"):
        read_rows(["slide_id,label,Label,label "], PATH, LabelError)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_utf_8_or_what_excel_calls_unicode_text(encoding):
    text = "slide_id\tlabel\r\nFall 7 µ\tnormal\r\n"
    assert table_text(text.encode(encoding)) == text.replace("\r", "")
    assert table_text(b"\xfe\xff" + text.encode("utf-16-be")) == text.replace("\r", "")


@pytest.mark.parametrize("content", ["µ".encode("latin-1"), "ab".encode("utf-16")[:-1]])
def test_text_in_another_encoding_or_cut_short_is_refused(content):
    with pytest.raises(UnicodeDecodeError):
        table_text(content)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("slide_id,label\n".encode("utf-16-le"), "is UTF-16 text without the mark"),
        (b"PK\x03\x04 rest of an .xlsx", "is a workbook or a zip archive"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1 rest of an .xls", "is a workbook or a zip archive"),
        ("slide_id\nä\n".encode("latin-1"), "is not UTF-8 text"),
    ],
)
def test_what_is_no_text_is_said_with_how_to_save_it(tmp_path, content, what):
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(
        LabelError, match=rf"labels\.csv: {what}.*; open it .* save it as CSV UTF-8"
    ):
        read_text(path, LabelError)
