"""Tile grids: pure arithmetic at an exact resolution, in level-0 px.

Tile ``k`` of a row starts at exactly ``k * stride``: one multiplication of floats, never a sum of
rounded steps. The lattice is anchored at the slide's corner, so a run on a region uses exactly the
tiles that a run on the whole slide would use there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from slidelens.geometry import Affine, Box, Mpp, Size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from slidelens.tiling.tissue import TissueMask

__all__ = ["DEFAULT_GRID", "Grid", "GridSpec", "make_grid"]

_SLIVER = 1e-6
"""Level-0 px below which a strip is a float's rounding error, not a part of the slide."""

_CHUNK = 1 << 20
"""Lattice cells whose boxes are in memory at once while tissue selects among them."""


@dataclass(frozen=True, slots=True)
class GridSpec:
    """How to lay tiles over a slide.

    Attributes
    ----------
    tile
        Side of a tile in px at ``mpp``.
    mpp
        Resolution of the tiles in µm/px.
    overlap
        Px at ``mpp`` that neighbouring tiles share.
    min_tissue
        A tile is kept if at least this fraction of it (of its part inside the slide) is tissue;
        0 keeps every tile.

    Raises
    ------
    ValueError
        The size, resolution, overlap or fraction makes no grid.
    """

    tile: int
    mpp: float
    overlap: int = 0
    min_tissue: float = 0.5

    def __post_init__(self) -> None:
        if self.tile < 1:
            raise ValueError(f"tile must be at least 1 px, not {self.tile}")
        if not (np.isfinite(self.mpp) and self.mpp > 0):
            raise ValueError(f"mpp must be above 0 µm/px, not {self.mpp}")
        if not 0 <= self.overlap < self.tile:
            raise ValueError(f"overlap must be in 0..{self.tile - 1} px, not {self.overlap}")
        if not 0 <= self.min_tissue <= 1:
            raise ValueError(f"min_tissue must be in 0..1, not {self.min_tissue}")

    @property
    def stride(self) -> int:
        """Px at ``mpp`` from one tile to the next."""
        return self.tile - self.overlap


DEFAULT_GRID = GridSpec(tile=224, mpp=0.5)
"""Tiles of 112 µm: the grid for tile tables of models that look at whole slides, not at tiles."""


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Tiles of one slide, in row-major order.

    Attributes
    ----------
    spec
        The parameters of the grid.
    boxes
        ``(N, 4)`` float64 x, y, w, h of the tiles in level-0 px, all of one size. Tiles of the last
        row and column may reach beyond the slide's border (reads pad with white).
    cores
        ``(N, 4)`` float64: the part that each tile owns. The cores of a grid without tissue
        selection cover every pixel of the (snapped) region exactly once; they end at the slide's
        border, and inside an overlap they meet at its middle.
    index
        ``(N, 2)`` int64 column, row of each tile in the lattice of ``shape``.
    tissue
        ``(N,)`` float64 fraction of each tile's part inside the slide that is tissue.
    shape
        Rows and columns of the lattice that covers the region, kept tiles or not.
    affine
        Lattice cell to level-0 px: the place of an array of ``shape``, one value per tile.
    """

    spec: GridSpec
    boxes: NDArray[np.float64]
    cores: NDArray[np.float64]
    index: NDArray[np.int64]
    tissue: NDArray[np.float64]
    shape: tuple[int, int]
    affine: Affine

    def __repr__(self) -> str:
        tile, mpp = self.spec.tile, self.spec.mpp
        return f"<Grid: {len(self)} tiles of {tile} px at {mpp:g} µm/px>"

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Grid:
        """Return the grid of some of the tiles, by their positions ``(n,)``, in that order."""
        return replace(
            self,
            boxes=self.boxes[rows],
            cores=self.cores[rows],
            index=self.index[rows],
            tissue=self.tissue[rows],
        )


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis of the lattice: positions in level-0 px."""

    start: NDArray[np.float64]  # (n,) left edges of the tiles
    edges: NDArray[np.float64]  # (n + 1,) edges of the cores
    tile: float
    stride: float
    origin: float  # left edge of the first cell of an array over the lattice

    @classmethod
    def of(cls, length: int, mpp0: float, spec: GridSpec, low: float, high: float) -> _Axis:
        """Lay tiles along ``length`` px and keep those whose core meets ``[low, high)``."""
        tile = spec.tile * spec.mpp / mpp0
        stride = spec.stride * spec.mpp / mpp0
        margin = spec.overlap * spec.mpp / mpp0 / 2
        count = max(1, int(np.ceil((length - tile - _SLIVER) / stride)) + 1)
        edges = np.arange(count + 1, dtype=np.float64) * stride + margin
        edges[0], edges[-1] = 0.0, length
        first = int(np.searchsorted(edges, low + _SLIVER, side="right")) - 1
        first = min(max(first, 0), count - 1)
        last = int(np.searchsorted(edges, high - _SLIVER, side="left"))
        last = min(max(last, first + 1), count)
        return cls(
            start=np.arange(first, last, dtype=np.float64) * stride,
            edges=edges[first : last + 1],
            tile=tile,
            stride=stride,
            origin=first * stride + margin,
        )


def make_grid(
    slide_size: Size,
    mpp: Mpp,
    spec: GridSpec,
    *,
    tissue: TissueMask | None = None,
    region: Box | None = None,
) -> Grid:
    """Lay a grid over a slide or over a region of it.

    Parameters
    ----------
    slide_size
        Width and height in level-0 px.
    mpp
        The slide's own resolution in µm/px; x and y may differ.
    spec
        Tile size, resolution, overlap and the tissue that a tile must contain.
    tissue
        Where the tissue is; without it every tile is kept and counts as all tissue.
    region
        Restrict the grid to tiles that own a part of this box (level-0 px): the box grows to whole
        cells of the slide-wide lattice, so the result is a crop of the slide's grid.

    Raises
    ------
    ValueError
        The slide has no pixels, or the region is outside the slide.
    """
    if min(slide_size) < 1:
        raise ValueError(f"a slide of {slide_size[0]} x {slide_size[1]} px has no tiles")
    whole = Box.of_size(slide_size)
    part = whole if region is None else whole.intersect(region)
    if not part.area > 0:
        raise ValueError(
            f"region {tuple(region or part)} lies outside the slide of "
            f"{slide_size[0]} x {slide_size[1]} px; give x, y, width, height in level-0 px"
        )
    xs = _Axis.of(slide_size[0], mpp.x, spec, part.x, part.right)
    ys = _Axis.of(slide_size[1], mpp.y, spec, part.y, part.bottom)
    index, fraction = _select(xs, ys, slide_size, spec.min_tissue, tissue)
    column, row = index.T
    return Grid(
        spec=spec,
        boxes=_boxes(xs.start[column], ys.start[row], xs.tile, ys.tile),
        cores=_boxes(
            xs.edges[column], ys.edges[row], np.diff(xs.edges)[column], np.diff(ys.edges)[row]
        ),
        index=index,
        tissue=fraction,
        shape=(len(ys.start), len(xs.start)),
        affine=Affine(xs.stride, ys.stride, xs.origin, ys.origin),
    )


def _select(
    xs: _Axis, ys: _Axis, size: Size, least: float, tissue: TissueMask | None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return index and tissue fraction of the kept tiles, a few lattice rows at a time."""
    rows, columns = len(ys.start), len(xs.start)
    if tissue is None:
        index = np.stack(np.divmod(np.arange(rows * columns), columns)[::-1], axis=1)
        return index, np.ones(len(index))
    x, right = xs.start, np.minimum(xs.start + xs.tile, size[0])
    kept: list[NDArray[np.int64]] = []
    fractions: list[NDArray[np.float64]] = []
    step = max(1, _CHUNK // columns)
    for top in range(0, rows, step):
        row, column = np.divmod(np.arange(min(step, rows - top) * columns), columns)
        row += top
        y, bottom = ys.start[row], np.minimum(ys.start[row] + ys.tile, size[1])
        fraction = tissue.fraction(_boxes(x[column], y, right[column] - x[column], bottom - y))
        # 1e-9: a tile with exactly the requested fraction must not fail by the rounding of a sum.
        keep = np.flatnonzero(fraction >= least - 1e-9)
        kept.append(np.stack([column[keep], row[keep]], axis=1))
        fractions.append(fraction[keep])
    return np.concatenate(kept), np.concatenate(fractions)


def _boxes(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    w: NDArray[np.float64] | float,
    h: NDArray[np.float64] | float,
) -> NDArray[np.float64]:
    out = np.empty((len(x), 4))
    for i, part in enumerate((x, y, w, h)):
        out[:, i] = part
    return out
