"""The lesions of a slide as a table: what a report lists."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from slidelens.export.base import Exporter
from slidelens.files import write_atomic
from slidelens.maps.lesions import find_lesions

if TYPE_CHECKING:
    from pathlib import Path

    from slidelens.maps.result import Result

__all__ = ["EXPORTER"]

_COLUMNS = (
    "slide_id,lesion,class,diameter_mm,area_mm2,mean_probability,peak_probability,peak_x,peak_y,"
    "minx,miny,width,height"
)


def _write(result: Result, path: Path) -> None:
    source = result.map_of(*{region.label for region in result.regions} or result.classes[-1:])
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_COLUMNS.split(","))
    for number, lesion in enumerate(find_lesions(result.regions, source), start=1):
        left, top, right, bottom = lesion.polygon.bounds
        sizes = (lesion.diameter_mm, lesion.area_mm2)
        chances = (lesion.probability, lesion.peak.probability)
        places = (lesion.peak.x, lesion.peak.y, left, top, right - left, bottom - top)
        table.writerow(
            [
                result.slide.id,
                number,
                lesion.label,
                *(f"{size:.4f}" for size in sizes),
                *(f"{chance:.4f}" for chance in chances),
                *(f"{place:.0f}" for place in places),
            ]
        )
    write_atomic(path, text.getvalue())


EXPORTER = Exporter(
    "lesions-csv",
    "A row per lesion, largest first: diameter, area, probability, and the position of its peak.",
    ".lesions.csv",
    _write,
)
