"""Parse annotation files: GeoJSON, NCRF JSON, ASAP XML, Aperio XML.

The format is recognised by content, never by the file's name. This module only parses: repair,
exclusion and counting are left to :mod:`slidelens.tiling.annotations`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring
from shapely.geometry import LineString, MultiPolygon, Point, Polygon

from slidelens.errors import LabelError

if TYPE_CHECKING:
    from pathlib import Path
    from xml.etree.ElementTree import Element

__all__ = ["Color", "Feature", "parse"]

Color = tuple[int, int, int]

_EXCLUDED_GROUPS = {"_2", "exclude", "excluded", "exclusion", "exclusions"}
"""ASAP groups that are cut out of the others; ``_2`` is CAMELYON16's name for holes in a tumour."""

_ELLIPSE_STEPS = 128


@dataclass(frozen=True, slots=True)
class Feature:
    """One annotated shape. ``where`` identifies it in error messages."""

    geometry: Any
    label: str = ""
    color: Color | None = None
    name: str = ""
    id: str = ""
    excluded: bool = False
    where: str = ""


def parse(path: Path) -> Iterator[Feature]:
    """Parse a file of any supported format.

    Raises
    ------
    LabelError
        The file cannot be read, is in no supported format, or holds a broken feature; the message
        names the file and the feature.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise LabelError(f"{path}: cannot be read: {error.strerror or error}.") from error
    start = raw.lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n\0")[:1]
    if start == b"<":
        return _parse_xml(path, raw)
    if start in (b"{", b"["):
        return _parse_json(path, raw)
    raise LabelError(
        f"{path}: neither JSON nor XML. Annotations are read from GeoJSON, NCRF JSON, ASAP XML "
        "and Aperio XML."
    )


def _parse_json(path: Path, raw: bytes) -> Iterator[Feature]:
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise LabelError(f"{path}: not valid JSON: {error}.") from error
    if (
        isinstance(content, dict)
        and "type" not in content
        and {"positive", "negative"} & {*content}
    ):
        return _ncrf(path, content)
    return _geojson(path, content)


def _parse_xml(path: Path, raw: bytes) -> Iterator[Feature]:
    try:
        root = fromstring(raw)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:  # its encoding
        raise LabelError(f"{path}: not valid XML: {error}.") from error
    readers: dict[str, Callable[[Path, Element], Iterator[Feature]]] = {
        "ASAP_Annotations": _asap,
        "Annotations": _aperio,
    }
    if root.tag not in readers:
        raise LabelError(
            f"{path}: XML with root <{root.tag}>; expected <ASAP_Annotations> (ASAP) or "
            "<Annotations> (Aperio ImageScope)."
        )
    return readers[root.tag](path, root)


# --- GeoJSON --------------------------------------------------------------------------------------


def _geojson(path: Path, content: Any) -> Iterator[Feature]:
    for number, item in enumerate(_members(path, content)):
        where = f"feature {number}"
        if not isinstance(item, Mapping) or "type" not in item:
            raise LabelError(f"{path}: {where} is not a GeoJSON object (it has no type).")
        properties: Mapping[str, Any] = {}
        geometry: Any = item
        if item["type"] == "Feature":
            given = item.get("properties")
            properties = given if isinstance(given, Mapping) else {}
            geometry = item.get("geometry")
        identity = str(item.get("id") or properties.get("id") or "")
        where += f" (id {identity})" if identity else ""
        label, color = _classification(properties)
        yield Feature(
            geometry=_geojson_geometry(path, where, geometry),
            label=label,
            color=color,
            name=str(properties.get("name") or ""),
            id=identity,
            where=where,
        )


def _members(path: Path, content: Any) -> Iterator[Any]:
    """Yield the shapes in a file, one by one; collections may be in lists and in each other."""
    if isinstance(content, Mapping) and content.get("type") == "FeatureCollection":
        content = content.get("features")
        if not isinstance(content, list):
            raise LabelError(f"{path}: a FeatureCollection without a list of features.")
    if not isinstance(content, list):
        yield content
        return
    for item in content:
        if isinstance(item, Mapping) and item.get("type") == "FeatureCollection":
            yield from _members(path, item)
        else:
            yield item


def _geojson_geometry(path: Path, where: str, geometry: Any) -> Any:
    if geometry is None:  # GeoJSON (RFC 7946, 3.2): an unlocated feature
        return Point()
    plain = _plain_polygon(geometry)
    if plain is not None:
        return plain
    try:
        return shapely.from_geojson(json.dumps(geometry, allow_nan=False))
    except (shapely.errors.GEOSException, ValueError, TypeError) as error:
        kind = geometry.get("type") if isinstance(geometry, Mapping) else type(geometry).__name__
        raise LabelError(f"{path}: {where} is not a readable {kind}: {error}.") from error


def _plain_polygon(geometry: Any) -> Any | None:
    """Return a polygon of one ring, as hundreds of thousands of cells are; else ``None``.

    Three times as fast as rewriting it as text, which is how shapely reads GeoJSON.
    """
    rings = geometry.get("coordinates") if isinstance(geometry, Mapping) else None
    if not isinstance(rings, list) or len(rings) != 1 or geometry.get("type") != "Polygon":
        return None
    try:
        ring = np.array(rings[0])
    except ValueError:  # rows of different lengths
        return None
    if ring.ndim != 2 or ring.shape[1] not in (2, 3) or ring.dtype.kind not in "iuf":
        return None
    closed = len(ring) > 3 and np.isfinite(ring).all() and (ring[0] == ring[-1]).all()
    return shapely.polygons(ring[:, :2]) if closed else None


def _classification(properties: Mapping[str, Any]) -> tuple[str, Color | None]:
    """Return class and colour as QuPath (all versions) and other programs write them."""
    given = properties.get("classification")
    if isinstance(given, Mapping):
        label = _label(given.get("name") or given.get("names"))
        return label, _color(given.get("color", given.get("colorRGB")))
    label = _label(given or properties.get("label") or properties.get("class"))
    return label, _color(properties.get("color"))


def _label(given: Any) -> str:
    """Return the name of a class, or those of its parts, as QuPath joins them."""
    return ": ".join(map(str, given)) if isinstance(given, list) else str(given or "")


def _color(value: Any) -> Color | None:
    if isinstance(value, int) and not isinstance(value, bool):  # QuPath < 0.3: signed ARGB
        return (value >> 16) & 255, (value >> 8) & 255, value & 255
    if isinstance(value, list) and len(value) >= 3 and all(isinstance(v, int) for v in value[:3]):
        red, green, blue = (min(255, max(0, v)) for v in value[:3])
        return red, green, blue
    if isinstance(value, str) and value.startswith("#") and len(value) == 7:
        try:
            return int(value[1:3], 16), int(value[3:5], 16), int(value[5:7], 16)
        except ValueError:  # a colour is decoration: a broken one must not cost the polygon
            return None
    return None


# --- NCRF JSON ------------------------------------------------------------------------------------


def _ncrf(path: Path, content: Mapping[str, Any]) -> Iterator[Feature]:
    """CAMELYON16 as NCRF writes it: ``negative`` polygons are holes in the ``positive`` ones."""
    for kind in ("positive", "negative"):
        shapes = content.get(kind) or []
        if not isinstance(shapes, list):
            raise LabelError(f"{path}: {kind!r} is not a list of polygons.")
        for number, shape in enumerate(shapes):
            where = f"{kind} polygon {number}"
            if not isinstance(shape, Mapping) or not isinstance(shape.get("vertices"), list):
                raise LabelError(f"{path}: {where} has no list of vertices.")
            try:
                vertices = [(float(x), float(y)) for x, y in shape["vertices"]]
            except (TypeError, ValueError, OverflowError) as error:
                raise LabelError(
                    f"{path}: {where} has a vertex that is not a pair of numbers: {error}."
                ) from error
            yield Feature(
                geometry=_polygon(path, where, vertices),
                label="tumor",
                name=str(shape.get("name", "")),
                id=f"{kind}-{number}",
                excluded=kind == "negative",
                where=where,
            )


# --- ASAP XML -------------------------------------------------------------------------------------


def _asap(path: Path, root: Element) -> Iterator[Feature]:
    for number, item in enumerate(root.iter("Annotation")):
        where = f"Annotation {number} ({item.get('Name', '')!r})"
        corners = item.findall("./Coordinates/Coordinate")
        order = [
            float(i) if c.get("Order") is None else _number(path, where, c, "Order")
            for i, c in enumerate(corners)
        ]
        points = [_vertex(path, where, c) for c in corners]
        vertices = [p for _, p in sorted(zip(order, points, strict=True), key=lambda pair: pair[0])]
        group = item.get("PartOfGroup", "None")
        kind = item.get("Type", "Polygon")
        yield Feature(
            geometry=(
                shapely.MultiPoint(vertices)
                if kind in ("Dot", "PointSet")
                else _polygon(path, where, vertices)
            ),
            label="" if group == "None" else group,
            color=_color(item.get("Color")),
            name=item.get("Name", ""),
            id=str(number),
            excluded=group.lower() in _EXCLUDED_GROUPS,
            where=where,
        )


# --- Aperio XML -----------------------------------------------------------------------------------


def _aperio(path: Path, root: Element) -> Iterator[Feature]:
    """Aperio ImageScope: an Annotation is a layer, and each Region in it a shape."""
    for layer in root.iter("Annotation"):
        named = [a.get("Name") or "" for a in layer.findall("./Attributes/Attribute")]
        # ImageScope gives every layer an attribute "Description", which names nothing.
        label = layer.get("Name") or next((n for n in named if n not in ("", "Description")), "")
        bgr = layer.get("LineColor", "")
        color = None
        if re.fullmatch("[0-9]{1,10}", bgr):  # a Windows COLORREF: blue in the high byte
            color = (int(bgr) & 255, (int(bgr) >> 8) & 255, (int(bgr) >> 16) & 255)
        for region in layer.iter("Region"):
            where = f"Region {region.get('Id', '?')} of Annotation {layer.get('Id', '?')}"
            vertices = [_vertex(path, where, v) for v in region.iter("Vertex")]
            yield Feature(
                geometry=_aperio_shape(path, where, region.get("Type", "0"), vertices),
                label=label,
                color=color,
                name=region.get("Text", ""),
                id=f"{layer.get('Id', '')}-{region.get('Id', '')}",
                excluded=region.get("NegativeROA", "0") == "1",
                where=where,
            )


def _aperio_shape(path: Path, where: str, kind: str, vertices: list[tuple[float, float]]) -> Any:
    """0 is freehand, 1 a rectangle, 2 an ellipse (given by two corners), 3 an arrow, 4 a ruler."""
    if kind in ("3", "4"):
        return LineString(vertices) if len(vertices) > 1 else Point()
    if kind in ("1", "2") and len(vertices) == 2:
        (x0, y0), (x1, y1) = vertices
        if kind == "1":
            return shapely.box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        turns = [2 * math.pi * i / _ELLIPSE_STEPS for i in range(_ELLIPSE_STEPS)]
        cx, cy, rx, ry = (x0 + x1) / 2, (y0 + y1) / 2, abs(x1 - x0) / 2, abs(y1 - y0) / 2
        vertices = [(cx + rx * math.cos(t), cy + ry * math.sin(t)) for t in turns]
    return _polygon(path, where, vertices)


# --- shared ---------------------------------------------------------------------------------------


def _polygon(path: Path, where: str, vertices: list[tuple[float, float]]) -> Any:
    """Close a ring; fewer than three corners (a slip of the mouse) enclose no area."""
    if not all(math.isfinite(v) for vertex in vertices for v in vertex):
        raise LabelError(f"{path}: {where} has a coordinate that is not finite.")
    return Polygon(vertices) if len(vertices) >= 3 else MultiPolygon()


def _vertex(path: Path, where: str, element: Element) -> tuple[float, float]:
    return _number(path, where, element, "X"), _number(path, where, element, "Y")


def _number(path: Path, where: str, element: Element, key: str) -> float:
    text = element.get(key)
    try:
        # ASAP writes a decimal comma under some locales.
        return float((text or "").replace(",", "."))
    except ValueError as error:
        raise LabelError(f"{path}: {where} has {key}={text!r}, expected a number.") from error
