"""Tables that people keep in spreadsheets and give us as text."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["read_rows"]


def read_rows(lines: Sequence[str]) -> tuple[csv.DictReader[str], list[str], str]:
    """Return the rows below a header, its columns (stripped), and what separates them.

    That is comma, semicolon or tab, whichever the header has most of. Without a line there are no
    columns.
    """
    separator = max(",;\t", key=lines[0].count) if lines else ","
    rows = csv.DictReader(lines, delimiter=separator, skipinitialspace=True)
    columns = [(name or "").strip() for name in rows.fieldnames or ()]
    rows.fieldnames = columns
    return rows, columns, separator
