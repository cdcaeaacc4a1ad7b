"""Ids that lost the zeros before their numbers, as Excel takes them away: ``001`` becomes ``1``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["zeros_hint"]


def zeros_hint(unknown: Iterable[str], there: Iterable[str]) -> str:
    """Say so if ids of a table would be those that are there, had they not lost their zeros.

    Parameters
    ----------
    unknown
        Ids of the table for which there is nothing.
    there
        Ids that there are.

    Returns
    -------
    str
        A sentence behind a space; empty if zeros are not what is missing.
    """
    padded = {name.lstrip("0"): name for name in there if name.startswith("0") and name.isdecimal()}
    lost = {name: padded[name] for name in unknown if name.isdecimal() and name in padded}
    if not lost:
        return ""
    first, meant = min(lost.items(), key=lambda pair: int(pair[0]))
    return (
        f" The ids seem to have lost zeros ({first} is {meant}), as spreadsheets take them away: "
        "make slide_id a column of text and write them again."
    )
