"""GeoJSON as QuPath reads it: classified objects in level-0 px."""

from __future__ import annotations

import json
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal
from uuid import NAMESPACE_URL, uuid5

import numpy as np

from slidelens.errors import ResultError
from slidelens.files import write_atomic
from slidelens.maps.palette import TISSUE, class_colors
from slidelens.maps.regions import Region

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import shapely

__all__ = ["feature", "read_regions", "region_features", "write_features"]

ObjectType = Literal["annotation", "detection", "tile"]
_AREA = "Area mm^2"
_MEAN = "Mean probability"


def feature(
    geometry: shapely.Geometry,
    label: str,
    color: tuple[int, int, int],
    *,
    kind: ObjectType = "annotation",
    name: str | None = None,
    measurements: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return one feature; its id is derived from its content, so the same object keeps it.

    A name of its own is part of that: several windows may lie on one place.
    """
    import shapely

    shape = json.loads(shapely.to_geojson(geometry))  # half the time of shapely's loop over points
    own = [] if name in (None, label) else [name]
    identity = json.dumps([kind, label, shape, *own], sort_keys=True)
    return {
        "type": "Feature",
        "id": str(uuid5(NAMESPACE_URL, identity)),
        "geometry": shape,
        "properties": {
            "objectType": kind,
            "name": label if name is None else name,
            "classification": {"name": label, "color": list(color)},
            "isLocked": False,
            "measurements": dict(measurements or {}),
        },
    }


def region_features(regions: Iterable[Region], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return regions as annotations with area and mean probability, in their class's colour."""
    colors = class_colors(classes)
    return [
        feature(
            region.polygon,
            region.label,
            colors.get(region.label, TISSUE),
            measurements=_measured(region),
        )
        for region in regions
    ]


def _measured(region: Region) -> dict[str, float]:
    """Return the known measurements; a file from other programs may have none."""
    values = {_AREA: region.area_mm2, _MEAN: region.probability}
    return {name: value for name, value in values.items() if isfinite(value)}


def write_features(path: Path, features: Iterable[Mapping[str, Any]]) -> None:
    """Write a FeatureCollection."""
    collection = {"type": "FeatureCollection", "features": list(features)}
    text = json.dumps(collection, ensure_ascii=False, allow_nan=False)
    write_atomic(path, text + "\n")


def read_regions(path: Path) -> list[Region]:
    """Read the regions of a result.

    Raises
    ------
    ResultError
        Not a FeatureCollection of classified polygons; the message names file and feature.
    """
    from shapely.errors import ShapelyError
    from shapely.geometry import shape

    try:
        features = list(json.loads(path.read_text(encoding="utf-8"))["features"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ResultError(f"{path}: not a GeoJSON FeatureCollection ({error}).") from error
    regions = []
    for i, one in enumerate(features):
        try:
            properties = one["properties"]
            measured = properties.get("measurements") or {}
            polygons = _polygons(shape(one["geometry"]))
            whole = sum(polygon.area for polygon in polygons)
            regions += [
                Region(
                    polygon=polygon,
                    label=str(properties["classification"]["name"]),
                    area_mm2=float(measured.get(_AREA, "nan")) * (polygon.area / whole),
                    probability=float(measured.get(_MEAN, "nan")),
                )
                for polygon in polygons
            ]
        except (KeyError, TypeError, ValueError, AttributeError, ShapelyError) as error:
            raise ResultError(
                f"{path}: feature {i} is not a classified polygon "
                f"({type(error).__name__}: {error})."
            ) from error
    return regions


def _polygons(geometry: Any) -> list[Any]:
    """Return the valid polygons of one, or of several, as other programs write them."""
    import shapely

    from slidelens.tiling.annotations import areas_of

    found = [p for p in getattr(geometry, "geoms", [geometry]) if not p.is_empty]
    if not found or any(p.geom_type != "Polygon" for p in found):
        raise ValueError(f"expected a polygon with an area, found {geometry.geom_type}")
    if not np.isfinite(shapely.get_coordinates(found)).all():
        raise ValueError("a coordinate is not finite")
    areas, _ = areas_of(geometry)
    if not areas:
        raise ValueError("expected a polygon with an area")
    return areas
