"""Lesion candidates as the CAMELYON16 evaluation reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from slidelens.errors import ResultError
from slidelens.export.base import Exporter
from slidelens.files import write_atomic
from slidelens.geometry import Box

if TYPE_CHECKING:
    from pathlib import Path

    from slidelens.maps.map import Map
    from slidelens.maps.regions import Region
    from slidelens.maps.result import Result

__all__ = ["EXPORTER"]


def _write(result: Result, path: Path) -> None:
    source = next((m for m in result.maps.values() if m.kind == "probability"), None)
    if source is None:
        raise ResultError(f"{result.slide.id}: the result has no probability map to export.")
    found = [_peak(source, r) for r in result.regions if r.label == result.classes[-1]]
    found.sort(reverse=True)
    write_atomic(path, "".join(f"{p:.6g},{x:.0f},{y:.0f}\n" for p, x, y in found))


def _peak(source: Map, region: Region) -> tuple[float, float, float]:
    """Return the largest probability in a region and the centre of its cell in level-0 px."""
    import shapely

    left, top, right, bottom = region.polygon.bounds
    box = Box(left, top, right - left, bottom - top)
    rows, columns = source.window(box)
    values = source.read(box)[source.channel(region.label)]
    y, x = np.mgrid[rows, columns] + 0.5
    centres = source.affine.apply(np.stack([x, y], -1))
    inside = shapely.contains_xy(region.polygon, centres[..., 0], centres[..., 1])
    at = np.unravel_index(np.argmax(np.where(inside & ~np.isnan(values), values, -1)), inside.shape)
    return float(values[at]), float(centres[at][0]), float(centres[at][1])


EXPORTER = Exporter(
    "camelyon16-csv",
    "One line probability,X,Y per region of the last class: its peak, for the CAMELYON16 FROC.",
    ".csv",
    _write,
)
