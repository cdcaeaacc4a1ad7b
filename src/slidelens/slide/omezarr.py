"""OME-Zarr: NGFF 0.4 (zarr v2) and 0.5 (zarr v3) images, in a folder or a zip archive."""

from __future__ import annotations

import json
import logging
from contextlib import closing, suppress
from functools import partial
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.errors import SlideError, UnsupportedSlideError
from slidelens.faults import first_fault
from slidelens.geometry import Mpp
from slidelens.slide.blocks import read_blocks
from slidelens.slide.cache import new_owner, tile_cache
from slidelens.slide.channels import Composer, depth_of, spread
from slidelens.slide.reader import Facts, Reader, closed, levels_of, unreadable
from slidelens.slide.units import micrometres
from slidelens.slide.zarr_place import LARGEST, ZIP_MAGIC, ZarrZip, attributes, place_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from slidelens.slide.zarr_place import ZarrFolder

__all__ = ["OmeZarrReader"]

log = logging.getLogger(__name__)
_BLOCK = 256
_VERSIONS = ("0.4", "0.5")
_RGB = (["FF0000", "00FF00", "0000FF"], ["RED", "GREEN", "BLUE"], ["R", "G", "B"])


class OmeZarrReader(Reader):
    """An OME-NGFF image, or the first image of a bioformats2raw folder.

    Of a time or z axis, only the first position is read.
    """

    backend = "omezarr"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._owner = new_owner()
        self._place = place_of(path)
        try:
            self._open(path)
        except BaseException:
            self._place.close()
            raise

    def _open(self, path: Path) -> None:
        group, ome = _image(self._place)
        multiscale, units, scales = _multiscale(path, ome)
        scale = scales[0]
        self._axes = [axis.name for axis in multiscale.axes]
        if not {"x", "y"} <= set(self._axes):
            raise UnsupportedSlideError(f"{path}: its axes are {self._axes}; a slide has x and y.")
        self._names = [_joined(group, dataset.path) for dataset in multiscale.datasets]
        try:
            self._arrays = [self._place.array(name) for name in self._names]
        except SlideError:
            raise
        except Exception as error:  # reason: zarr and its stores raise their own exceptions
            raise unreadable(path, error, "its arrays cannot be opened") from error
        if any(self._is_void(array) for array in self._arrays):
            raise SlideError(f"{path}: one of its levels, or of their chunks, has no pixels.")
        self._unwarned = set(range(len(self._arrays)))
        self._blocks = [self._block_size(array) for array in self._arrays]
        first = self._arrays[0]
        channels = first.shape[self._axes.index("c")] if "c" in self._axes else 1
        try:
            names, rgb = _channels(path, ome, channels, first.dtype)
        except (AttributeError, TypeError) as error:
            raise unreadable(path, error, "its `omero` metadata cannot be understood") from error
        sides = [micrometres(scale[a], units[a]) for a in map(self._axes.index, "xy")]
        mpp = Mpp(sides[0], sides[1]) if sides[0] and sides[1] else None
        x, y = self._axes.index("x"), self._axes.index("y")
        self.facts = Facts(
            levels_of([(array.shape[x], array.shape[y]) for array in self._arrays]),
            mpp,
            "NGFF scale" if mpp else None,
            properties={f"ome.{k}": json.dumps(v) for k, v in ome.items() if k != "multiscales"},
            channels=names,
        )
        dtype = np.dtype(first.dtype)
        bits = _bits(ome) if rgb and dtype.itemsize > 1 else None
        self._compose = Composer(
            channels, dtype, rgb, self._overview, alpha="unassociated", bits=bits
        )
        self._check_levels()
        self._scales = [(stated[x], stated[y]) for stated in scales]

    @classmethod
    def sniff(cls, path: Path, head: bytes) -> bool:
        """Accept folders, and zip archives, whose zarr attributes hold an OME image.

        An archive with such a name is not opened: the list of its contents may be long.
        """
        if path.is_dir():
            return _has_image(attributes(path))
        return head.startswith(ZIP_MAGIC) and (
            path.name.lower().endswith((".ozx", ".zarr.zip")) or _zip_has_image(path)
        )

    def _is_void(self, array: Any) -> bool:
        """Return whether a level, or its chunks, are empty: zarr 3.4 reads a side of 0 as 1."""
        y, x = self._axes.index("y"), self._axes.index("x")
        sides = (*array.shape, *array.chunks)
        return 0 in sides or (
            array.chunks[y] * array.chunks[x] == 1 < array.shape[y] * array.shape[x]
        )

    def read(self, level: int, x: int, y: int, w: int, h: int) -> NDArray[np.uint8]:
        """Read ``(h, w, 3)`` RGB of one level, channels composed."""
        pixels = self._compose(self._stored(level, x, y, w, h))
        if self._names[level] in self._place.incomplete:
            self._warn(level)
        return pixels

    def close(self) -> None:
        """Release the arrays and their cached tiles."""
        self._arrays = []
        self._place.close()
        tile_cache().drop(self._owner)

    def _stored(self, level: int, x: int, y: int, w: int, h: int) -> NDArray[Any]:
        return read_blocks(
            tile_cache(),
            (self._owner, level),
            lambda row, column: self._read_block(level, row, column),
            self._blocks[level],
            (x, y, w, h),
        )

    def _read_block(self, level: int, row: int, column: int) -> NDArray[Any]:
        """Read whole chunks, as ``(h, w, C)``."""
        bw, bh = self._blocks[level]
        where = {"y": slice(row * bh, (row + 1) * bh), "x": slice(column * bw, (column + 1) * bw)}
        key = tuple(where.get(a, slice(None) if a == "c" else 0) for a in self._axes)
        arrays = self._arrays
        if not arrays:
            raise closed(self.path)
        try:
            pixels = np.asarray(arrays[level][key])
        except SlideError:
            raise
        except Exception as error:  # reason: codecs raise their own exceptions, one per compression
            raise unreadable(self.path, error, "its pixels cannot be decoded") from error
        kept = [a for a in self._axes if a in "yxc"]
        if "c" not in kept:
            pixels, kept = pixels[..., None], [*kept, "c"]
        return np.ascontiguousarray(pixels.transpose([kept.index(a) for a in "yxc"]))

    def _block_size(self, array: Any) -> tuple[int, int]:
        """(width, height) of whole chunks, at least 256 px."""
        sides = [array.chunks[self._axes.index(axis)] for axis in "xy"]
        width, height = (side * max(1, -(-_BLOCK // side)) for side in sides)
        channels = array.shape[self._axes.index("c")] if "c" in self._axes else 1
        if max(prod(array.chunks), width * height * channels) * array.dtype.itemsize > LARGEST:
            raise SlideError(
                f"{self.path}: its chunks of {array.chunks}, of an array of {array.shape}, are too "
                "large to read in pieces; write it again with chunks of at most 1024 px, and with "
                "fewer channels if there are thousands."
            )
        return width, height

    def _overview(self) -> NDArray[Any]:
        level = len(self.facts.levels) - 1
        return spread(partial(self._stored, level), *self.facts.levels[level].size)

    def _check_levels(self) -> None:
        """Refuse levels that are not finest first, or have no pixels at all."""
        sizes = [level.size for level in self.facts.levels]
        for number, (finer, size) in enumerate(pairwise(sizes), start=1):
            if size.width > finer.width or size.height > finer.height:
                raise SlideError(
                    f"{self.path}: its datasets are not in the order of their resolution, as NGFF "
                    f"demands: level {number} of {size.width} x {size.height} px follows one of "
                    f"{finer.width} x {finer.height}; write it again."
                )
        empty = [self._place.is_empty(name) for name in self._names]
        # Masks may be empty, at least at low resolution, and so may slides that are filled with the
        # white of glass; a stained slide that is filled with black never is.
        rgb = self._compose.rgb
        if any(empty) and self._fills_dark() if rgb else empty[0] and not all(empty):
            number = empty.index(True)
            raise SlideError(
                f"{self.path}: level {number} has no pixels: {self.path / self._names[number]} "
                "holds none of its chunks; copy it again."
            )

    def notes(self) -> list[str]:
        """Return warnings: contradictory or missing metadata, and which samples are drawn."""
        found = self._compose.notes()
        width, height = self.facts.levels[0].size
        for number, (level, stated) in enumerate(zip(self.facts.levels, self._scales, strict=True)):
            for side, whole, one, first in zip(
                level.size, (width, height), stated, self._scales[0], strict=True
            ):
                if first > 0 and abs(side * one / first - whole) > 2 * max(1, one / first):
                    found.append(
                        f"level {number} states a scale of {one / first:g} but is {whole / side:g} "
                        "times as small as level 0: it is drawn over the whole slide"
                    )
                    break
        return [*found, *filter(None, map(self._missing, range(len(self._names))))]

    def _missing(self, level: int) -> str | None:
        """Describe the chunks of a colour image that are not there, unless they are white."""
        if not (self._compose.rgb and self._fills_dark()):
            return None
        array = self._arrays[level]
        sides = zip(array.shape, array.shards or array.chunks, strict=True)
        parts = prod(-(-n // side) for n, side in sides)
        missing = parts - self._place.stored(self._names[level])
        if missing <= 0:
            return None
        return (
            f"{missing} of {parts} chunks of level {level} are not there: they are drawn dark, not "
            "white; copy it again if parts are missing"
        )

    def _warn(self, level: int) -> None:
        """Warn once that chunks are missing among those that are read: a model sees no tissue."""
        with suppress(KeyError, IndexError):  # another thread is first, or closes the slide
            self._unwarned.remove(level)
            if missing := self._missing(level):
                log.warning("%s: %s", self.path, missing)

    def _fills_dark(self) -> bool:
        """Return whether unwritten pixels are drawn darker than middle grey."""
        array = self._arrays[0]
        unwritten = np.full((1, 1, self._compose.channels), array.fill_value or 0, array.dtype)
        return int(self._compose(unwritten).max()) < 128


def what_is(folder: Path) -> str | None:
    """Describe which part of OME-Zarr a folder without an image is; ``None``: no part of it."""
    try:
        ome = attributes(folder)
        plate, well = (ome.get(key) or {} for key in ("plate", "well"))
        if wells := plate.get("wells"):
            first = folder / str(wells[0]["path"])
            within = (attributes(first).get("well") or {}).get("images") or [{"path": "0"}]
            return _choice(f"an OME-Zarr plate of {len(wells)} wells", first, within)
        if images := well.get("images"):
            return _choice(f"an OME-Zarr well of {len(images)} images", folder, images)
    except (SlideError, AttributeError, LookupError, TypeError):  # no such thing, or a damaged one
        return None
    above = [above for above in list(folder.parents)[:3] if "multiscales" in attributes(above)]
    return f"a part of the OME-Zarr image {above[0]}: open that" if above else None


def _choice(what: str, folder: Path, images: list[Any]) -> str:
    return f"{what}: open one of its images, such as {folder / str(images[0]['path'])}"


def _has_image(ome: dict[str, Any]) -> bool:
    return "multiscales" in ome or "bioformats2raw.layout" in ome


def _zip_has_image(path: Path) -> bool:
    """Return whether a zip archive holds an OME image; a damaged one holds none."""
    try:
        with closing(ZarrZip(path)) as place:
            return _has_image(place.attributes())
    except SlideError:
        return False


def _joined(group: str, name: str) -> str:
    return f"{group}/{name}" if group else name


def _image(place: ZarrFolder) -> tuple[str, dict[str, Any]]:
    """Return the group of the image, within the place, and its attributes."""
    group, ome = "", place.attributes()
    if "multiscales" not in ome and "bioformats2raw.layout" in ome:
        series = place.attributes("OME").get("series")
        group = str(series[0]) if isinstance(series, list) and series else "0"
        ome = place.attributes(group)
    if not ome.get("multiscales"):
        raise UnsupportedSlideError(
            f"{place.path / group}: holds no OME-Zarr image (no `multiscales`)."
        )
    return group, ome


def _multiscale(path: Path, ome: dict[str, Any]) -> tuple[Any, list[str | None], list[list[float]]]:
    """Validate the metadata; return it with the unit of each axis, and the scales of each level."""
    from pydantic import ValidationError

    version = str(ome.get("version") or _version(ome["multiscales"]))
    if version == "0.5":
        from ome_zarr_models.v05.multiscales import Multiscale as Model
    else:
        from ome_zarr_models.v04.multiscales import Multiscale as Model  # type: ignore[assignment]
    try:
        multiscale = Model.model_validate(ome["multiscales"][0])
    except (ValidationError, LookupError, TypeError) as error:
        why = first_fault(error) if isinstance(error, ValidationError) else error
        if version not in _VERSIONS:
            raise UnsupportedSlideError(
                f"{path}: is OME-Zarr of NGFF {version}; slidelens reads "
                f"{' and '.join(_VERSIONS)}, to which it can be converted."
            ) from error
        raise SlideError(
            f"{path}: its OME-Zarr metadata does not follow NGFF {version} ({why})."
        ) from error
    scales = []
    for dataset in multiscale.datasets:
        scale = [1.0] * len(multiscale.axes)
        for transform in (
            *dataset.coordinateTransformations,
            *(multiscale.coordinateTransformations or ()),
        ):
            factors = getattr(transform, "scale", None)
            if factors is not None:
                scale = [old * float(new) for old, new in zip(scale, factors, strict=True)]
        scales.append(scale)
    units = [axis.unit if isinstance(axis.unit, str) else None for axis in multiscale.axes]
    return multiscale, units, scales


def _version(multiscales: Any) -> str:
    """Return the version of NGFF that a multiscale states; up to 0.4 it is stated there."""
    first = multiscales[0] if isinstance(multiscales, list) else None
    return str((first.get("version") if isinstance(first, dict) else None) or _VERSIONS[0])


def _bits(ome: dict[str, Any]) -> int | None:
    """Return the number of bits that `omero` draws in full; all 16, or nonsense, means nothing.

    It is what a person chose to see, so the pixels may hold more.
    """
    stated = (ome.get("omero") or {}).get("channels") or []
    windows = [channel.get("window") or {} for channel in stated]
    try:
        end = max(int(window["end"]) for window in windows)
    except (LookupError, TypeError, ValueError, OverflowError):
        return None
    return depth_of(end) if 0 < end < 2**14 else None


def _channels(path: Path, ome: dict[str, Any], n: int, dtype: Any) -> tuple[tuple[str, ...], bool]:
    """Return channel names, and whether they are red, green and blue."""
    omero = ome.get("omero") or {}
    stated = omero.get("channels") or []
    colours = [str(channel.get("color") or "").upper() for channel in stated]
    labels = [str(channel.get("label") or "") for channel in stated]
    silent = not any(colours) and not any(labels)
    plain = silent or colours in _RGB or [label.upper() for label in labels] in _RGB
    sort = np.dtype(dtype).newbyteorder("=")
    if n == 3 and plain and sort.kind == "f":
        raise UnsupportedSlideError(
            f"{path}: its colours are of type {sort}; slidelens reads RGB of 8 or 16 bits per "
            "colour (grey, and fluorescence channels that `omero` names, of any type). Convert it."
        )
    if n in (3, 4) and sort in (np.uint8, np.uint16) and plain and (n == 3 or not stated):
        return (), True
    if n == 1:
        return (), False
    names = [label or f"channel {i}" for i, label in enumerate(labels)]
    return tuple(names if len(names) == n else (f"channel {i}" for i in range(n))), False
