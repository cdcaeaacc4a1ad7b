"""All maps as OME-Zarr (NGFF 0.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slidelens.errors import ResultError
from slidelens.export.base import Exporter
from slidelens.files import staged_folder
from slidelens.maps.ngff import holds_maps, write_maps

if TYPE_CHECKING:
    from pathlib import Path

    from slidelens.maps.result import Result

__all__ = ["EXPORTER"]


def _write(result: Result, path: Path) -> None:
    if not result.maps:
        raise ResultError(f"{result.slide.id}: the result has no maps to export.")
    if path.exists() and not holds_maps(path):
        raise ResultError(
            f"{path}: is there and is not an export of maps (a slide, perhaps); it is not "
            "replaced. Choose another name."
        )
    with staged_folder(path, None) as staging:
        write_maps(staging, result.maps.values())


EXPORTER = Exporter(
    "ome-zarr",
    "Every map as an OME-NGFF 0.5 image in µm on the slide, labels with colours.",
    ".ome.zarr",
    _write,
    folder=True,
)
