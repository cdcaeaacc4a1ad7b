"""The slides of a training run, opened when needed, with a cache of decoded tiles."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Condition
from typing import TYPE_CHECKING

import numpy as np
import torch

from slidelens.engine.bags import BagCache, bags_folder, read_bag
from slidelens.engine.detail import check_detail
from slidelens.engine.loader import SlideView
from slidelens.errors import LabelError
from slidelens.families.base import Batch
from slidelens.slide.bounds import in_qupath
from slidelens.slide.open import open_slide
from slidelens.tiling.annotations import Annotations, read_annotations
from slidelens.tiling.tissue import TissueSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from slidelens.families.base import Bag, FamilyConfig
    from slidelens.families.training import Encoding, Sample
    from slidelens.geometry import Box
    from slidelens.slide.base import Slide
    from slidelens.slide.open import GivenMpp
    from slidelens.tiling.grid import Grid, GridSpec
    from slidelens.tiling.stain import StainMethod, StainNormalizer

__all__ = ["TrainSlides"]

log = logging.getLogger(__name__)

_OPEN = 16
"""Slides open at once; each has file handles and reader threads."""
_REMEDY = (
    "Train at a coarser resolution (--mpp X), or, if the slide states a wrong one, give the right "
    "one with --slide-mpp X."
)


class TrainSlides:
    """The :class:`~slidelens.families.training.TrainData` of a run.

    Parameters
    ----------
    train, tune
        Labelled slides of the two splits.
    files
        Slide id to path.
    device
        Device for the tiles.
    cache_bytes
        Memory for decoded tiles. A slide is kept whole or not at all, and never evicted: an epoch
        visits all slides in turn, so eviction would drop those needed next.
    mpp
        As for :func:`~slidelens.slide.open.open_slide`.
    stain
        Stain normalisation, as for :class:`~slidelens.engine.loader.SlideView`.
    annotations
        Slide id to the file of its annotations, of the slides that have one.
    config
        The model's configuration; slides far coarser than its resolution are refused.
    tissue
        How it is found.
    """

    def __init__(
        self,
        train: Sequence[Sample],
        tune: Sequence[Sample],
        files: Mapping[str, Path],
        *,
        device: torch.device,
        cache_bytes: int,
        mpp: GivenMpp = None,
        stain: StainMethod = "none",
        annotations: Mapping[str, Path] | None = None,
        config: FamilyConfig | None = None,
        tissue: TissueSettings | None = None,
    ) -> None:
        self.train = tuple(train)
        self.tune = tuple(tune)
        self._files = files
        self._device = device
        self._mpp = mpp
        self._stain = stain
        self._normalizers: dict[str, StainNormalizer] = {}
        self._tiles = _TileStore(cache_bytes)
        self._grids: dict[tuple[str, GridSpec], Grid] = {}
        self._open: OrderedDict[str, _TrainView] = OrderedDict()
        self._annotations = annotations or {}
        self._bags: dict[Path, BagCache] = {}
        self._config = config
        self._tissue = tissue or TissueSettings()
        self._fine_enough: set[str] = set()
        self._coarse: set[tuple[float, float]] = set()
        self._warned = False

    def bag(self, slide_id: str, spec: GridSpec, encoder: Encoding) -> Bag:
        """Return a slide's feature vectors from the cache; encode its tiles on first use.

        Raises
        ------
        SlideError, ResultError
            See :meth:`~slidelens.engine.bags.BagCache.get`.
        """
        place = Path(encoder.place) if encoder.place else bags_folder()
        cache = self._bags.setdefault(place, BagCache(place))
        return cache.get(
            slide_id,
            lambda: self.view(slide_id),
            spec,
            encoder,
            tissue=self._tissue,
            stain=self._stain,
        )

    def given_bag(self, slide_id: str) -> Bag:
        """Read a precomputed bag, in a run whose files are bags.

        Raises
        ------
        SlideError
            The file is not a bag.
        """
        return read_bag(self._file(slide_id))

    def annotations(self, slide_id: str) -> Annotations:
        """Read the annotations of a slide; empty if it has no file.

        Raises
        ------
        LabelError
            A file that cannot be read.
        """
        path = self._annotations.get(slide_id)
        return Annotations() if path is None else read_annotations(path)

    def view(self, slide_id: str) -> _TrainView:
        """Return the view of a slide, opening it if necessary.

        This may close the least recently used view; its holders can still read boxes from it.

        Raises
        ------
        SlideError
            The slide cannot be opened, has no resolution, or is far too coarse.
        """
        if slide_id in self._open:
            self._open.move_to_end(slide_id)
            return self._open[slide_id]
        slide = open_slide(self._file(slide_id), mpp=self._mpp)
        try:
            self._check_detail(slide_id, slide)
            self._warn_of_bounds(slide_id, slide)
            stain = self._normalizers.get(slide_id, self._stain)
            again = partial(open_slide, self._files[slide_id], mpp=self._mpp)
            view = _TrainView(
                *(slide, again, slide_id, self._tiles, self._grids, self._device, stain),
                self._tissue,
            )
        except BaseException:
            slide.close()
            raise
        if view.normalizer is not None:
            self._normalizers[slide_id] = view.normalizer
        self._open[slide_id] = view
        while len(self._open) > _OPEN:
            self._open.popitem(last=False)[1].close()
        return view

    def _file(self, slide_id: str) -> Path:
        if slide_id not in self._files:
            raise LabelError(
                f"no slide {slide_id!r} is trained on: a work must name those of data.train and "
                "data.tune."
            )
        return self._files[slide_id]

    def _check_detail(self, slide_id: str, slide: Slide) -> None:
        """Refuse a slide that is far too coarse; warn once for each coarse resolution."""
        if self._config is not None and slide_id not in self._fine_enough:
            check_detail(slide, self._config, "the model", _REMEDY, said=self._coarse)
            self._fine_enough.add(slide_id)

    def _warn_of_bounds(self, slide_id: str, slide: Slide) -> None:
        """Warn, of the first such slide, that annotations of QuPath may be displaced."""
        if slide.bounds is not None and slide_id in self._annotations and not self._warned:
            self._warned = True
            log.warning(
                "%s: its annotations are displaced if they were drawn in QuPath on the scanned "
                "part alone: %s (other slides are not named)",
                *(slide_id, in_qupath(slide.bounds)),
            )

    def close(self) -> None:
        """Close all slides."""
        while self._open:
            self._open.popitem()[1].close()


class _TrainView(SlideView):
    """A slide's view that computes its grid once and reads each tile once, if memory allows.

    It may be closed while threads read from it: closing waits for current reads, and later reads
    open the slide again with ``open_again``.
    """

    def __init__(
        self,
        slide: Slide,
        open_again: Callable[[], Slide],
        slide_id: str,
        tiles: _TileStore,
        grids: dict[tuple[str, GridSpec], Grid],
        device: torch.device,
        stain: StainMethod | StainNormalizer,
        tissue: TissueSettings,
    ) -> None:
        super().__init__(slide, tissue=tissue, device=device, stain=stain)
        self._id = slide_id
        self._tiles = tiles
        self._found = grids
        self._open_again = open_again
        self._reads = Condition()
        self._reading, self._closed = 0, False

    def close(self) -> None:
        super().close()
        with self._reads:
            self._closed = True
            self._reads.wait_for(lambda: self._reading == 0)
        self.slide.close()

    def read(self, box: Box, mpp: float) -> NDArray[np.uint8]:
        """Read any box as :class:`SlideView` does, from any thread, even if the view is closed."""
        with self._reads:
            closed = self._closed
            self._reading += not closed
        if closed:
            with self._open_again() as slide:
                pixels = slide.read(box, mpp)
            return pixels if self.normalizer is None else self.normalizer(pixels)
        try:
            return super().read(box, mpp)
        finally:
            with self._reads:
                self._reading -= 1
                self._reads.notify_all()

    def grid(self, spec: GridSpec) -> Grid:
        key = (self._id, spec)
        if key not in self._found:
            self._found[key] = super().grid(spec)
        return self._found[key]

    def batches(self, grid: Grid, batch_size: int) -> Iterator[Batch]:
        """Read tiles as :class:`SlideView` does, but from memory if they were read before."""
        kept = self._tiles.of(self._id, self.grid(grid.spec))
        if kept is None:
            yield from super().batches(grid, batch_size)
            return
        rows = kept.rows(grid)
        if not kept.read[rows].all():
            missing = rows[~kept.read[rows]]
            self._fill(kept, missing, batch_size)
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            images = torch.from_numpy(kept.images[some]).to(self.device)
            yield Batch(grid.boxes[start : start + batch_size], images.permute(0, 3, 1, 2))

    def _fill(self, kept: _Kept, rows: NDArray[np.int64], batch_size: int) -> None:
        missing = kept.grid.take(rows)
        seen = 0
        for batch in super().batches(missing, batch_size):
            some = rows[seen : seen + len(batch.boxes)]
            kept.images[some] = batch.images.permute(0, 2, 3, 1).cpu().numpy()
            kept.read[some] = True
            seen += len(some)


@dataclass(slots=True)
class _Kept:
    """The tiles of one slide in memory: ``images`` is ``(N, H, W, 3)`` uint8."""

    grid: Grid
    images: NDArray[np.uint8]
    read: NDArray[np.bool_]
    place: dict[tuple[int, int], int]

    def rows(self, grid: Grid) -> NDArray[np.int64]:
        """Return the rows of ``images`` for the tiles of a part of the grid."""
        return np.array([self.place[c, r] for c, r in grid.index.tolist()], np.int64)


class _TileStore:
    """Tiles of many slides within a budget of bytes."""

    def __init__(self, budget: int) -> None:
        self._left = budget
        self._kept: dict[tuple[str, GridSpec], _Kept] = {}

    def of(self, slide_id: str, grid: Grid) -> _Kept | None:
        """Return a slide's tiles in memory, or None if they do not fit."""
        key = (slide_id, grid.spec)
        if key not in self._kept:
            shape = (len(grid), grid.spec.tile, grid.spec.tile, 3)
            size = int(np.prod(shape))
            if size > self._left:
                return None
            self._left -= size
            place = {(c, r): i for i, (c, r) in enumerate(grid.index.tolist())}
            read = np.zeros(len(grid), bool)
            self._kept[key] = _Kept(grid, np.empty(shape, np.uint8), read, place)
        return self._kept[key]
