"""Where a slide's resolution comes from: its header, the user, a table, or the objective."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from slidelens.errors import MissingMppError, SlideError
from slidelens.geometry import Mpp

if TYPE_CHECKING:
    from slidelens.slide.reader import Facts

__all__ = ["PRINT_MPP", "GivenMpp", "resolve_mpp"]

GivenMpp = float | tuple[float, float] | Mpp | Literal["from-objective"] | Path | None

log = logging.getLogger(__name__)

PRINT_MPP = 10.0
"""A resolution tag of a plain TIFF is µm/px of the specimen only below this.

72 dpi is 353 µm/px, 1200 dpi is 21 and 2400 dpi is 10.6: settings of printers and office scanners,
written by programs that know nothing of a microscope.
"""


def resolve_mpp(
    facts: Facts, path: Path, slide: str, given: GivenMpp
) -> tuple[Mpp | None, str | None]:
    """Return the resolution to use and where it comes from.

    A number wins over the file. A table's row wins over the file; a table without a row for the
    slide is said in the log. ``"from-objective"`` only fills in for a file that states none, as
    10 µm over the objective power.

    Parameters
    ----------
    facts, path, slide
        Of the opened file; ``slide`` is its id.
    given
        What the user said.

    Raises
    ------
    MissingMppError
        ``"from-objective"`` for a file that states neither.
    SlideError
        A table that cannot be used.
    """
    if given is None:
        return facts.mpp, facts.mpp_source
    if isinstance(given, Path):
        row = _from_table(given, slide, path)
        if row is not None:
            return row, f"table {given.name}"
        if facts.mpp is not None:  # else it is an error, as soon as the resolution is needed
            log.warning(
                "%s: no row for slide %r, which keeps the %.4g µm/px of its file (%s); rows name "
                "a slide by its id or its file's name",
                *(given, slide, facts.mpp.mean, facts.mpp_source),
            )
        return facts.mpp, facts.mpp_source
    if given == "from-objective":
        return _from_objective(facts, path)
    if isinstance(given, str):
        raise ValueError(  # noqa: TRY004  # a word, but the wrong one
            f"mpp is a number, a CSV path or 'from-objective', not {given!r}"
        )
    return Mpp.of(given), "given"


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
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SlideError(
            f"{table}: cannot be read as a CSV of `slide,mpp` rows ({error})."
        ) from error
    if not rows or not {"slide", "mpp"} <= set(rows[0]):
        raise SlideError(
            f"{table}: expected a CSV with the columns `slide,mpp` and one row or more."
        )
    for line, row in enumerate(rows, 2):
        if row["slide"] in (slide, path.name):
            try:
                return Mpp.of(float(row["mpp"]))
            except (TypeError, ValueError) as error:
                raise SlideError(
                    f"{table}, line {line}: mpp of {row['slide']} must be a number above 0, "
                    f"not {row['mpp']!r}."
                ) from error
    return None
