"""One slide on its way through modules that train on their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slidelens.nn.pixels import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

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
    alpha
        Weight of the reconstruction (paper: 1).
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
        alpha: float = 1.0,
        tile: int = 0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        self.image, self.label, self.mask = image, label, mask
        self.alpha, self.tile = alpha, tile
        self.mean, self.std = tuple(mean), tuple(std)
        self.features: Tensor | None = None
        self.logits: Tensor | None = None
