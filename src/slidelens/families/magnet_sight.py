"""What a magnifying network sees in training: oriented and stained slides, read on demand."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from slidelens.families.magnet import prepare
from slidelens.families.magnet_eye import Eye, Overview, Recollection, restore_windows
from slidelens.nn.augment import TileAugment
from slidelens.nn.orientation import orient
from slidelens.nn.pixels import normalize
from slidelens.nn.zoom import remove_grey
from slidelens.settings import get_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from slidelens.families.base import Model, View
    from slidelens.families.magnet import MagNetConfig
    from slidelens.nn.magnet import Until

__all__ = ["Sight", "Slides", "draw_probes"]

_AHEAD = 8
"""Slides copied ahead, at most: a run keeps few slides open at a time."""


@dataclass(frozen=True, slots=True)
class Sight:
    """The slides of one batch, their orientations, and the sources of random choices."""

    slides: Sequence[str]
    ways: Sequence[int]
    keys: Sequence[tuple[int, ...]] = ()
    random: np.random.Generator | None = None
    until: Until = "verdict"
    """What the network stops at: see :meth:`~slidelens.nn.magnet.MagNet.forward`."""
    coming: Sequence[str] = ()
    """Slides of the next batch, to be copied meanwhile."""


class Slides:
    """Slides to read windows from, with a coarse copy of each in memory.

    Threads make the copies, ahead of time for the next batch, within a budget. With each they read
    the first picture of the slide itself, since attention must be trained on the very pictures of
    inference. Windows with more detail are read from the slide, in parallel, once chosen.

    Parameters
    ----------
    model
        Says how pictures are normalised.
    view
        Opens a slide by its id.
    side
        Longer side of a copy in px.
    budget
        Bytes that copies may take.
    stain
        Jitter of the stain in optical density, for a sight with keys.
    """

    def __init__(
        self,
        model: Model[MagNetConfig],
        view: Callable[[str], View],
        *,
        side: int,
        budget: int,
        stain: float,
    ) -> None:
        self._model, self._view = model, view
        self._side, self._left, self._stain = side, budget, stain
        self._readers = ThreadPoolExecutor(get_settings().reader_threads, "slidelens-magnet")
        self._overviews: dict[str, Overview] = {}
        self._coming: dict[str, Future[Overview]] = {}

    def eyes(self, sight: Sight) -> list[Recollection]:
        """Return readers of the copies; start copying the slides of the next batch."""
        self._copy_meanwhile(sight.slides)
        found = [Recollection(self._overview(slide_id)) for slide_id in sight.slides]
        self._copy_meanwhile(sight.coming)
        return found

    def drop(self) -> None:
        """Cancel copying; return when no thread reads a slide any more."""
        wait([copy for copy in self._coming.values() if not copy.cancel()])
        self._coming.clear()

    def glances(self, sight: Sight, eyes: Sequence[Recollection]) -> Tensor:
        """Return pictures of whole slides: ``(B, 3, glance, glance)`` uint8, on the CPU."""
        seen = [torch.from_numpy(eye.glance).permute(2, 0, 1) for eye in eyes]
        return torch.stack([orient(one, way) for one, way in zip(seen, sight.ways, strict=True)])

    def read(
        self, sight: Sight, eyes: Sequence[Recollection], windows: Tensor, size: int, margin: int
    ) -> Tensor:
        """Read windows ``(B, N, 3)`` as ``(B, N, 3, side, side)`` uint8, on the CPU.

        Each is read from its slide's copy in memory if that has the detail, else from the slide;
        all from the slide if nothing is augmented, which is when a network is scored.
        """
        side = size + 2 * margin
        grown = windows.double().cpu()
        grown[..., 0] *= side / size
        found = []
        for slide_id, eye, way, places in zip(
            sight.slides, eyes, sight.ways, grown.numpy(), strict=True
        ):
            there = restore_windows(places, way).tolist()
            fine = [
                n
                for n, window in enumerate(there)
                if not sight.keys or eye.mpp(window, side) < eye.detail
            ]
            near = Eye(self._view(slide_id)).read if fine else eye.read
            tasks = [
                self._readers.submit(near if n in fine else eye.read, window, side)
                for n, window in enumerate(there)
            ]
            wait(tasks)  # all of them: where one fails, no other may go on with the slide
            pictures = torch.from_numpy(np.stack([task.result() for task in tasks]))
            found.append(orient(pictures.permute(0, 3, 1, 2), way))
        return torch.stack(found)

    def prepared(self, pictures: Tensor, sight: Sight) -> Tensor:
        """Turn ``(B * N, 3, h, w)`` uint8 into the network's input, with stain jitter by slide."""
        if not (sight.keys and self._stain):
            return prepare(pictures, self._model)
        augment = TileAugment(flips=False, stain=self._stain, colour=0.0)
        repeats = len(pictures) // len(sight.keys)
        keys = [key for key in sight.keys for _ in range(repeats)]
        filtered = remove_grey(pictures)
        # Stain jitter lightens black; what the grey filter took out must stay out, or attention
        # that keeps to tissue would learn from other windows than it is shown in inference.
        stained = augment(filtered, keys) * filtered.any(1, keepdim=True)
        return normalize(stained, self._model.mean, self._model.std)

    def _copy_meanwhile(self, slides: Sequence[str]) -> None:
        """Start copying slides that are not in memory, at most ``_AHEAD`` at a time."""
        wanted = [s for s in slides if s not in self._overviews and s not in self._coming]
        for slide_id in wanted[: max(0, _AHEAD - len(self._coming))]:
            view = self._view(slide_id)
            self._coming[slide_id] = self._readers.submit(self._copy, view)

    def _overview(self, slide_id: str) -> Overview:
        if slide_id in self._overviews:
            return self._overviews[slide_id]
        coming = self._coming.pop(slide_id, None)
        made = coming.result() if coming else self._copy(self._view(slide_id))
        if made.nbytes <= self._left:
            self._left -= made.nbytes
            self._overviews[slide_id] = made
        return made

    def _copy(self, view: View) -> Overview:
        """Read a whole slide with a longer side of ``side`` px, or fewer if it has no more."""
        region = view.region.scaled(*view.mpp)
        mpp = max(region.w / self._side, region.h / self._side, *view.mpp)
        glance = Eye(view).read((1.0, 0.0, 0.0), self._model.config.glance)
        return Overview(view.read(view.region, mpp), (region.w, region.h), glance)


def draw_probes(
    pictures: Tensor,
    count: int,
    scales: tuple[float, float],
    stray: float,
    random: np.random.Generator,
) -> Tensor:
    """Draw windows ``(B, count, 3)`` centred where ``(B, 3, h, w)`` pictures are not grey.

    Scales are between two limits, uniform in their logarithm. A share ``stray`` may lie anywhere,
    since attention must also learn about bare glass.
    """
    drawn = np.empty((len(pictures), count, 3), np.float32)
    low, high = np.log(scales)
    drawn[..., 0] = np.exp(random.uniform(low, high, drawn.shape[:2]))
    side = pictures.shape[-1]
    for row, tissue in zip(drawn, remove_grey(pictures).any(1).numpy(), strict=True):
        cells = np.flatnonzero(tissue) if tissue.any() else np.arange(side * side)
        chosen = random.choice(cells, count)
        anywhere = random.uniform(size=count) < stray
        chosen[anywhere] = random.integers(0, side * side, int(anywhere.sum()))
        y, x = np.divmod(chosen, side)
        inside = random.uniform(size=(2, count))
        row[:, 1:] = np.stack([x + inside[0], y + inside[1]], 1) * 2 / side - 1
    return torch.from_numpy(drawn)
