"""Names of qtpy that type checkers cannot follow."""

from __future__ import annotations

from typing import Any

from qtpy import QtCore, QtGui, compat

__all__ = ["Shortcut", "Signal", "alive"]

Signal: Any = QtCore.Signal  # type: ignore[attr-defined]  # reason: made when qtpy is imported
Shortcut: Any = QtGui.QShortcut  # type: ignore[attr-defined]  # reason: as above


def alive(thing: QtCore.QObject) -> bool:
    """Return whether Qt's part of an object still exists."""
    return bool(compat.isalive(thing))  # type: ignore[no-untyped-call]
