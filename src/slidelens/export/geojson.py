"""Positive regions as QuPath annotations, the windows of a trajectory as detections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slidelens.export.base import Exporter
from slidelens.maps.geojson import region_features, write_features
from slidelens.maps.trajectory import window_features

if TYPE_CHECKING:
    from pathlib import Path

    from slidelens.maps.result import Result

__all__ = ["EXPORTER"]


def _write(result: Result, path: Path) -> None:
    features = region_features(result.regions, result.classes)
    if result.trajectory is not None:
        features += window_features(result.trajectory)
    write_features(path, features)


EXPORTER = Exporter(
    "geojson",
    "Positive regions with class, area and mean probability, and where a MagNet looked, "
    "for QuPath.",
    ".geojson",
    _write,
)
