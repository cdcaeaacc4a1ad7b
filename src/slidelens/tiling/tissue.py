"""Tissue masks at low resolution, with every parameter in µm."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from slidelens.geometry import Affine, Box, Mpp, Size
from slidelens.tiling.box_sums import BoxSums, split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from slidelens.slide.base import Level

__all__ = ["Method", "TissueMask", "TissueSettings", "tissue_mask"]

Method = Literal["auto", "stain", "otsu", "intensity", "whole"]

_STRIP_PX = 4_000_000
"""Native pixels read at once: bounds memory at about 12 MB for any slide."""

_BAND = 128
"""Rows of a mask that are summed at once: bounds memory on slides of gigapixels."""


class TissueSettings(BaseModel):
    """How tissue is found. All lengths in µm, areas in µm²."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method = Field(
        default="auto",
        description="stain: colour of any stain against the slide's own white; otsu: darkness; "
        "intensity: brightness on a dark background (fluorescence); whole: everything; "
        "auto: stain, or intensity where the background is dark",
    )
    mpp: float = Field(default=8.0, gt=0, description="µm per cell of the mask")
    min_area: float = Field(default=10_000.0, ge=0, description="smaller specks are dropped, µm²")
    max_hole: float = Field(default=60_000.0, ge=0, description="smaller holes are filled, µm²")
    closing: float = Field(
        default=24.0, ge=0, description="gaps up to twice this wide are closed, µm"
    )
    pen: bool = Field(default=True, description="leave out pen ink (blue, green, red, black)")


class _Readable(Protocol):
    """What a mask needs from a slide; :class:`slidelens.slide.base.Slide` has it."""

    @property
    def size(self) -> Size: ...
    @property
    def levels(self) -> Sequence[Level]: ...
    def require_mpp(self) -> Mpp: ...
    def read(self, box: Box, mpp: float | None = None) -> NDArray[np.uint8]: ...


@dataclass(frozen=True, eq=False)
class TissueMask:
    """Tissue of one slide.

    Attributes
    ----------
    array
        ``(h, w)`` bool, True on tissue; in other types, anything but 0 is tissue.
    affine
        Cell of ``array`` to level-0 px.
    settings
        As used: ``method`` names the method that was applied, never ``"auto"``.
    """

    array: NDArray[np.bool_]
    affine: Affine
    settings: TissueSettings = field(default_factory=TissueSettings)

    def __post_init__(self) -> None:
        array = np.asarray(self.array)
        if array.ndim != 2 or not array.size:
            raise ValueError(f"a tissue mask is (h, w), of one cell or more, not {array.shape}")
        # Sums take the cells as 0 and 1: 255, or 0.5, would give other shares of tissue.
        object.__setattr__(self, "array", array if array.dtype == bool else array != 0)
        # Plain numbers, as results store them; NumPy's would do as well.
        object.__setattr__(self, "affine", Affine(*map(float, self.affine)))

    def __repr__(self) -> str:
        height, width = self.array.shape
        share = f"{self.array.mean():.0%} tissue"
        return f"<TissueMask: {width} x {height} cells, {share}, method {self.settings.method}>"

    def fraction(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Measure the share of each box that is tissue, exactly (cells count by covered area).

        Parameters
        ----------
        boxes
            ``(N, 4)`` x, y, w, h in level-0 px. Parts outside the mask are not tissue.

        Returns
        -------
        ndarray
            ``(N,)`` float64 in 0..1; 0 for a box without area.
        """
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        low = self.affine.invert(boxes[:, :2])
        high = self.affine.invert(boxes[:, :2] + boxes[:, 2:])
        area = np.prod(high - low, axis=1)
        height, width = self.array.shape
        low, high = low.clip(0, (width, height)), high.clip(0, (width, height))
        edges, covered = np.concatenate([low, high], axis=1), np.empty(len(boxes))
        band = np.minimum(low[:, 1].astype(np.intp), height - 1) // _BAND * _BAND
        for top in np.unique(band):  # a box's sums depend on no other box
            mine = band == top
            within = edges[mine] - (0, top, 0, top)
            rows = self.array[top : top + max(1, int(np.ceil(within[:, 3].max())))]
            sums = BoxSums(within, rows.shape)
            covered[mine] = sums(_table(rows, sums.lines))
        share = np.divide(covered, area, out=np.zeros(len(area)), where=area > 0)
        return np.asarray(np.clip(share, 0.0, 1.0))

    def of_lattice(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Measure the tissue of the cells between lines, exactly, in one pass over the mask.

        Parameters
        ----------
        x, y
            ``(n + 1,)`` and ``(m + 1,)`` positions of the lines in level-0 px, in rising order.

        Returns
        -------
        ndarray
            ``(m, n)`` float64, in cells of the mask. Parts outside the mask are not tissue.
        """
        height, width = self.array.shape
        columns = ((x - self.affine.tx) / self.affine.sx).clip(0, width)
        bands = self._bands(((y - self.affine.ty) / self.affine.sy).clip(0, height))
        at, part = split(columns, width)
        upto = np.zeros((len(bands), width + 1))
        np.cumsum(bands, axis=1, out=upto[:, 1:])
        return np.diff(upto[:, at] + part * bands[:, at], axis=1)

    def _bands(self, lines: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum the rows between lines ``(m + 1,)``, which cut rows in parts: ``(m, width)``."""
        rows = self.array.view(np.uint8)
        at, part = split(lines, len(rows))
        kind = np.uint8 if np.diff(at).max() < 256 else np.int32
        sums = np.empty((len(at) - 1, rows.shape[1]), kind)
        for start, stop, line in zip(at, at[1:], sums, strict=False):  # 25 times np.add.reduceat
            np.add.reduce(rows[start:stop], axis=0, dtype=kind, out=line)
        cut = part[:, None] * rows[at]
        return np.asarray(sums + np.diff(cut, axis=0))

    def area_mm2(self, mpp: Mpp) -> float:
        """Return the area of all tissue in mm², for a slide of ``mpp`` µm/px."""
        cell = self.affine.sx * mpp.x * self.affine.sy * mpp.y
        return float(np.count_nonzero(self.array)) * cell / 1e6


def _table(array: NDArray[np.bool_], lines: NDArray[np.intp]) -> NDArray[np.int32]:
    """Return some lines of an integral image, for :class:`BoxSums`."""
    total = np.zeros((len(lines), array.shape[1] + 1), np.int32)
    rows, above = array.view(np.uint8), 0
    for number, line in enumerate(lines.tolist()):
        kind = np.uint8 if line - above < 256 else np.int32
        total[number, 1:] = np.add.reduce(rows[above:line], axis=0, dtype=kind)
        if number:
            total[number] += total[number - 1]
        above = line
    np.cumsum(total, axis=1, out=total)
    return total


def tissue_mask(slide: _Readable, settings: TissueSettings | None = None) -> TissueMask:
    """Find the tissue of a slide from a low-resolution reading, in bounded memory.

    A blank slide gives an empty mask; a slide, or crop, that is all tissue gives a full one: Otsu's
    method seeks thresholds only between bounds that hold for any slide, so no image is cut in half
    for lack of background. Specks of more than a hundredth of the slide's area are kept whatever
    ``min_area`` says, so that small crops work.

    Parameters
    ----------
    slide
        An open slide with a known resolution.
    settings
        See :class:`TissueSettings`.

    Raises
    ------
    MissingMppError
        The slide states no resolution.
    """
    from slidelens.tiling.thresholds import classify, clean

    settings = TissueSettings() if settings is None else settings
    mpp = slide.require_mpp()
    # Never finer than the slide itself; a slide of only a few cells gets finer ones.
    cell = max(min(settings.mpp, min(slide.size[0] * mpp.x, slide.size[1] * mpp.y) / 16), *mpp)
    affine = Affine(cell / mpp.x, cell / mpp.y)
    if settings.method == "whole":
        width, height = _cover(slide.size, affine)
        return TissueMask(np.ones((height, width), bool), affine, settings)
    image = _overview(slide, cell, affine)
    method, raw = classify(image, settings.method, settings.pen, cell)
    del image  # three bytes per cell: gigapixels make many
    whole = slide.size[0] * mpp.x * slide.size[1] * mpp.y
    mask = clean(
        raw,
        radius=settings.closing / cell,
        min_cells=min(settings.min_area, whole / 100) / cell**2,
        max_hole_cells=settings.max_hole / cell**2,
    )
    return TissueMask(mask, affine, settings.model_copy(update={"method": method}))


def _overview(slide: _Readable, cell: float, affine: Affine) -> NDArray[np.uint8]:
    """Read the whole slide at ``cell`` µm/px in strips, ``(h, w, 3)``.

    Cells that extend beyond the border repeat their neighbour: averaged with the white outside,
    they would look like faint tissue, or like light on a dark slide.
    """
    width, height = (max(1, int(n / s + 1e-6)) for n, s in zip(slide.size, affine[:2], strict=True))
    # A strip costs the pixels of the finest level that it may be read from.
    stored = max(lv.downsample for lv in slide.levels if lv.downsample <= max(1.0, *affine[:2]))
    row_px = max(1.0, slide.size[0] / stored * affine.sy / stored)
    step = max(1, int(_STRIP_PX / row_px))
    image = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, step):
        rows = min(step, height - top)
        image[top : top + rows] = slide.read(affine.box(0, top, width, rows), cell)
    cover = _cover(slide.size, affine)
    pad = [(0, cover[1] - height), (0, cover[0] - width), (0, 0)]
    return np.pad(image, pad, mode="edge")


def _cover(size: Size, affine: Affine) -> tuple[int, int]:
    """Return columns and rows of cells that cover the slide."""
    width, height = (
        max(1, int(np.ceil(n / s - 1e-6))) for n, s in zip(size, affine[:2], strict=True)
    )
    return width, height
