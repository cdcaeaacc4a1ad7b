"""A map under construction: patches are added in any order and blended exactly."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from slidelens.geometry import Affine, Mpp, Size
from slidelens.maps.blocks import COARSE, BlockSums
from slidelens.maps.map import Kind, Map, MapData, snapped, split_index

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

__all__ = ["Canvas", "window"]

_SPREAD = 16  # cells per box up to which all boxes are added at once


class Spec(Protocol):
    """What a canvas must know about a map (``families.base.MapSpec`` is one)."""

    @property
    def name(self) -> str:
        """Key of the map."""

    @property
    def kind(self) -> Kind:
        """What the values mean."""

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the planes (in a map of labels, of the labels 1, 2, ...)."""

    @property
    def mpp(self) -> float:
        """Side of a cell in µm."""


def window(height: int, width: int) -> NDArray[np.float64]:
    """Return a Hann window ``(height, width)`` above zero, to blend overlapping rasters."""

    def hann(n: int) -> NDArray[np.float64]:
        return np.asarray(np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2)

    return np.outer(hann(height), hann(width))


class Canvas:
    """Weighted means of patches on a plane of cells that begins at the slide's corner (0, 0).

    A cell's value is the mean of what was added to it, weighted by the area that patch and cell
    share and by the patch's weight. Sums are float64 in blocks (:class:`BlockSums`), so the result
    does not depend on the order (to float32 rounding), nor memory on the slide's size. In a map of
    kind "labels" each patch votes with its weight; ties go to the larger label.

    Make one with :meth:`create`.
    """

    def __init__(
        self,
        name: str,
        kind: Kind,
        channels: tuple[str, ...],
        affine: Affine,
        mpp: Mpp,
        sums: BlockSums,
    ) -> None:
        self.name, self.kind, self.channels = name, kind, channels
        self.affine, self.slide_mpp = affine, mpp
        self._sums = sums
        self._finished = False

    @classmethod
    def create(
        cls,
        folder: Path | None,
        spec: Spec,
        size: Size,
        mpp: Mpp,
        *,
        buffer_mb: float = 128,
    ) -> Canvas:
        """Make an empty canvas over a whole slide.

        Parameters
        ----------
        folder
            Where sums that do not fit in ``buffer_mb`` may go (in a temporary folder in there that
            disappears with the canvas and its maps); ``None``: the system's temporary folder.
        spec
            Name, kind, channels and cell side in µm of the map.
        size, mpp
            The slide's level 0, in px and µm/px.

        Raises
        ------
        ValueError
            The map has no channels, or its cells are not above 0 µm.
        """
        if not (np.isfinite(spec.mpp) and spec.mpp > 0 and spec.channels):
            raise ValueError(f"map {spec.name!r}: needs channels and a cell above 0 µm")
        affine = Affine(spec.mpp / mpp.x, spec.mpp / mpp.y)
        height = max(1, ceil(size.height / affine.sy - 1e-6))
        width = max(1, ceil(size.width / affine.sx - 1e-6))
        # Viewers take a level's scale from its shape, so that must halve without a remainder.
        step = 1
        while max(height, width) > COARSE * step:
            step *= 2
        height, width = -(-height // step) * step, -(-width // step) * step
        planes = len(spec.channels) + (spec.kind != "labels")
        sums = BlockSums(planes, height, width, folder, buffer_mb)
        return cls(spec.name, spec.kind, tuple(spec.channels), affine, mpp, sums)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns in cells."""
        return self._sums.shape[1], self._sums.shape[2]

    def add(self, boxes: ArrayLike, values: ArrayLike, weights: ArrayLike | None = None) -> None:
        """Add patches.

        Parameters
        ----------
        boxes
            ``(N, 4)`` float64 x, y, w, h in level-0 px. Parts of a box outside the slide do not
            count. (The engine refuses a family's box that is wholly outside.)
        values
            ``(N, C)``: one value per box and channel; or ``(N, C, h, w)``: a raster that fills the
            box. NaN adds nothing. For kind "labels", C is 1 and the values are labels (0: none).
        weights
            ``None``, ``(N,)``, or for rasters ``(h, w)`` or ``(N, h, w)``; none below zero.

        Raises
        ------
        ValueError
            The shapes do not fit, or the canvas is finished.
        ResultError
            The disk is full.
        """
        if self._finished:
            raise ValueError(f"map {self.name!r} is finished")
        where = np.asarray(boxes, np.float64).reshape(-1, 4)
        given = np.asarray(values, np.float64)
        planes = 1 if self.kind == "labels" else len(self.channels)
        if given.ndim not in (2, 4) or given.shape[:2] != (len(where), planes):
            raise ValueError(
                f"map {self.name!r}: values {given.shape} for {len(where)} boxes, "
                f"expected ({len(where)}, {planes}) or ({len(where)}, {planes}, h, w)"
            )
        if not len(where):
            return
        edges = self._edges(where)
        heavy = None if weights is None else np.asarray(weights, np.float64)
        spans = (np.ceil(edges[:, 2:]) - np.floor(edges[:, :2])).prod(1)
        if given.ndim == 2 and spans.max() <= _SPREAD and (heavy is None or heavy.ndim == 1):
            self._spread(edges, self._planes(given, heavy))
            return
        rasters = given[:, :, None, None] if given.ndim == 2 else given
        if heavy is not None:
            heavy = heavy[:, None, None] if heavy.ndim == 1 else heavy
            heavy = np.broadcast_to(heavy, (len(rasters), *rasters.shape[2:]))
        for k, edge in enumerate(edges):
            weight = None if heavy is None else heavy[k : k + 1]
            self._paste(edge, self._planes(rasters[k : k + 1], weight)[0])

    def peek(self) -> Map:
        """Return the map as it is now, while others keep adding; reads see the newest values."""
        blend = Blend(self._sums, self.kind)
        levels: tuple[Any, ...] = (blend,)
        if self._sums.factor > 1:
            coarse = _blend(self._sums.coarse(), self.kind, blend.dtype)
            levels = (blend, coarse)
        data = MapData(self.channels, self.affine, self.slide_mpp, levels)
        return Map(self.name, self.kind, data)

    def finish(self) -> Map:
        """Return the map; nothing can be added any more."""
        self._finished = True
        return self.peek()

    def _edges(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Left, top, right, bottom of each box in cells, free of rounding error."""
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
        return snapped(self.affine.invert(corners.reshape(-1, 2)).reshape(-1, 4))

    def _planes(
        self, values: NDArray[np.float64], weights: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        """Turn values into what is summed, ``(N, planes, ...)``: products and weight, or votes."""
        weight = np.ones_like(values[:, :1])
        if weights is not None:
            weight *= weights.reshape(len(weights), 1, *weights.shape[1:])
        if self.kind == "labels":
            names = np.arange(1, len(self.channels) + 1).reshape(1, -1, *[1] * (values.ndim - 2))
            return np.asarray((values == names) * weight)
        unknown = np.isnan(values).any(1, keepdims=True)
        if unknown.any():
            weight = np.where(unknown, 0.0, weight)
            values = np.where(unknown, 0.0, values)
        return np.concatenate([values * weight, weight], 1)

    def _spread(self, edges: NDArray[np.float64], planes: NDArray[np.float64]) -> None:
        """Add boxes that each touch few cells, ``planes (N, P)``, all at once."""
        height, width = self.shape
        edges = edges.clip(0, (width, height, width, height))
        left, top, right, bottom = edges.T
        column, row = np.floor(left).astype(np.intp), np.floor(top).astype(np.intp)
        across = int((np.ceil(right) - column).max(initial=0))
        down = int((np.ceil(bottom) - row).max(initial=0))
        for i in range(down):
            share_y = np.minimum(bottom, row + i + 1) - np.maximum(top, row + i)
            for j in range(across):
                share = share_y * (np.minimum(right, column + j + 1) - np.maximum(left, column + j))
                some = np.flatnonzero((share_y > 0) & (share > 0))
                self._sums.add_cells(
                    row[some] + i, column[some] + j, (planes[some] * share[some, None]).T
                )

    def _paste(self, edges: NDArray[np.float64], planes: NDArray[np.float64]) -> None:
        """Add one raster, ``planes (P, h, w)``, to the cells under its box."""
        height, width = self.shape
        left, top, right, bottom = edges.tolist()
        columns = _overlapped(left, right, width)
        rows = _overlapped(top, bottom, height)
        if not (len(columns) and len(rows)):
            return
        cells = _resample(_resample(planes, top, bottom, rows, 1), left, right, columns, 2)
        self._sums.add_raster(rows.start, columns.start, cells)


def _overlapped(start: float, stop: float, n: int) -> range:
    return range(max(0, int(np.floor(start))), min(n, ceil(stop)))


def _resample(
    values: NDArray[np.float64], start: float, stop: float, cells: range, axis: int
) -> NDArray[np.float64]:
    """Integrate equal steps of constant value from ``start`` to ``stop`` over each cell."""
    n = values.shape[axis]
    if stop - start == n and start == int(start):  # one step per cell: exact, nothing to add up
        first = cells.start - int(start)
        return np.take(values, range(first, first + len(cells)), axis)
    step = (stop - start) / n
    bounds = np.arange(cells.start, cells.stop + 1, dtype=np.float64).clip(start, stop)
    # Where nothing was added, the difference must be exactly 0: it is a divisor.
    position = snapped((bounds - start) / step)
    index = np.minimum(position.astype(np.intp), n - 1)
    rest = (position - index).reshape([-1 if a == axis else 1 for a in range(3)])
    sums = np.roll(np.cumsum(values, axis), 1, axis)  # of the steps before
    sums[(slice(None),) * axis + (0,)] = 0
    integral = (np.take(sums, index, axis) + rest * np.take(values, index, axis)) * step
    return np.diff(integral, axis=axis)


@dataclass(frozen=True)
class Blend:
    """The lazy array ``(C, H, W)`` of a canvas: sums divided when they are read."""

    sums: BlockSums
    kind: Kind

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, rows, columns."""
        planes, height, width = self.sums.shape
        return (1 if self.kind == "labels" else planes - 1, height, width)

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32, or an unsigned integer for labels."""
        if self.kind == "labels":
            return np.dtype(np.uint8 if self.sums.shape[0] < 256 else np.uint16)
        return np.dtype(np.float32)

    @property
    def ndim(self) -> int:
        """Three."""
        return 3

    def __getitem__(self, key: Any) -> NDArray[Any]:
        (channels, rows, columns), rest = split_index(key, self.shape)
        values = _blend(self.sums.read(rows, columns), self.kind, self.dtype)
        return np.asarray(values[channels][rest])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self[:, :, :], dtype, copy=copy)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy, and what another process gets, is an array: the sums as they are now.
        return np.asarray, (self[:, :, :],)


def _blend(sums: NDArray[np.float64], kind: Kind, dtype: np.dtype[Any]) -> NDArray[Any]:
    if kind == "labels":
        largest = len(sums) - np.argmax(sums[::-1], 0)
        return np.where(sums.any(0), largest, 0).astype(dtype)[None]
    with np.errstate(invalid="ignore"):
        return (sums[:-1] / sums[-1:]).astype(dtype)
