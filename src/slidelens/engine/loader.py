"""What a model sees of a slide: grids over its tissue, and tiles read ahead of the model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from math import isclose
from threading import Lock
from time import perf_counter, thread_time
from typing import TYPE_CHECKING, Self
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from slidelens.engine.read_ahead import Busy, ReadAhead, Reading
from slidelens.errors import SlideError
from slidelens.geometry import Box, Mpp, Size
from slidelens.settings import get_settings
from slidelens.tiling.grid import Grid, GridSpec, make_grid
from slidelens.tiling.stain import StainNormalizer, slide_stains
from slidelens.tiling.tissue import TissueMask, TissueSettings, tissue_mask

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from numpy.typing import NDArray

    from slidelens.families.base import Bag, Batch
    from slidelens.slide.base import Slide
    from slidelens.tiling.stain import StainMethod

__all__ = ["SlideView", "find_tissue", "timed_tissue"]

_AHEAD_BYTES = 128 << 20
"""Tiles read ahead of the model take at most this (or one batch, if that is larger)."""
_TURN_BYTES = 256 * 224 * 224 * 3
"""Tiles that are read before a CPU computes take about so much: each change costs both."""
_CPU_BYTES = 8 * 224 * 224 * 3
"""A batch on a CPU has at most so many pixels: feature maps of more are over 32 MB, which glibc
takes from the system and gives back each time; the page faults cost a quarter of a run's time."""
_GPU_BYTES, _GPU_FREE = 256 * 224 * 224 * 3, 8 << 30
"""A batch on a GPU with so much free memory has at least so many pixels. A pass starts some hundred
kernels, and while it does, for 5 ms, it holds Python's lock and the readers stand still; a GPU is
done with hundreds of tiles in that time."""
_SOME = 16
"""Tiles that a thread reads in a row, at most: handing them out one by one, and waiting for each,
takes the interpreter's lock from those that read."""
_RUN_BYTES = _SOME * 224 * 224 * 3
"""Neighbours that are read as one box take at most so much."""
_WHERE = 1e-4
"""Level-0 px: closer places are one, but for the rounding of floats."""

_Found = tuple[Lock, dict[TissueSettings, tuple[TissueMask, float]]]
_masks: WeakKeyDictionary[Slide, _Found] = WeakKeyDictionary()
_masks_lock = Lock()


def find_tissue(slide: Slide, settings: TissueSettings) -> TissueMask:
    """Return a slide's tissue mask; it is computed once for as long as the slide lives."""
    return timed_tissue(slide, settings)[0]


def timed_tissue(slide: Slide, settings: TissueSettings) -> tuple[TissueMask, float]:
    """Return a slide's tissue mask and the seconds that finding it took, whenever that was."""
    with _masks_lock:
        lock, found = _masks.setdefault(slide, (Lock(), {}))
    with lock:  # of this slide: a second thread that asks for it waits instead of computing again
        if settings not in found:
            start = perf_counter()
            mask = tissue_mask(slide, settings)
            found[settings] = mask, perf_counter() - start
        return found[settings]


class SlideView:
    """The :class:`~slidelens.families.base.View` of a slide; close it to stop its readers.

    Parameters
    ----------
    slide
        Open; stays open when the view is closed.
    tissue
        How to find tissue, or a mask that was found before.
    region
        Part of the slide to run on, in level-0 px; ``None`` is all of it.
    device
        Where batches are put.
    batch_size
        Overrides what the model asks for, of which a CPU gets no more than suits it and a GPU with
        8 GiB of free memory no less.
    threads
        Reader threads; ``None`` takes ``SLIDELENS_THREADS`` or one per core, 2 to 8.
    stain
        Stain normalisation of every pixel that is read: a method, for which the slide's stains are
        estimated here, or a normaliser that was made before.
    bag
        Feature vectors of the slide's tiles that were made elsewhere.

    Raises
    ------
    MissingMppError
        The slide has no resolution.
    SlideError
        A region outside the slide; no tissue to estimate stains from.
    """

    def __init__(
        self,
        slide: Slide,
        *,
        tissue: TissueSettings | TissueMask | None = None,
        region: Box | None = None,
        device: torch.device | None = None,
        batch_size: int | None = None,
        threads: int | None = None,
        stain: StainMethod | StainNormalizer = "none",
        bag: Bag | None = None,
    ) -> None:
        self.slide, self.bag = slide, bag
        self.name = slide.id
        self.size: Size = slide.size
        self.mpp: Mpp = slide.require_mpp()
        whole = Box.of_size(slide.size)
        self.region: Box = whole if region is None else region.intersect(whole)
        if self.region.area == 0:
            raise SlideError(
                f"{slide.path}: region {tuple(region or ())} lies outside the slide, which is "
                f"{slide.size.width} x {slide.size.height} px."
            )
        self.device = device or torch.device("cpu")
        self.batch_size = batch_size
        self.grids: list[Grid] = []
        self.steps = 0
        self.done = 0
        self.batch_in_use = 0
        self.waited = 0.0
        """Seconds that the model waited for tiles."""
        self.tissue_seconds = 0.0
        """Seconds that finding the tissue took, also where that was done before."""
        self._tissue = tissue or TissueSettings()
        self.normalizer: StainNormalizer | None = None
        if isinstance(stain, StainNormalizer):
            self.normalizer = stain
        elif stain == "macenko":
            self.normalizer = StainNormalizer(slide_stains(slide, self.tissue))
        self._threads = threads or get_settings().reader_threads
        self._readers = ThreadPoolExecutor(self._threads, thread_name_prefix="slidelens-read")
        self._copies: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            self._copies = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop what is still to be read and wait for the readers to stop."""
        self._readers.shutdown(wait=True, cancel_futures=True)

    @property
    def readers(self) -> int:
        """Number of threads that read."""
        return self._threads

    @property
    def tissue(self) -> TissueMask:
        """Tissue of the whole slide (not only the region), found at the first use and kept."""
        if isinstance(self._tissue, TissueSettings):
            self._tissue, self.tissue_seconds = timed_tissue(self.slide, self._tissue)
        return self._tissue

    def read(self, box: Box, mpp: float) -> NDArray[np.uint8]:
        """Read any box (level-0 px) at any resolution: ``(H, W, 3)`` uint8 RGB, white outside."""
        pixels = self.slide.read(box, mpp)
        return pixels if self.normalizer is None else self.normalizer(pixels)

    def grid(self, spec: GridSpec) -> Grid:
        """Lay a grid over the region's tissue; the run records it in :attr:`grids`."""
        grid = make_grid(self.size, self.mpp, spec, tissue=self.tissue, region=self.region)
        self.grids.append(grid)
        return grid

    def total(self, steps: int) -> None:
        """Say how many tiles (or other steps) the run has in all, for progress."""
        self.steps = steps

    def step(self, n: int = 1) -> None:
        """Say that ``n`` more of them are done."""
        self.done += n

    def batches(self, grid: Grid, batch_size: int) -> Iterator[Batch]:
        """Read all tiles of a grid, ahead of the model, in the grid's order, from now on.

        Only so much is read ahead that memory stays flat on any slide. Closing the iterator, once
        it has begun, or the view cancels what is still to be read.

        Yields
        ------
        Batch
            ``images`` is ``(N, 3, tile, tile)`` uint8, channels-last in memory, on the device.

        Raises
        ------
        SlideError
            A tile that cannot be read, naming slide and place.
        """
        tile = _batch_bytes(grid, 1)
        self.batch_in_use = size = self.batch_size or suited_batch(self.device, batch_size, tile)
        readings = (
            self._begin(grid, slice(start, start + size)) for start in range(0, len(grid), size)
        )
        batch = _batch_bytes(grid, size)
        most = max(1, _AHEAD_BYTES // batch)
        some = min(2 + 2 * self._threads // size, most)
        turn = min(_TURN_BYTES // batch, most) if self.device.type == "cpu" else 0
        ahead = ReadAhead(
            readings,
            first=some,
            ahead=max(some, turn),
            readers=self._threads,
            device=self.device,
            copies=self._copies,
            waited=self._add_wait,
        )
        return iter(ahead)

    def _add_wait(self, seconds: float) -> None:
        self.waited += seconds

    def _begin(self, grid: Grid, tiles: slice) -> Reading:
        boxes = grid.boxes[tiles]
        shape = (len(boxes), grid.spec.tile, grid.spec.tile, 3)
        # Pinned memory comes from torch's cache, which reuses a block only after its copy is done.
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=self._copies is not None)
        rows = images.numpy()
        reading = Reading(boxes, images)
        some = min(max(len(boxes) // (2 * self._threads), 1), _SOME)
        for start in range(0, len(boxes), some):
            part = slice(start, start + some)
            reading.parts.append(
                self._readers.submit(self._read_some, reading, part, grid.spec, rows[part])
            )
        return reading

    def _read_some(
        self, reading: Reading, part: slice, spec: GridSpec, images: NDArray[np.uint8]
    ) -> Busy:
        began, busy = perf_counter(), thread_time()
        boxes = reading.boxes[part]
        for run in _runs(boxes, spec, self._neighbours(spec, images[0].nbytes)):
            if reading.cancelled:
                break
            self._read_run(boxes[run], spec, images[run])
        return Busy(perf_counter() - began, thread_time() - busy)

    def _read_run(
        self, boxes: NDArray[np.float64], spec: GridSpec, images: NDArray[np.uint8]
    ) -> None:
        """Read neighbours of one row as one box: a stored tile is copied once, not to each."""
        (x, y, _, h), (last, _, w, _) = boxes[0].tolist(), boxes[-1].tolist()
        try:
            pixels = self.read(Box(x, y, last + w - x, h), spec.mpp)
            columns = sliding_window_view(pixels, spec.tile, axis=1)[:, :: spec.stride]
            images[...] = columns.transpose(1, 0, 3, 2)
        except Exception as error:  # reason: any backend's error must name slide and place
            if len(boxes) > 1:  # which of them cannot be read?
                for n in range(len(boxes)):
                    self._read_run(boxes[n : n + 1], spec, images[n : n + 1])
                return
            raise SlideError(
                f"{self.slide.path}: cannot read the tile at x={x:.0f}, y={y:.0f} "
                f"({w:.0f} x {h:.0f} px, level 0): {error}"
            ) from error

    def _neighbours(self, spec: GridSpec, tile_bytes: int) -> int:
        """Return how many tiles are read as one box: of stored pixels alone.

        Where pixels are resampled or normalised, what comes in between is many times as large.
        """
        stored = any(
            all(isclose(level.downsample * own, spec.mpp) for own in self.mpp)
            for level in self.slide.levels
        )
        return max(1, _RUN_BYTES // tile_bytes) if stored and self.normalizer is None else 1


def suited_batch(device: torch.device, asked: int, tile_bytes: int) -> int:
    """Return how many tiles at a time suit a device, where a model asks for so many.

    While gradients are on it is never more: the graph of so many takes ten times their memory.
    """
    if device.type == "cpu":
        return max(1, min(asked, _CPU_BYTES // tile_bytes))
    if torch.is_grad_enabled() or device.type != "cuda":
        return asked
    if torch.cuda.mem_get_info(device)[0] >= _GPU_FREE:
        return max(asked, _GPU_BYTES // tile_bytes)
    return asked


def _runs(boxes: NDArray[np.float64], spec: GridSpec, most: int) -> Iterator[slice]:
    """Cut tiles, ``(N, 4)`` boxes, where the next is not the right neighbour."""
    steps = np.diff(boxes, axis=0)
    steps[:, 0] -= boxes[:-1, 2] * spec.stride / spec.tile
    apart = (np.abs(steps) > _WHERE).any(axis=1)
    starts = [0, *(np.flatnonzero(apart) + 1).tolist(), len(boxes)]
    for start, stop in pairwise(starts):
        for first in range(start, stop, most):
            yield slice(first, min(first + most, stop))


def _batch_bytes(grid: Grid, size: int) -> int:
    return size * grid.spec.tile**2 * 3
