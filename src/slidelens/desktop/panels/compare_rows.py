"""Rows of the Compare panel's lists: methods, and regions on which they differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QTreeWidgetItem

if TYPE_CHECKING:
    from slidelens.desktop.state.agreement import Disagreement
    from slidelens.desktop.state.library import Entry

__all__ = ["FOLDER", "method_row", "region_row"]

FOLDER = Qt.ItemDataRole.UserRole
"""Role of a method's row that has the folder of its result."""


def method_row(entry: Entry, ticked: bool) -> QTreeWidgetItem:
    """Return the row of a method; one that cannot be compared is disabled, and its tip says why.

    Parameters
    ----------
    entry
        Its result.
    ticked
        Whether it is compared.
    """
    item = QTreeWidgetItem([entry.model, entry.score, "" if entry.misfit else entry.call])
    item.setData(0, FOLDER, str(entry.folder))
    for column in range(3):
        item.setToolTip(column, entry.about)
    if entry.error or entry.misfit:
        item.setDisabled(True)
    else:
        item.setCheckState(0, Qt.CheckState.Checked if ticked else Qt.CheckState.Unchecked)
    return item


def region_row(number: int, region: Disagreement) -> QTreeWidgetItem:
    """Return the row of a region on which methods differ.

    Parameters
    ----------
    number
        Counted from 1.
    region
        Where it is, and which methods call it positive.
    """
    who = ", ".join(region.positive) or "mixed"
    item = QTreeWidgetItem([str(number), who, f"{region.area_mm2:.3g}", f"{region.spread:.2f}"])
    item.setToolTip(1, f"Called positive by {who}; mean difference {region.spread:.2f}")
    for column in (2, 3):
        item.setTextAlignment(column, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
    return item
