"""A map of model output on a slide, read lazily, whose cells know their position on the slide."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from slidelens.tiling.box_sums import BoxSums

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    from slidelens.geometry import Affine, Box, Mpp

__all__ = ["Cells", "Kind", "Map", "MapData", "Plane", "snapped", "split_index"]

Kind = Literal["probability", "attention", "saliency", "labels"]

_BAND = 2**22  # cells per channel that `Map.mean` holds at once


class Cells(Protocol):
    """A lazy array ``(channels, height, width)``: a zarr or numpy array, or a canvas."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, rows, columns."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32, or an unsigned integer for labels."""

    def __getitem__(self, key: Any, /) -> Any:
        """Read a part, with numpy's basic indexing."""

    def __array__(self, dtype: Any = None, /, *, copy: bool | None = None) -> Any:
        """Read all of it for ``np.asarray``."""


@dataclass(frozen=True)
class MapData:
    """The facts of a map that are read on first use.

    Attributes
    ----------
    channels
        Names of the planes; for labels the names of the labels 1, 2, ...
    affine
        Cells of the finest level to level-0 px.
    slide_mpp
        Resolution of the slide's level 0.
    levels
        Finest first, each half the size of the previous one.
    """

    channels: tuple[str, ...]
    affine: Affine
    slide_mpp: Mpp
    levels: tuple[Cells, ...]


class Map:
    """A map of one slide.

    NaN is "not predicted"; in a label map 0 is "none" and label ``k`` is ``channels[k - 1]``.

    Parameters
    ----------
    name, kind
        Key in the result, and what the values mean.
    data
        The contents, or a function that opens them on first use.
    """

    def __init__(self, name: str, kind: Kind, data: MapData | Callable[[], MapData]) -> None:
        self.name = name
        self.kind = kind
        self._open = data

    @classmethod
    def from_array(
        cls,
        name: str,
        kind: Kind,
        channels: Sequence[str],
        values: ArrayLike,
        affine: Affine,
        slide_mpp: Mpp,
    ) -> Map:
        """Make a map of an array in memory: ``(C, H, W)``, or ``(H, W)`` for one plane.

        Parameters
        ----------
        name, kind, channels
            Its name, what its values mean, and a name for each plane.
        values
            Integers for a map of kind ``labels``, otherwise floating-point; NaN: not predicted.
        affine
            From cells to level-0 px.
        slide_mpp
            Resolution of the slide, µm per level-0 px.

        Raises
        ------
        ValueError
            The array has another number of axes, or of planes, than ``channels`` names.
        """
        array = np.asarray(values)
        array = array[None] if array.ndim == 2 else array
        if kind == "labels" and array.dtype == np.bool_:
            array = array.view(np.uint8)  # no copy: a gigapixel slide's tissue has 64 million cells
        elif kind == "labels":
            array = array.astype(np.uint8 if len(channels) < 256 else np.uint16)
        else:
            array = array.astype(np.float32)
        planes = 1 if kind == "labels" else len(channels)
        if array.ndim != 3 or len(array) != planes:
            raise ValueError(f"map {name!r}: shape {array.shape}, expected ({planes}, H, W)")
        return cls(name, kind, MapData(tuple(channels), affine, slide_mpp, (array,)))

    @cached_property
    def _data(self) -> MapData:
        return self._open if isinstance(self._open, MapData) else self._open()

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the planes; for labels the names of the labels 1, 2, ..."""
        return self._data.channels

    @property
    def affine(self) -> Affine:
        """Cells to level-0 px."""
        return self._data.affine

    @property
    def slide_mpp(self) -> Mpp:
        """Resolution of the slide's level 0 in µm/px."""
        return self._data.slide_mpp

    @property
    def mpp(self) -> float:
        """Side of a cell in µm (of the square of the same area)."""
        affine, mpp = self.affine, self.slide_mpp
        return sqrt(affine.sx * mpp.x * affine.sy * mpp.y)

    @property
    def cell_area_mm2(self) -> float:
        """Area of a cell in mm²."""
        affine, mpp = self.affine, self.slide_mpp
        return affine.sx * mpp.x * affine.sy * mpp.y * 1e-6

    @property
    def shape(self) -> tuple[int, int, int]:
        """Planes, rows, columns."""
        planes, rows, columns = self._data.levels[0].shape
        return planes, rows, columns

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32, or an unsigned integer for labels."""
        return np.dtype(self._data.levels[0].dtype)

    @property
    def levels(self) -> tuple[Cells, ...]:
        """Lazy arrays ``(C, H, W)``, finest first, for viewers."""
        return self._data.levels

    def planes(self, channel: str | int = 0) -> list[Plane]:
        """Return one channel's levels as lazy ``(H, W)`` arrays, finest first, for viewers."""
        return [Plane(level, self.channel(channel)) for level in self.levels]

    def channel(self, channel: str | int) -> int:
        """Return the index of a plane by name or index (a label map has the one plane 0).

        Raises
        ------
        KeyError
            No such channel.
        """
        if isinstance(channel, str):
            if self.kind == "labels" or channel not in self.channels:
                raise KeyError(f"map {self.name!r} has no channel {channel!r}")
            return self.channels.index(channel)
        if not -self.shape[0] <= channel < self.shape[0]:
            raise KeyError(f"map {self.name!r} has no channel {channel}")
        return channel % self.shape[0]

    def window(self, box: Box | None = None) -> tuple[slice, slice]:
        """Return the rows and columns of the cells that a box (level-0 px) touches."""
        _, height, width = self.shape
        if box is None:
            return slice(0, height), slice(0, width)
        corners = self.affine.invert([(box.x, box.y), (box.right, box.bottom)])
        (left, top), (right, bottom) = snapped(corners)
        return _clip(top, bottom, height), _clip(left, right, width)

    def read(self, box: Box | None = None) -> NDArray[Any]:
        """Read the cells that a box (level-0 px) touches, or all.

        Returns
        -------
        float32 ``(C, H, W)``, NaN where nothing was predicted; labels unsigned ``(1, H, W)``.
        The first cell is at ``window(box)``.
        """
        rows, columns = self.window(box)
        return np.asarray(self.levels[0][:, rows, columns])

    def at(self, x: float, y: float) -> NDArray[Any]:
        """Return the values ``(C,)`` under a point (level-0 px); NaN or 0 outside the map."""
        _, height, width = self.shape
        column, row = np.floor(self.affine.invert((x, y))).astype(int).tolist()
        if not (0 <= row < height and 0 <= column < width):
            empty = 0 if self.kind == "labels" else np.nan
            return np.full(self.shape[0], empty, self.dtype)
        return np.asarray(self.levels[0][:, row : row + 1, column : column + 1]).reshape(-1)

    def mean(self, boxes: ArrayLike) -> NDArray[np.float32]:
        """Average the predicted cells under each box, weighted by the area they share.

        Parameters
        ----------
        boxes
            ``(N, 4)`` x, y, w, h in level-0 px.

        Returns
        -------
        ``(N, C)`` float32; NaN where a box covers no predicted cell.
        """
        given = np.asarray(boxes, np.float64).reshape(-1, 4)
        corners = np.concatenate([given[:, :2], given[:, :2] + given[:, 2:]], 1).reshape(-1, 2)
        edges = snapped(self.affine.invert(corners)).reshape(-1, 4)
        _, height, width = self.shape
        edges = edges.clip(0, (width, height, width, height))
        out = np.full((len(given), self.shape[0]), np.nan, np.float32)
        for chosen, rows in _bands(edges, max(1, _BAND // width)):
            values = np.asarray(self.levels[0][:, rows, :], np.float64)
            sums = BoxSums(edges[chosen] - (0, rows.start, 0, rows.start), values.shape[1:])
            counted: NDArray[np.bool_] | None = None
            for channel, plane in enumerate(values):
                known = ~np.isnan(plane)
                if counted is None or not np.array_equal(known, counted):
                    area, counted = sums(_table(known, sums.lines)), known
                total = sums(_table(np.where(known, plane, 0.0), sums.lines))
                some = area > 1e-6
                out[chosen[some], channel] = total[some] / area[some]
        return out

    def __getstate__(self) -> dict[str, Any]:
        # Open files stay here: a copy, or another process, opens them itself.
        return {"name": self.name, "kind": self.kind, "_open": self._open}

    def __repr__(self) -> str:
        if not (
            "_data" in self.__dict__ or isinstance(self._open, MapData)
        ):  # unopened contents may be damaged, or gone
            return f"<Map {self.name}: {self.kind}>"
        planes, height, width = self.shape
        cells = f"{planes} x {height} x {width} cells of {self.mpp:g} µm"
        return f"<Map {self.name}: {self.kind}, {cells}, {', '.join(self.channels)}>"


class Plane:
    """One ``channel`` of the ``cells`` of one level: the lazy ``(H, W)`` array of viewers."""

    def __init__(self, cells: Cells, channel: int) -> None:
        self._cells = cells
        self._channel = channel
        self.shape: tuple[int, int] = (cells.shape[1], cells.shape[2])
        self.dtype = np.dtype(cells.dtype)
        self.ndim = 2
        self.size = self.shape[0] * self.shape[1]
        self.chunks: tuple[int, int] = tuple(getattr(cells, "chunks", cells.shape)[-2:])

    def __getitem__(self, key: Any) -> NDArray[Any]:
        slices, rest = split_index(key, self.shape)
        part = self._cells[(slice(self._channel, self._channel + 1), *slices)]
        return np.asarray(np.asarray(part)[0][rest])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self[:, :], dtype, copy=copy)


def split_index(
    key: Any, shape: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice | int, ...]]:
    """Split numpy's basic index into a window (unit step, kept axes) and the rest of the index."""
    keys = key if isinstance(key, tuple) else (key,)
    if any(k is Ellipsis for k in keys):
        at = next(i for i, k in enumerate(keys) if k is Ellipsis)
        missing = len(shape) - len(keys) + 1
        keys = (*keys[:at], *[slice(None)] * missing, *keys[at + 1 :])
    keys = (*keys, *[slice(None)] * (len(shape) - len(keys)))
    window: list[slice] = []
    rest: list[slice | int] = []
    for k, n in zip(keys, shape, strict=True):
        if isinstance(k, slice):
            picked = range(n)[k]
            low, high = (picked[0], picked[-1]) if picked else (0, -1)
            window.append(slice(min(low, high), max(low, high) + 1) if picked else slice(0, 0))
            rest.append(slice(None, None, picked.step))
        else:
            i = range(n)[k]
            window.append(slice(i, i + 1))
            rest.append(0)
    return tuple(window), tuple(rest)


def snapped(cells: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round coordinates in cells, of any shape, that miss an edge only by rounding error."""
    near = np.rint(cells)
    return np.where(np.abs(cells - near) < 1e-6, near, cells)


def _clip(start: float, stop: float, n: int) -> slice:
    low = min(max(int(np.floor(start)), 0), n)
    return slice(low, max(low, min(int(np.ceil(stop)), n)))


def _bands(edges: NDArray[np.float64], height: int) -> Iterator[tuple[NDArray[np.intp], slice]]:
    """Group boxes (left, top, right, bottom, in cells) by rows, so that each group reads few."""
    order = np.argsort(edges[:, 1], kind="stable")
    order = order[(edges[order, 2] > edges[order, 0]) & (edges[order, 3] > edges[order, 1])]
    start = 0
    while start < len(order):
        top = int(np.floor(edges[order[start], 1]))
        stop = int(np.searchsorted(edges[order, 1], top + height, "left"))
        stop = max(stop, start + 1)
        chosen = order[start:stop]
        yield chosen, slice(top, int(np.ceil(edges[chosen, 3].max())))
        start = stop


def _table(plane: NDArray[np.float64], lines: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return some lines of an integral image, for :class:`BoxSums`."""
    table = np.zeros((len(lines), plane.shape[1] + 1))
    above = np.zeros(plane.shape[1])
    done = 0
    for number, line in enumerate(lines.tolist()):
        for row in plane[done:line]:  # one by one from the top: else sums round differently
            above += row
        table[number, 1:] = above
        done = line
    np.cumsum(table, axis=1, out=table)
    return table
