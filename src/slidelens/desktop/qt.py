"""What qtpy names in a way that type checkers cannot follow."""

from __future__ import annotations

from typing import Any

from qtpy import QtCore, compat

__all__ = ["Signal", "alive"]

Signal: Any = QtCore.Signal  # type: ignore[attr-defined]  # reason: made when qtpy is imported


def alive(thing: QtCore.QObject) -> bool:
    """Say whether Qt's part of an object still exists."""
    return bool(compat.isalive(thing))  # type: ignore[no-untyped-call]
