"""Positive regions as QuPath annotations, the windows of a trajectory as detections."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from slidelens.export.base import Exporter
from slidelens.geometry import Box
from slidelens.maps.geojson import region_features, write_features
from slidelens.maps.trajectory import window_features
from slidelens.slide.bounds import in_qupath

if TYPE_CHECKING:
    from pathlib import Path

    from slidelens.maps.result import Result

__all__ = ["EXPORTER"]

log = logging.getLogger(__name__)


def _write(result: Result, path: Path) -> None:
    features = region_features(result.regions, result.classes)
    if result.trajectory is not None:
        features += window_features(result.trajectory)
    write_features(path, features)
    if result.slide.bounds is not None:
        log.warning("%s: %s", result.slide.id, in_qupath(Box(*result.slide.bounds)))


EXPORTER = Exporter(
    "geojson",
    "Positive regions with class, area and mean probability, and where a MagNet looked, "
    "for QuPath.",
    ".geojson",
    _write,
)
