"""Positive regions as QuPath annotations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slidelens.export.base import Exporter
from slidelens.maps.geojson import region_features, write_features

if TYPE_CHECKING:
    from pathlib import Path

    from slidelens.maps.result import Result

__all__ = ["EXPORTER"]


def _write(result: Result, path: Path) -> None:
    write_features(path, region_features(result.regions, result.classes))


EXPORTER = Exporter(
    "geojson",
    "Positive regions as polygons with class, area and mean probability, for QuPath.",
    ".geojson",
    _write,
)
