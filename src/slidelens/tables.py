"""Read CSV tables as people and spreadsheets write them, and write such as these read."""

from __future__ import annotations

import csv
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["Rows", "as_given", "as_text", "named", "read_rows", "read_text", "table_text"]

_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
"""How .xlsx and .ods begin, which are zip archives, and .xls."""


_FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""How a cell begins that spreadsheets compute; more apostrophes, so that one can be taken off."""


def as_text(cell: str) -> str:
    """Return a cell as spreadsheets take it for text: a formula with an apostrophe before it.

    Numbers are left alone.
    """
    with suppress(ValueError):
        float(cell)
        return cell
    return f"'{cell}" if _FORMULA.match(cell) else cell


def as_given(cell: str) -> str:
    """Return a cell without what :func:`as_text` put before it."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def read_text(path: Path, refused: Callable[[str], Exception]) -> str:
    """Read the text of a table; ``refused`` makes the error, of a message, where there is none."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise refused(f"{path}: cannot be read as a table ({error.strerror or error}).") from error
    what = "is not UTF-8 text, or no table"
    if content.startswith(_WORKBOOKS):
        what = "is a workbook or a zip archive, whatever its name says"
    else:
        with suppress(UnicodeDecodeError):
            text = table_text(content)
            if "\0" not in text:
                return text
            what = "is UTF-16 text without the mark that says so, or no table"
    raise refused(f"{path}: {what}; open it in a spreadsheet program and save it as CSV UTF-8.")


def table_text(content: bytes) -> str:
    """Return the text of a table in UTF-8, or in UTF-16 with its mark, as Excel's Unicode text is.

    Its lines end in a line feed alone.

    Raises
    ------
    UnicodeDecodeError
        Another encoding.
    """
    wide = content.startswith((BOM_UTF16_LE, BOM_UTF16_BE))
    text = content.decode("utf-16" if wide else "utf-8-sig")
    return text.replace("\r\n", "\n").replace("\r", "\n")


class Rows:
    """Rows of a table, by column; refused where a quotation mark is not closed behind its cell."""

    def __init__(
        self, reader: csv.DictReader[str], refused: Callable[[str], Exception], above: int
    ) -> None:
        self._reader, self._refused, self._above = reader, refused, above

    @property
    def line_num(self) -> int:
        """Number of the last line that was read, from 1."""
        return self._reader.line_num + self._above

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str | Any, str | Any]:
        start = self.line_num + 1
        try:
            return next(self._reader)
        except csv.Error as error:
            raise self._refused(
                f"what begins on line {start} cannot be read ({error}); look for a lone quotation "
                'mark (").'
            ) from error


def read_rows(
    lines: Sequence[str], path: Path, refused: Callable[[str], Exception]
) -> tuple[Rows, list[str], str]:
    """Return the rows below a header, its columns (stripped), and what separates them.

    That is comma, semicolon or tab, whichever the header has most of, or what Excel's first line
    ``sep=;`` says, which is no header. Without a line there are no columns.

    Parameters
    ----------
    lines
        The table's text.
    path
        Where it is from, for messages.
    refused
        Makes the error, of a message, that a column which is there twice is, and, while rows are
        read, a quotation mark that is not closed: it would take the rows below into its cell.
    """
    above = int(bool(lines) and lines[0].lower().startswith("sep=") and len(lines[0].rstrip()) <= 5)
    separator = lines[0][4:5].strip("\n") if above else ""
    lines = lines[above:]
    separator = separator or (max(",;\t", key=lines[0].count) if lines else ",")
    reader = csv.DictReader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    try:
        columns = [(name or "").strip() for name in reader.fieldnames or ()]
    except csv.Error as error:
        raise refused(f"{path}: its header cannot be read ({error}).") from error
    double = sorted({name for name in columns if name and columns.count(name) > 1})
    if double:
        raise refused(f"{path}: has the column {' and '.join(double)} twice; remove one.")
    reader.fieldnames = columns
    return Rows(reader, lambda text: refused(f"{path}: {text}"), above), columns, separator


def named(columns: Sequence[str], name: str) -> str:
    """Return which of the columns has a name, in any case; the name itself where none has."""
    alike = [column for column in columns if column.casefold() == name]
    return alike[0] if name not in columns and len(alike) == 1 else name
