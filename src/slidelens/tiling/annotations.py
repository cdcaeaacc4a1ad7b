"""Annotations as polygons in level-0 px: read, measured on tiles, drawn as masks."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from slidelens.errors import LabelError
from slidelens.tiling.annotation_files import Color, Feature, parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from slidelens.geometry import Box, Mpp

__all__ = ["Annotation", "Annotations", "areas_of", "fraction", "rasterize", "read_annotations"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotated area.

    Attributes
    ----------
    polygon
        A valid shapely ``Polygon`` or ``MultiPolygon`` of non-zero area, in level-0 px.
    label
        Class name; empty if the file gives none.
    color
        Red, green, blue (0-255), or ``None``.
    name, id
        As in the file; empty where absent.
    """

    polygon: Any
    label: str = ""
    color: Color | None = None
    name: str = ""
    id: str = ""


class Annotations(list[Annotation]):
    """The annotations of one file.

    Attributes
    ----------
    ignored
        Number of features that enclose no area, by kind of geometry (``{"Point": 3}``).
    repaired
        Number of polygons that crossed themselves and were repaired.
    """

    def __init__(
        self,
        annotations: Iterable[Annotation] = (),
        ignored: Counter[str] | None = None,
        repaired: int = 0,
    ) -> None:
        super().__init__(annotations)
        self.ignored: Counter[str] = Counter() if ignored is None else ignored
        self.repaired = repaired


def read_annotations(path: str | Path) -> Annotations:
    """Read a file of annotations: GeoJSON, NCRF JSON, ASAP XML or Aperio XML, by its content.

    Polygons that cross themselves are repaired: what any loop encloses is inside. Areas marked as
    excluded (Aperio ``NegativeROA``, NCRF ``negative``, ASAP groups ``_2`` and ``Exclusion``) are
    cut out of the others of their label (ASAP: of all). Points, lines and empty shapes bound no
    area: they are counted in ``ignored`` and logged.

    Raises
    ------
    LabelError
        The file, or a feature in it, cannot be read; the message names both.
    """
    path = Path(path)
    ignored: Counter[str] = Counter()
    repaired = 0
    kept: list[Annotation] = []
    holes: dict[str, list[Any]] = {}
    features = list(parse(path))
    for feature, good in zip(features, _are_good(features), strict=True):
        polygon, changed = (feature.geometry, False) if good else _polygonal(path, feature)
        repaired += changed
        if polygon.is_empty:
            ignored[feature.geometry.geom_type] += 1
        elif feature.excluded:
            holes.setdefault(feature.label, []).append(polygon)
        else:
            kept.append(Annotation(polygon, feature.label, feature.color, feature.name, feature.id))
    if ignored:
        counts = ", ".join(f"{n} {kind}" for kind, n in sorted(ignored.items()))
        _log.warning("%s: left out what bounds no area: %s", path, counts)
    return Annotations(_cut(kept, holes), ignored, repaired)


def _are_good(features: list[Feature]) -> NDArray[np.bool_]:
    """Return for each feature whether it is one polygon that needs no repair."""
    shapes = np.array([feature.geometry for feature in features], dtype=object)
    area = shapely.area(shapes)
    kind = shapely.get_type_id(shapes) == shapely.GeometryType.POLYGON
    good: NDArray[np.bool_] = kind & np.isfinite(area) & (area > 0) & ~shapely.has_z(shapes)
    good[good] = shapely.is_valid(shapes[good])
    return good


def _polygonal(path: Path, feature: Feature) -> tuple[Any, bool]:
    """Return the valid areas of a geometry, and whether it had to be repaired."""
    geometry = shapely.force_2d(feature.geometry)
    if not np.isfinite(shapely.get_coordinates(geometry)).all():
        raise LabelError(f"{path}: {feature.where} has a coordinate that is not finite.")
    areas, repaired = areas_of(geometry)
    if not areas:
        return shapely.MultiPolygon(), False
    # Parts of one feature may overlap (GeometryCollection, bow-ties); their union is valid.
    return (areas[0] if len(areas) == 1 else shapely.union_all(areas)), repaired


def areas_of(geometry: Any) -> tuple[list[Any], bool]:
    """Return the polygons in a geometry, valid and of non-zero area, and whether any was repaired.

    Parameters
    ----------
    geometry
        Of any kind, in level-0 px. What any loop of a polygon that crosses itself encloses is
        inside.
    """
    parts = [p for p in _flatten(geometry) if p.geom_type == "Polygon"]
    valid = all(p.is_valid for p in parts)
    if not valid:
        # "structure" keeps what a pen circled twice; the default would punch a hole there.
        mended = shapely.make_valid(parts, method="structure", keep_collapsed=False)
        parts = [p for part in mended for p in _flatten(part)]
    return [p for p in parts if p.geom_type == "Polygon" and p.area > 0], not valid


def _flatten(geometry: Any) -> list[Any]:
    parts = [geometry]
    while any(hasattr(p, "geoms") for p in parts):
        parts = [q for p in parts for q in (p.geoms if hasattr(p, "geoms") else [p])]
    return parts


def _cut(kept: list[Annotation], holes: dict[str, list[Any]]) -> list[Annotation]:
    """Cut excluded areas out of annotations of their label, or of all if no label matches."""
    labels = {a.label for a in kept}
    everywhere = [h for label, parts in holes.items() if label not in labels for h in parts]
    result = []
    for annotation in kept:
        cut = [*everywhere, *holes.get(annotation.label, [])]
        if not cut:
            result.append(annotation)
            continue
        rest = shapely.difference(annotation.polygon, shapely.union_all(cut))
        areas = [p for p in _flatten(rest) if p.geom_type == "Polygon" and p.area > 0]
        if areas:
            polygon = areas[0] if len(areas) == 1 else shapely.MultiPolygon(areas)
            result.append(
                Annotation(
                    polygon, annotation.label, annotation.color, annotation.name, annotation.id
                )
            )
    return result


def fraction(
    annotations: Iterable[Annotation], boxes: NDArray[np.floating[Any]]
) -> NDArray[np.float64]:
    """Measure how much of each box the annotations cover.

    Parameters
    ----------
    annotations
        Areas; where they overlap they count once.
    boxes
        ``(N, 4)`` x, y, w, h in level-0 px.

    Returns
    -------
    ndarray
        ``(N,)`` float64 in 0..1: the exact covered area over the box's area; 0 for a box without
        area.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    covered = np.zeros(len(boxes))
    polygons = np.array([a.polygon for a in annotations], dtype=object)
    if not len(polygons) or not len(boxes):
        return covered
    x, y, w, h = boxes.T
    rectangles = shapely.box(x, y, x + w, y + h)
    shapely.prepare(polygons)
    polygon, box = shapely.STRtree(rectangles).query(polygons, predicate="intersects")
    wide = (w * h)[box] > 0
    polygon, box = polygon[wide], box[wide]
    # Most boxes are wholly inside: a prepared test settles them without cutting polygons.
    inside = shapely.covers(polygons[polygon], rectangles[box])
    covered[box[inside]] = 1.0
    open_pair = covered[box] < 1
    polygon, box = polygon[open_pair], box[open_pair]
    pieces = shapely.intersection(polygons[polygon], rectangles[box])
    np.add.at(covered, box, shapely.area(pieces) / (w * h)[box])
    order = np.argsort(box, kind="stable")
    shared, first, count = np.unique(box[order], return_index=True, return_counts=True)
    for k in np.flatnonzero(count > 1):
        union = shapely.union_all(pieces[order[first[k] : first[k] + count[k]]])
        covered[shared[k]] = union.area / (w[shared[k]] * h[shared[k]])
    return np.minimum(covered, 1.0)


def rasterize(
    annotations: Iterable[Annotation],
    box: Box,
    mpp0: Mpp,
    mpp: float,
    classes: Sequence[str] | None = None,
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Draw annotations as a mask that fits exactly on ``slide.read(box, mpp)``.

    A pixel belongs to a polygon if its centre does, so two polygons that touch share no pixel.

    Parameters
    ----------
    annotations
        Areas in level-0 px; later ones are painted over earlier ones.
    box
        Part of the slide in level-0 px.
    mpp0
        The slide's own resolution.
    mpp
        Resolution of the mask in µm/px.
    classes
        Label ``classes[k]`` is drawn as ``k + 1``, other labels are left out. ``None`` draws every
        annotation as 1.

    Returns
    -------
    ndarray
        ``(H, W)`` with ``H = round(box.h * mpp0.y / mpp)``, at least 1: uint8, uint16 for more
        than 255 classes.
        0 is not annotated.
    """
    # The same arithmetic as in Slide.read, so that the two never differ by a row.
    step = np.array([mpp / mpp0.x, mpp / mpp0.y])
    width, height = max(1, round(box.w / step[0])), max(1, round(box.h / step[1]))
    wide = classes is not None and len(classes) > np.iinfo(np.uint8).max
    mask = np.zeros((height, width), np.uint16 if wide else np.uint8)
    values = None if classes is None else {name: k + 1 for k, name in enumerate(classes)}
    for annotation in annotations:
        value = 1 if values is None else values.get(annotation.label)
        if value is not None:
            _paint(mask, annotation.polygon, np.array([box.x, box.y]), 1 / step, value)
    return mask


def _paint(
    mask: NDArray[Any],
    polygon: Any,
    origin: NDArray[np.float64],
    scale: NDArray[np.float64],
    value: int,
) -> None:
    """Fill by the even-odd rule over all rings at once, which for valid polygons is the inside.

    Each edge toggles, in every row whose centre line it crosses, all pixels right of the crossing.
    """
    height, width = mask.shape
    bounds = (np.array(polygon.bounds).reshape(2, 2) - origin) * scale
    top, bottom = int(max(0, np.floor(bounds[0, 1]))), int(min(height, np.ceil(bounds[1, 1])))
    left, right = int(max(0, np.floor(bounds[0, 0]))), int(min(width, np.ceil(bounds[1, 0])))
    if top >= bottom or left >= right:
        return
    rings = [(shapely.get_coordinates(r) - origin) * scale for r in _rings(polygon)]
    start = np.concatenate([r[:-1] for r in rings])
    end = np.concatenate([r[1:] for r in rings])
    x0, y0, x1, y1 = *start.T, *end.T
    # Row i is crossed if its centre i + 1/2 lies in the half-open span of the edge's y.
    low = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), top, bottom).astype(np.int64)
    high = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), top, bottom).astype(np.int64)
    count = high - low
    edge = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + low[edge]
    along = (row + 0.5 - y0[edge]) / (y1 - y0)[edge]
    x = x0[edge] + along * (x1 - x0)[edge]
    column = np.clip(np.ceil(x - 0.5), left, right).astype(np.int64)
    toggles = np.zeros((bottom - top, right - left + 1), np.int32)
    np.add.at(toggles, (row - top, column - left), 1)
    inside = np.cumsum(toggles[:, :-1], axis=1) & 1
    mask[top:bottom, left:right][inside.astype(bool)] = value


def _rings(polygon: Any) -> list[Any]:
    return [ring for p in _flatten(polygon) for ring in (p.exterior, *p.interiors)]
