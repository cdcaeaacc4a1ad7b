"""A slide on its way through modules that are trained on their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from slidelens.nn.pixels import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slidelens.nn.source import LazyImage

__all__ = ["Relay"]


class Relay:
    """One slide on its way through the modules.

    (No dataclass: trainers copy those when they are handed to a network.)

    Parameters
    ----------
    image, mask
        As :meth:`~slidelens.nn.streaming.StreamingTrunk.forward` takes them.
    label
        ``(N,)`` class indices; to train.
    tissue
        ``(h, w)`` bool over the whole image at any resolution, on the CPU: where it has tissue. The
        heads look at nothing else; None: at all of it.
    alpha
        Weight of the reconstruction (paper: 1).
    smoothing
        Of the label, in training: what of its probability all classes share.
    tile
        Side in image px of what is computed at once, by streaming; 0: each map is whole.
    mean, std
        Normalisation of uint8 images.

    Attributes
    ----------
    features
        What the last module handed on, without a graph.
    logits
        Of the last module's classifier, ``(N, classes)``.
    """

    def __init__(
        self,
        image: Tensor | LazyImage,
        label: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        tissue: Tensor | None = None,
        alpha: float = 1.0,
        smoothing: float = 0.0,
        tile: int = 0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        self.image, self.label, self.mask, self.tissue = image, label, mask, tissue
        self.alpha, self.smoothing, self.tile = alpha, smoothing, tile
        self.mean, self.std = tuple(mean), tuple(std)
        self.features: Tensor | None = None
        self.logits: Tensor | None = None

    def windows_of_tissue(
        self, start: tuple[float, float], side: int, grid: tuple[int, int]
    ) -> Tensor | None:
        """Return the numbers of the windows that touch tissue, row by row, on the CPU.

        None is all of them: nothing is known of the tissue, or no window touches it (the last cells
        of a network without padding end before the image does).

        Parameters
        ----------
        start
            Top and left of the first window, in px of the image.
        side
            Of a window, in px.
        grid
            Rows and columns of windows.
        """
        if self.tissue is None:
            return None
        shape = self.image.shape
        size = shape[2:] if isinstance(self.image, Tensor) else shape[:2]
        sums = F.pad(self.tissue.long().cumsum(0).cumsum(1), (1, 0, 1, 0))
        (top, bottom), (left, right) = (
            _reach(start[axis] + side * torch.arange(grid[axis] + 1), size[axis], cells)
            for axis, cells in enumerate(self.tissue.shape)
        )
        below, above = sums[bottom], sums[top]
        count = below[:, right] - below[:, left] - above[:, right] + above[:, left]
        found = count.flatten().nonzero()[:, 0]
        return found if len(found) else None


def _reach(edges: Tensor, pixels: int, cells: int) -> tuple[Tensor, Tensor]:
    """Return the first cell that each window meets, and the one behind the last."""
    at = edges * (cells / pixels)
    first, last = at[:-1].floor().long(), at[1:].ceil().long()
    return first.clamp(0, cells), last.clamp(0, cells)
