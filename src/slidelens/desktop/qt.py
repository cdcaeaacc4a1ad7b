"""What qtpy names in a way that type checkers cannot follow."""

from __future__ import annotations

from typing import Any

from qtpy import QtCore

__all__ = ["Signal"]

Signal: Any = QtCore.Signal  # type: ignore[attr-defined]  # reason: made when qtpy is imported
