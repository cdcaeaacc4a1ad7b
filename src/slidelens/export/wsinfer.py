"""The table of tiles as WSInfer writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slidelens.errors import ResultError
from slidelens.export.base import Exporter

if TYPE_CHECKING:
    from pathlib import Path

    from slidelens.maps.result import Result

__all__ = ["EXPORTER"]


def _write(result: Result, path: Path) -> None:
    if result.tiles is None:
        raise ResultError(f"{result.slide.id}: the result has no table of tiles to export.")
    result.tiles.write(path, attention=False)


EXPORTER = Exporter(
    "wsinfer-csv",
    "Tiles in level-0 px with a probability per class, for WSInfer and QuPath.",
    ".csv",
    _write,
)
