"""Stable ids of outlines: the same whenever their file is read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import NAMESPACE_URL, uuid5

import shapely

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from slidelens.tiling.annotations import Annotation

__all__ = ["identify", "place_id", "told_apart"]

_POLYGON = 3  # shapely's number of the type


def told_apart(ids: Iterable[str]) -> Iterator[str]:
    """Yield ids; a repeated one, such as a copy's, is replaced by one derived from it."""
    seen: set[str] = set()
    for one in ids:
        while one in seen:
            one = str(uuid5(NAMESPACE_URL, one))
        seen.add(one)
        yield one


def place_id(geometry: shapely.Geometry | None) -> str:
    """Return an id for an outline whose file gives none, derived from where its areas are.

    Only the bounds count: they stay the same when an outline that crosses itself is repaired.
    """
    parts = shapely.get_parts(shapely.get_parts(geometry))  # also of a collection of multipolygons
    bounds = shapely.total_bounds(parts[shapely.get_type_id(parts) == _POLYGON])
    return str(uuid5(NAMESPACE_URL, f"outline in {bounds.tolist()}"))


def identify(annotations: Iterable[Annotation]) -> list[Annotation]:
    """Give each annotation that was read from a file an id, in order."""
    known = list(annotations)
    ids = told_apart([one.id or place_id(one.polygon) for one in known])
    return [replace(one, id=own) for one, own in zip(known, ids, strict=True)]
