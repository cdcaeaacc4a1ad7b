"""The napari plugin: readers, layers, panels."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slidelens.desktop.launch import view

__all__ = ["view"]


def __getattr__(name: str) -> object:
    # The manifest's commands come through this package; only `view` needs napari at once.
    if name == "view":
        from slidelens.desktop.launch import view

        return view
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
