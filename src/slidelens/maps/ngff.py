"""Maps as OME-NGFF 0.5 images (Zarr v3): multiscale, sharded, in µm on the slide.

Each map is its own group with axes c, y, x, so that any NGFF reader opens it. Level 0's scale and
translation follow the pixel-centre convention (:meth:`slidelens.geometry.Affine.centred`).
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.errors import ResultError
from slidelens.geometry import Affine, Mpp
from slidelens.maps.map import Cells, Kind, Map, MapData
from slidelens.maps.palette import TISSUE, class_colors, hex_color

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    import zarr
    from numpy.typing import NDArray

__all__ = ["holds_maps", "open_map", "write_map", "write_maps"]

_CHUNK = 256
_SHARD = 1024
_COARSEST = 1024
_OURS = "slidelens"
"""Attribute of a hierarchy that was written here."""
_AXES = [
    {"name": "c", "type": "channel"},
    {"name": "y", "type": "space", "unit": "micrometer"},
    {"name": "x", "type": "space", "unit": "micrometer"},
]


def write_maps(folder: Path, maps: Iterable[Map]) -> dict[str, str]:
    """Write all maps of a slide into one Zarr hierarchy.

    Images lie at ``<name>`` and are listed as a series (``bioformats2raw.layout`` 3), so that a
    reader of the whole hierarchy finds them; labels lie at ``labels/<name>``.

    Returns
    -------
    Name to path within ``folder``.
    """
    chosen = list(maps)
    places = {m.name: f"labels/{m.name}" if m.kind == "labels" else m.name for m in chosen}
    images = [m.name for m in chosen if m.kind != "labels"]
    labels = [m.name for m in chosen if m.kind == "labels"]
    about: dict[str, dict[str, Any]] = {"OME": {"series": images}}
    if labels:
        about["labels"] = {"labels": labels}
    layout = {"ome": {"version": "0.5", "bioformats2raw.layout": 3}, _OURS: {"holds": "maps"}}
    _create_group(folder, layout)
    for name, content in about.items():
        _create_group(folder / name, {"ome": {"version": "0.5", **content}})
    for one in chosen:
        write_map(folder / places[one.name], one)
    return places


def holds_maps(folder: Path) -> bool:
    """Return whether a folder is a hierarchy that :func:`write_maps` has made."""
    try:
        found = json.loads((folder / "zarr.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and _OURS in (found.get("attributes") or {})


def write_map(folder: Path, source: Map) -> None:
    """Write one map as a multiscale image, block by block."""
    finest = _create(folder / "0", source.shape, source)
    cells = source.levels[0]
    largest = _fill(finest, lambda rows, columns: np.asarray(cells[:, rows, columns]), source.kind)
    fine, count = cells, 1  # not what was just written: decoding it again takes time and memory
    while max(fine.shape[1:]) > _COARSEST:
        planes, height, width = fine.shape
        halves = (planes, -(-height // 2), -(-width // 2))
        level = _create(folder / str(count), halves, source)
        _fill(level, partial(_read_halved, fine, source.kind), source.kind)
        fine, count = level, count + 1
    _create_group(folder, {"ome": _metadata(source, count, largest)})


def _create_group(folder: Path, attributes: Mapping[str, Any]) -> None:
    """Make a Zarr v3 group: one JSON file, for which the library takes 2 ms."""
    folder.mkdir(parents=True, exist_ok=True)
    group = {"attributes": attributes, "zarr_format": 3, "node_type": "group"}
    (folder / "zarr.json").write_text(json.dumps(group, indent=2), encoding="utf-8")


def _fill(
    array: zarr.Array[Any], read: Callable[[slice, slice], NDArray[Any]], kind: Kind
) -> float:
    """Write an array block by block, leaving out empty ones; return its largest finite value."""
    largest = 0.0
    _, height, width = array.shape
    for y in range(0, height, _SHARD):
        for x in range(0, width, _SHARD):
            rows = slice(y, min(y + _SHARD, height))
            columns = slice(x, min(x + _SHARD, width))
            block = read(rows, columns)
            if _holds_something(block, kind):
                array[:, rows, columns] = block
                largest = max(largest, float(block.max(initial=0, where=np.isfinite(block))))
    return largest


def _read_halved(fine: Cells, kind: Kind, rows: slice, columns: slice) -> NDArray[Any]:
    twice = (slice(2 * s.start, 2 * s.stop) for s in (rows, columns))
    return _halve(np.asarray(fine[(slice(None), *twice)]), kind)


def open_map(
    folder: Path,
    name: str,
    kind: Kind,
    slide_mpp: Mpp | None,
    check: Callable[[], None] | None = None,
) -> Map:
    """Return a map that is opened on first use.

    ``slide_mpp`` turns the file's µm into level-0 px; ``check`` is called before it is opened.
    Opening something that is not a map of this layout raises ``ResultError``, naming the file and
    the key.
    """
    return Map(name, kind, partial(_open, folder, kind, slide_mpp, check))


def _create(place: Path, shape: tuple[int, ...], source: Map) -> zarr.Array[Any]:
    """Make an array: one chunk per channel if it is small, otherwise shards of chunks."""
    import zarr

    small = max(shape[1:]) <= _SHARD
    return zarr.create_array(
        place,
        zarr_format=3,
        shape=shape,
        chunks=(1, *shape[1:]) if small else (1, _CHUNK, _CHUNK),
        shards=None if small else (1, _SHARD, _SHARD),
        dtype=source.dtype,
        fill_value=0 if source.kind == "labels" else np.nan,
        dimension_names=("c", "y", "x"),
    )


def _holds_something(block: NDArray[Any], kind: Kind) -> bool:
    return bool(block.any()) if kind == "labels" else not np.isnan(block).all()


def _halve(fine: NDArray[Any], kind: Kind) -> NDArray[Any]:
    """Reduce ``(C, H, W)`` by 2: mean of the known values; for labels the most frequent."""
    _, height, width = fine.shape
    pad = ((0, 0), (0, height % 2), (0, width % 2))
    fine = np.pad(fine, pad, mode="constant", constant_values=0 if kind == "labels" else np.nan)
    four = np.stack([fine[:, i::2, j::2] for i in (0, 1) for j in (0, 1)])
    if kind == "labels":
        four.sort(0)
        votes = np.stack([(four == one).sum(0, dtype=np.uint8) for one in four])
        best = 3 - np.argmax(votes[::-1], 0)
        return np.asarray(np.take_along_axis(four, best[None], 0)[0])
    known = ~np.isnan(four)
    total = np.where(known, four, 0).sum(0, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray((total / known.sum(0)).astype(fine.dtype))


def _metadata(source: Map, levels: int, largest: float) -> dict[str, Any]:
    datasets = []
    for level in range(levels):
        a, f = source.affine, 2**level
        scale, shift = Affine(a.sx * f, a.sy * f, a.tx, a.ty).centred(source.slide_mpp)
        datasets.append(
            {
                "path": str(level),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [1.0, *scale]},
                    {"type": "translation", "translation": [0.0, *shift]},
                ],
            }
        )
    ome: dict[str, Any] = {
        "version": "0.5",
        "multiscales": [{"name": source.name, "axes": _AXES, "datasets": datasets}],
    }
    if source.kind == "labels":
        ome["image-label"] = _image_label(source)
    else:
        ome["omero"] = {"channels": _channels(source, largest)}
    return ome


def _image_label(source: Map) -> dict[str, Any]:
    tissue = source.channels == ("tissue",)
    colors = {"tissue": TISSUE} if tissue else class_colors(source.channels)
    return {
        "colors": [
            {"label-value": i, "rgba": [*colors[name], 255]}
            for i, name in enumerate(source.channels, 1)
        ],
        "properties": [
            {"label-value": i, "class": name} for i, name in enumerate(source.channels, 1)
        ],
    }


def _channels(source: Map, largest: float) -> list[dict[str, Any]]:
    colors = class_colors(source.channels)
    top = 1.0 if source.kind == "probability" else largest or 1.0
    return [
        {
            "label": name,
            "color": hex_color(colors[name]),
            "active": i == len(source.channels) - 1,
            "window": {"min": 0.0, "max": top, "start": 0.0, "end": top},
        }
        for i, name in enumerate(source.channels)
    ]


def _open(
    folder: Path, kind: Kind, slide_mpp: Mpp | None, check: Callable[[], None] | None
) -> MapData:
    import zarr

    if check is not None:
        check()
    try:
        group = zarr.open_group(folder, mode="r")
    except (OSError, ValueError) as error:
        raise ResultError(
            f"{folder}: not a readable Zarr group ({error}). "
            "Run the prediction again, with --overwrite."
        ) from error
    try:
        ome: dict[str, Any] = group.attrs["ome"]  # type: ignore[assignment]  # checked by use
        datasets = ome["multiscales"][0]["datasets"]
        arrays = tuple(_Stored(folder, group[d["path"]]) for d in datasets)
        steps = {t["type"]: t for t in datasets[0]["coordinateTransformations"]}
        scale = [float(v) for v in steps["scale"]["scale"][-2:]]
        shift = [float(v) for v in steps.get("translation", {}).get("translation", [0, 0])[-2:]]
        if kind == "labels":
            channels = tuple(str(p["class"]) for p in ome["image-label"]["properties"])
        else:
            channels = tuple(str(c["label"]) for c in ome["omero"]["channels"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ResultError(
            f"{folder / 'zarr.json'}: not an OME-NGFF 0.5 image with channel names "
            f"({type(error).__name__}: {error}). Run the prediction again, with --overwrite."
        ) from error
    if slide_mpp is None:
        raise ResultError(
            f"{folder}: result.json gives no slide.mpp, so the map cannot be laid on the slide."
        )
    planes = 1 if kind == "labels" else len(channels)
    for array in arrays:
        if len(array.shape) != 3 or array.shape[0] != planes:
            raise ResultError(f"{folder}: array {array.shape}, expected ({planes}, H, W).")
    affine = _affine(scale, shift, slide_mpp)
    return MapData(channels, affine, slide_mpp, arrays)


class _Stored:
    """One level in its file: a zarr array whose errors name the file."""

    def __init__(self, folder: Path, array: zarr.Array[Any] | zarr.Group) -> None:
        self.shape: tuple[int, ...] = getattr(array, "shape", ())
        self.chunks: tuple[int, ...] = getattr(array, "chunks", ())
        self.dtype = np.dtype(getattr(array, "dtype", np.float32))
        self.ndim = len(self.shape)
        self._array: Any = array
        self._folder = folder

    def __getitem__(self, key: Any) -> NDArray[Any]:
        try:
            return np.asarray(self._array[key])
        except (OSError, ValueError, RuntimeError) as error:
            raise ResultError(
                f"{self._folder / self._array.name.rsplit('/', 1)[-1]}: cannot be read "
                f"({error}). Run the prediction again, with --overwrite."
            ) from error

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self[:, :, :], dtype, copy=copy)


def _affine(scale: list[float], shift: list[float], mpp: Mpp) -> Affine:
    """Undo :meth:`Affine.centred`."""
    sy, sx = scale[0] / mpp.y, scale[1] / mpp.x
    return Affine(sx, sy, shift[1] / mpp.x - (sx - 1) / 2, shift[0] / mpp.y - (sy - 1) / 2)
