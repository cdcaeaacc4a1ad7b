"""napari writer: shapes to GeoJSON as QuPath reads it, in level-0 px."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from slidelens.desktop.identities import place_id, told_apart
from slidelens.desktop.polygons import path_to_polygon
from slidelens.desktop.tied import slide_of, world_of_shapes
from slidelens.errors import LabelError, SlideLensError
from slidelens.maps.geojson import feature, write_features

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

    from numpy.typing import NDArray

    from slidelens.desktop.layer_data import LayerData
    from slidelens.desktop.world import World

__all__ = ["shape_features", "update_geojson", "write_geojson"]

_CLASS_COLUMNS = ("class", "classification", "label")
_ELLIPSE = 128  # vertices


def write_geojson(path: str, layers: Sequence[LayerData]) -> list[str]:
    """Write all shapes of some layers of one slide to one file.

    Parameters
    ----------
    path
        File to write.
    layers
        napari's (data, attributes, "shapes").

    Raises
    ------
    SlideLensError
        The layers are of several slides, or of none that is known; or the file cannot be written.
        It is no ``ValueError``, which napari would take to mean that no writer fits, and hide.
    """
    try:
        _write_slide(path, layers)
    except LabelError as error:
        raise SlideLensError(str(error)) from error
    return [path]


def _write_slide(path: str, layers: Sequence[LayerData]) -> None:
    slides = _slides_of(layers)
    if len(slides) > 1:
        raise LabelError(
            f"{path}: not written, since the selected layers are of the slides "
            f"{', '.join(slides)}. Select the layers of one slide, and save each slide in its own "
            "file."
        )
    features = (one for data, attributes, _ in layers for one in shape_features(data, attributes))
    _write(Path(path), _with_own_ids(features))


def _slides_of(layers: Iterable[LayerData]) -> list[str]:
    """Return the slides that layers are of: files, where several have one name."""
    files: dict[str, set[Path]] = {}
    for data, attributes, _ in layers:
        if len(data):
            slide, file = slide_of(attributes)
            files.setdefault(slide, set()).update([Path(file).resolve()] if file else [])
    files.pop("", None)
    named = (map(str, own) if len(own) > 1 else [slide] for slide, own in files.items())
    return sorted(chain.from_iterable(named))


def update_geojson(path: Path, features: Sequence[dict[str, Any]], before: Set[str]) -> None:
    """Write a slide's outlines to a file that may hold more than outlines.

    Features without area that are not ours (QuPath's points and lines) stay; an existing outline
    keeps the properties that are not ours, also one without an id if it was read with
    :func:`~slidelens.desktop.identities.identify`.

    Parameters
    ----------
    features
        All outlines, as :func:`shape_features` makes them.
    before
        The ids of those that were written last: any that are missing in ``features`` were deleted.

    Raises
    ------
    LabelError
        The file cannot be read or written.
    """
    old = _read(path) if path.exists() else []
    known = {str(one["id"]): one for one in old if one.get("id")} | _outlines(old)
    own = before | {one["id"] for one in features}
    others = [one for one in old if not _areal(one) and str(one.get("id")) not in own]
    _write(path, [*(_merged(known.get(one["id"], {}), one) for one in features), *others])


def _outlines(features: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the areas of a file by id, as :func:`identify` gives it to what is read from them."""
    areas = [one for one in features if _areal(one)]
    return dict(zip(told_apart([_identity(one) for one in areas]), areas, strict=True))


def _identity(one: dict[str, Any]) -> str:
    given = one.get("id") or (one.get("properties") or {}).get("id")
    text = json.dumps(one["geometry"])
    return str(given or place_id(shapely.from_geojson(text, on_invalid="ignore")))


def _merged(old: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """Return a feature as it was, with the new geometry, name, class and measurements."""
    was, now = old.get("properties") or {}, made["properties"]
    measured = {**(was.get("measurements") or {}), **now["measurements"]}
    kept = {name: value for name, value in was.items() if name != "classification"}
    told = {name: now[name] for name in ("name", "classification") if name in now}
    return {**old, **made, "properties": {**now, **kept, **told, "measurements": measured}}


def _areal(one: dict[str, Any]) -> bool:
    geometry = one.get("geometry") or {}
    return geometry.get("type") in ("Polygon", "MultiPolygon", "GeometryCollection")


def _read(path: Path) -> list[dict[str, Any]]:
    """Return the features of a file that has already been read as annotations."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise LabelError(f"{path}: cannot be read ({error}), so nothing was written.") from error
    if isinstance(content, dict):
        content = content.get("features", [content])
    found = [one for one in content if isinstance(one, dict)] if isinstance(content, list) else []
    bare = {"type": "Feature", "properties": {}}
    return [one if one.get("type") == "Feature" else {**bare, "geometry": one} for one in found]


def _write(path: Path, features: Sequence[dict[str, Any]]) -> None:
    try:
        write_features(path, features)
    except OSError as error:
        raise LabelError(f"{path}: cannot be written ({error.strerror or error}).") from error


def shape_features(
    data: Sequence[NDArray[Any]], attributes: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield a feature per shape: polygons with their holes; lines and paths as they are.

    Class, name and id come from the layer's features (a column ``class``, ``classification`` or
    ``label``), the colour from the shape's edge. Shapes without area are left out. No two have the
    same id, which napari copies with a shape.

    Parameters
    ----------
    data
        Vertices ``(N, 2)`` y, x of each shape, in the layer's own coordinates.
    attributes
        The layer's other attributes. A layer that SlideLens did not make is where it is seen on
        its slide, as :func:`~slidelens.desktop.tied.world_of_shapes` tells.

    Raises
    ------
    LabelError
        The layer is of no slide that is known.
    """
    yield from _with_own_ids(_features(data, attributes))


def _with_own_ids(features: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    made = list(features)
    ids = told_apart([one["id"] for one in made])
    return [{**one, "id": own} for one, own in zip(made, ids, strict=True)]


def _features(
    data: Sequence[NDArray[Any]], attributes: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    if not len(data):
        return  # napari gives even an empty layer one colour
    world = world_of_shapes(attributes)
    to_world = _data_to_world(attributes)
    kinds = _each(attributes.get("shape_type", "polygon"), len(data))
    colors = np.asarray(attributes.get("edge_color", np.ones((len(data), 4))))
    rows = _rows(attributes.get("features"), len(data))
    for vertices, kind, color, row in zip(data, kinds, colors, rows, strict=True):
        corners = world.to_level0(to_world(np.asarray(vertices, np.float64)[:, -2:]))
        geometry = _geometry(kind, corners)
        if geometry.is_empty:
            continue
        label = next((str(row[c]) for c in _CLASS_COLUMNS if row.get(c)), "")
        rgb = tuple(round(float(c) * 255) for c in color[:3])
        made = feature(
            geometry,
            label,
            (rgb[0], rgb[1], rgb[2]),
            name=str(row.get("name") or label),
            measurements=_measurements(geometry, row, world),
        )
        if not label:
            del made["properties"]["classification"]
        if row.get("id"):
            made["id"] = str(row["id"])
        yield made


def _geometry(kind: str, corners: NDArray[np.float64]) -> Any:
    if kind in ("line", "path"):
        line = shapely.LineString(corners)
        return line if line.length > 0 else shapely.LineString()
    return path_to_polygon(_ellipse(corners) if kind == "ellipse" else corners)


def _ellipse(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the outline of the ellipse in a parallelogram of four corners."""
    centre = corners.mean(0)
    along, across = (corners[1] - corners[0]) / 2, (corners[3] - corners[0]) / 2
    turn = np.linspace(0, 2 * np.pi, _ELLIPSE, endpoint=False)[:, None]
    return np.asarray(centre + np.cos(turn) * along + np.sin(turn) * across)


def _measurements(geometry: Any, row: Mapping[str, Any], world: World) -> dict[str, float]:
    found = {}
    if world.unit == "um" and geometry.area > 0:  # computed: the shape may have been edited
        found["Area mm^2"] = float(geometry.area * world.mpp.x * world.mpp.y * 1e-6)
    probability = row.get("probability")
    if probability is not None and np.isfinite(probability):
        found["Mean probability"] = float(probability)
    return found


def _data_to_world(attributes: Mapping[str, Any]) -> Any:
    from napari.utils.transforms import Affine, CompositeAffine

    def last(name: str, default: Any) -> NDArray[np.float64]:
        return np.asarray(attributes.get(name, default), np.float64)[-2:]

    own = CompositeAffine(last("scale", (1, 1)), last("translate", (0, 0)), ndim=2)
    rotate, shear = attributes.get("rotate"), attributes.get("shear")
    if rotate is not None and np.ndim(rotate) == 2:
        own.rotate = np.asarray(rotate)[-2:, -2:]
    if shear is not None and np.size(shear) == 1:
        own.shear = np.atleast_1d(shear)
    affine = np.asarray(attributes.get("affine", np.eye(3)), np.float64)
    keep = [-3, -2, -1]
    outer = Affine(affine_matrix=affine[np.ix_(keep, keep)], ndim=2)
    return lambda yx: outer(own(yx))


def _rows(features: Any, count: int) -> list[dict[str, Any]]:
    """Return the layer's features (a table of any kind that pandas takes) as one dict per shape."""
    if features is None:
        return [{} for _ in range(count)]
    columns = {str(name): list(features[name]) for name in features}
    return [{name: _known(column[i]) for name, column in columns.items()} for i in range(count)]


def _known(value: Any) -> Any:
    """Return ``None`` for a table's value where nothing is known."""
    return None if isinstance(value, float) and np.isnan(value) else value


def _each(value: str | Sequence[str], count: int) -> list[str]:
    return [value] * count if isinstance(value, str) else [str(v) for v in value]
