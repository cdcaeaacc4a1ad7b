"""A slide's tissue as one image at a model's resolution, read piece by piece."""

from __future__ import annotations

import logging
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import torch

from slidelens.errors import SlideError
from slidelens.geometry import Affine, Box
from slidelens.settings import get_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from numpy.typing import NDArray

    from slidelens.families.base import View
    from slidelens.nn.receptive import ReceptiveField

__all__ = ["Frame", "SlideImage", "check_tissue", "frame_tissue", "tissue_cells"]

log = logging.getLogger(__name__)

_STRIP = 1024
_PIECE = 512
"""Rows that a thread reads at once: as many as a few tiles of a file have."""
_LEAST = 3
"""Cells of a frame along each side, at least."""
_SPECK = 1e-6
"""Share of a cell below which its tissue is the rounding of a float."""


@dataclass(frozen=True)
class Frame:
    """The part of a slide that a model reads as one image.

    Attributes
    ----------
    height, width
        Size of the image in px: whole cells of the network's feature map.
    mpp
        µm per px of the image.
    place
        Transform from image px to level-0 px.
    cells
        Transform from cells of the feature map, each centred on its receptive field, to level-0 px.
    mask
        ``(rows, columns)`` bool: the cells with tissue inside the region.
    blocks
        The same for blocks of image pixels, which are offset from the cells.
    """

    height: int
    width: int
    mpp: float
    place: Affine
    cells: Affine
    mask: NDArray[np.bool_]
    blocks: NDArray[np.bool_]


class SlideImage:
    """The pixels of a frame, read from the slide on demand, or from memory after `load`.

    Parameters
    ----------
    read
        ``read(box, mpp)`` of the slide's view.
    frame
        Which part.
    """

    def __init__(self, read: Callable[[Box, float], NDArray[np.uint8]], frame: Frame) -> None:
        self.frame = frame
        self.shape = (frame.height, frame.width, 3)
        self._read = read
        self._pixels: NDArray[np.uint8] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels."""
        return self.frame.height * self.frame.width * 3

    def load(self) -> None:
        """Keep all pixels in memory."""
        if self._pixels is None:
            pixels = np.empty(self.shape, np.uint8)
            for top in range(0, self.frame.height, _STRIP):
                self._fill(top, pixels[top : top + _STRIP])
            self._pixels = pixels

    def onto(self, device: torch.device) -> Generator[float, None, torch.Tensor]:
        """Read all pixels onto a device; several threads read, so that a GPU need not wait.

        Yields
        ------
        float
            Share of the pixels read so far. Closing the generator stops the threads.

        Returns
        -------
        ``(1, 3, height, width)`` uint8, channels last in memory.
        """
        pixels = torch.empty(self.shape, dtype=torch.uint8, device=device)
        threads = get_settings().reader_threads
        pending: deque[tuple[int, torch.Tensor, Future[None]]] = deque()
        readers = ThreadPoolExecutor(threads, thread_name_prefix="slidelens-read")
        starts = iter(range(0, self.frame.height, _PIECE))
        try:
            while True:
                for top in islice(starts, threads + 1 - len(pending)):
                    piece = self._room(top, pinned=device.type == "cuda")
                    pending.append((top, piece, readers.submit(self._fill, top, piece.numpy())))
                if not pending:
                    return pixels.permute(2, 0, 1)[None]
                top, piece, filled = pending.popleft()
                filled.result()
                pixels[top : top + len(piece)].copy_(piece, non_blocking=True)
                yield (top + len(piece)) / self.frame.height
        finally:
            readers.shutdown(wait=True, cancel_futures=True)

    def _room(self, top: int, *, pinned: bool) -> torch.Tensor:
        """Return memory for the rows from ``top`` on.

        Pinned, it comes from torch's cache, which reuses a block only after its copy is done.
        """
        rows = min(_PIECE, self.frame.height - top)
        return torch.empty((rows, *self.shape[1:]), dtype=torch.uint8, pin_memory=pinned)

    def _fill(self, top: int, rows: NDArray[np.uint8]) -> None:
        rows[...] = self.read(Box(0, top, self.frame.width, len(rows)))

    def read(self, box: Box) -> NDArray[np.uint8]:
        """Pixels ``(h, w, 3)`` of a box in whole pixels of the image."""
        x, y, w, h = (int(v) for v in box)
        if self._pixels is not None:
            return self._pixels[y : y + h, x : x + w]
        return self._read(self.frame.place.box(x, y, w, h), self.frame.mpp)


def frame_tissue(
    view: View,
    mpp: float,
    field: tuple[ReceptiveField, ReceptiveField],
    lost: tuple[int, int],
    limit: int,
) -> Frame:
    """Frame the tissue of a view: its bounding box, at least three cells and at most ``limit`` px.

    There is no margin: windows of cells are counted from the frame's corner, and would be aligned
    differently on tissue at the slide's border and on tissue in glass. The frame lies on a lattice
    of whole cells from the slide's corner, so that the same tissue has the same pixels in any
    region. Larger tissue is cropped to its centre, which is logged (paper, section IV.A: "padded or
    center-cropped"; 99 % of its biopsies fitted).

    Parameters
    ----------
    view
        The view; tissue outside its region does not count.
    mpp
        Resolution of the image in µm/px.
    field
        Receptive field of a cell along y and x, in px of the image.
    lost
        Cells along y and x that the feature map is smaller than the image; the frame extends so
        much beyond the tissue.
    limit
        Largest side of the image in px.

    Raises
    ------
    SlideError
        No tissue.
    """
    (y_field, x_field), (mpp_x, mpp_y) = field, view.mpp
    scale = Affine(mpp / mpp_x, mpp / mpp_y)
    lattice = Affine(scale.sx * x_field.stride, scale.sy * y_field.stride)
    shape = (ceil(view.size.height / lattice.sy), ceil(view.size.width / lattice.sx))
    found = tissue_cells(view, lattice, shape)
    if not found.any():
        raise _nothing_found()
    spans = [np.flatnonzero(found.any(1 - axis)) for axis in (0, 1)]
    most = [max(limit // f.stride, 1 + n) for f, n in zip(field, lost, strict=True)]
    (top, rows), (left, columns) = map(_span, spans, most, lost)
    if rows - lost[0] < np.ptp(spans[0]) + 1 or columns - lost[1] < np.ptp(spans[1]) + 1:
        log.warning(
            "%s: the tissue is larger than %d px at %g µm/px: only its middle is "
            "seen; give the model a larger size", view.name, limit, mpp,
        )  # fmt: skip
    cells = Affine(lattice.sx, lattice.sy, left * lattice.sx, top * lattice.sy)
    # A cell sees around the centre of its receptive field: the image is shifted so that this is
    # the cell's own centre.
    start = (left * x_field.stride - _off_centre(x_field)) * scale.sx
    place = Affine(
        scale.sx, scale.sy, start, (top * y_field.stride - _off_centre(y_field)) * scale.sy
    )
    blocks = Affine(lattice.sx, lattice.sy, place.tx, place.ty)
    return Frame(
        height=rows * y_field.stride,
        width=columns * x_field.stride,
        mpp=mpp,
        place=place,
        cells=cells,
        mask=_part(found, top, left, rows, columns),
        blocks=tissue_cells(view, blocks, (rows, columns)),
    )


def check_tissue(view: View) -> None:
    """Refuse a slide that a model would look at although there is nothing to see.

    Parameters
    ----------
    view
        The view; tissue outside its region does not count.

    Raises
    ------
    SlideError
        No tissue.
    """
    region = view.region
    x, y = np.array([region.x, region.right]), np.array([region.y, region.bottom])
    if view.tissue.of_lattice(x, y).item() <= _SPECK:
        raise _nothing_found()


def _nothing_found() -> SlideError:
    return SlideError(
        "no tissue was found to look at; where there is some, give a larger --region, or none, "
        "or --tissue whole, which looks anywhere (in MagNet's training --slide-tissue whole)."
    )


def tissue_cells(view: View, cells: Affine, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which of ``shape`` (rows, columns) cells have tissue in the view's region."""
    region = view.region
    low, high = region[:2], (region.right, region.bottom)
    x = (cells.tx + cells.sx * np.arange(shape[1] + 1)).clip(low[0], high[0])
    y = (cells.ty + cells.sy * np.arange(shape[0] + 1)).clip(low[1], high[1])
    found = view.tissue.of_lattice(x, y)
    area = cells.sx * cells.sy / (view.tissue.affine.sx * view.tissue.affine.sy)
    return found > _SPECK * area


def _part(
    found: NDArray[np.bool_], top: int, left: int, rows: int, columns: int
) -> NDArray[np.bool_]:
    """Return a part of an array that may extend beyond it; False there."""
    part = np.zeros((rows, columns), bool)
    into = part[max(-top, 0) :, max(-left, 0) :]
    inside = found[max(top, 0) : top + rows, max(left, 0) : left + columns]
    into[: inside.shape[0], : inside.shape[1]] = inside
    return part


def _span(where: NDArray[np.int64], most: int, lost: int) -> tuple[int, int]:
    """Return start and length of the span of some positions, cropped to the middle ``most``.

    The length includes ``lost`` after them.
    """
    start, least, most = int(where[0]), _LEAST - lost, most - lost
    length = int(where[-1]) + 1 - start
    if length < least:
        start, length = start - (least - length) // 2, least
    if length > most:
        start, length = start + (length - most) // 2, most
    return start, length + lost


def _off_centre(field: ReceptiveField) -> int:
    """Offset in px from a cell's centre to the centre of its receptive field, rounded."""
    return round((field.first + field.last) / 2 - (field.stride - 1) / 2)
