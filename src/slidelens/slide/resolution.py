"""The source of a slide's resolution: header, user, table or objective power."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import normalize

from slidelens.errors import MissingMppError, SlideError
from slidelens.geometry import Mpp
from slidelens.tables import read_rows, read_text

if TYPE_CHECKING:
    from slidelens.slide.reader import Facts

__all__ = ["PRINT_MPP", "GivenMpp", "read_mpp_table", "resolve_mpp", "table_of"]

GivenMpp = float | tuple[float, float] | Mpp | str | Path | None

log = logging.getLogger(__name__)

_FAR = 0.1
"""Relative difference between a given resolution and the file's that deserves a message."""
PRINT_MPP = 10.0
"""A resolution tag of a plain TIFF is µm/px of the specimen only below this.

72 dpi is 353 µm/px, 1200 dpi is 21 and 2400 dpi is 10.6: settings of printers and office scanners,
written by programs that know nothing about microscopes.
"""


def resolve_mpp(
    facts: Facts, path: Path, slide: str, given: GivenMpp
) -> tuple[Mpp | None, str | None]:
    """Return the resolution to use and its source.

    A number overrides the file. A table's row overrides the file; a table without a row for the
    slide is mentioned in the log. ``"from-objective"`` only fills in for a file that states none,
    as 10 µm over the objective power.

    Parameters
    ----------
    facts, path, slide
        Of the opened file; ``slide`` is its id.
    given
        As the user gave it.

    Raises
    ------
    MissingMppError
        ``"from-objective"``, and the file states neither.
    SlideError
        The table cannot be used.
    """
    if given is None:
        return facts.mpp, facts.mpp_source
    table = table_of(given)
    if table is not None:
        row = _from_table(table, slide, path)
        if row is not None:
            return row, f"table {table.name}"
        if facts.mpp is not None:  # otherwise it is an error, as soon as the resolution is needed
            log.warning(
                "%s: no row for slide %r, which keeps the %.4g µm/px of its file (%s); rows name "
                "a slide by its id or its file's name",
                *(table, slide, facts.mpp.mean, facts.mpp_source),
            )
        return facts.mpp, facts.mpp_source
    if given == "from-objective":
        return _from_objective(facts, path)
    if isinstance(given, str | Path):
        raise ValueError(  # noqa: TRY004  # a word, but the wrong one
            f"mpp is a number, the path of a CSV or 'from-objective', not {given!r}"
        )
    mpp = Mpp.of(given)
    if facts.mpp is not None and abs(mpp.mean / facts.mpp.mean - 1) > _FAR:
        log.warning(
            "%s: read at the given %.4g µm/px, though its file states %.4g (%s)",
            *(path.name, mpp.mean, facts.mpp.mean, facts.mpp_source),
        )
    return mpp, "given"


def table_of(given: GivenMpp) -> Path | None:
    """Return the table that a user named, as a path or as text; ``None`` if it is not a table."""
    if isinstance(given, str) and given != "from-objective":
        place = Path(given)
        return place if place.suffix.lower() == ".csv" or place.is_file() else None
    return given if isinstance(given, Path) else None


def _from_objective(facts: Facts, path: Path) -> tuple[Mpp, str | None]:
    if facts.mpp is not None:
        return facts.mpp, facts.mpp_source
    power = facts.objective_power
    if not power or power <= 0:
        raise MissingMppError(
            f"{path}: the file states neither a resolution nor an objective power, so nothing can "
            "be derived from the objective; give --mpp X."
        )
    return Mpp.of(10.0 / power), f"objective power {power:g}x"


def _from_table(table: Path, slide: str, path: Path) -> Mpp | None:
    rows = read_mpp_table(table)
    return rows.get(slide, rows.get(normalize("NFC", path.name)))


def read_mpp_table(table: Path) -> dict[str, Mpp]:
    """Read a CSV file with columns ``slide`` and ``mpp`` (µm/px): name of slide to resolution.

    It is separated by commas, semicolons (then 0,5 is a number too) or tabs.

    Raises
    ------
    SlideError
        The table cannot be read, lacks these columns, has two rows for one slide, or a value that
        is not a number above 0.
    """
    lines = read_text(table, SlideError).splitlines()
    found: dict[str, Mpp] = {}
    reader, columns, separator = read_rows(lines, table, SlideError)
    if not {"slide", "mpp"} <= set(columns):
        raise SlideError(
            f"{table}: expected a CSV with the columns `slide,mpp` and one row or more."
        )
    for row in reader:
        name = normalize("NFC", (row["slide"] or "").strip())  # a slide's id is, too
        text = (row["mpp"] or "").strip()
        if not name and not text:
            continue
        if name in found:
            raise SlideError(f"{table}, line {reader.line_num}: a second row of {name}; keep one.")
        try:
            found[name] = Mpp.of(float(text if separator == "," else text.replace(",", ".")))
        except ValueError as error:
            raise SlideError(
                f"{table}, line {reader.line_num}: mpp of {name} must be a number above 0, "
                f"not {text!r}."
            ) from error
    if not found:
        raise SlideError(f"{table}: has no row; expected the columns `slide,mpp`.")
    return found
