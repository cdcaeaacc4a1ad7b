"""Lesion candidates as the CAMELYON16 evaluation reads them."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

from slidelens.export.base import Exporter
from slidelens.files import write_atomic
from slidelens.maps.lesions import peaks_of

if TYPE_CHECKING:
    from pathlib import Path

    from slidelens.maps.result import Result

__all__ = ["EXPORTER"]


def _write(result: Result, path: Path) -> None:
    label = result.classes[-1]
    source = result.map_of(label)
    polygons = [r.polygon for r in result.regions if r.label == label]
    peaks = sorted(peaks_of(source, polygons, label), key=lambda peak: -peak.probability)
    known = [p for p in peaks if isfinite(p.probability)]  # others lie where nothing was computed
    write_atomic(path, "".join(f"{p.probability:.6g},{p.x:.0f},{p.y:.0f}\n" for p in known))


EXPORTER = Exporter(
    "camelyon16-csv",
    "One line probability,X,Y per region of the last class: its peak, for the CAMELYON16 FROC.",
    ".camelyon16.csv",
    _write,
)
