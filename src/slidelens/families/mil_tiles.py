"""What both ways of training a MIL model share: the network and its tiles."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slidelens.families.mil import grid_spec
from slidelens.nn.backbones import freeze_norm_statistics
from slidelens.nn.map_batches import map_batches
from slidelens.nn.pixels import normalize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch

    from slidelens.families.base import Model
    from slidelens.families.mil import MilConfig
    from slidelens.families.training import TrainData
    from slidelens.nn.augment import TileAugment
    from slidelens.nn.mil import BagOutput
    from slidelens.tiling.grid import Grid

__all__ = ["MilTiles", "evaluating"]


@dataclass(frozen=True)
class MilTiles:
    """The tiles of a run's slides, as its model reads them."""

    model: Model[MilConfig]
    network: Callable[..., Any]
    """The model's network as the engine wraps it."""
    data: TrainData
    augment: TileAugment

    def grid(self, slide_id: str) -> Grid:
        """Return the grid over a slide's tissue."""
        return self.data.view(slide_id).grid(grid_spec(self.model.config))

    def batches(
        self,
        slide_id: str,
        rows: Sequence[int] | None = None,
        key: Callable[[int], Sequence[int]] | None = None,
    ) -> Iterator[torch.Tensor]:
        """Yield normalised tiles ``(N, 3, H, W)`` of a slide's grid, in batches.

        Parameters
        ----------
        rows
            Positions in the grid; all of it if ``None``.
        key
            Position to the key of the tile's augmentation; ``None`` leaves tiles as they are.
        """
        grid = self.grid(slide_id)
        wanted = range(len(grid)) if rows is None else rows
        part = grid if rows is None else grid.take(rows)
        seen = 0
        for batch in self.data.view(slide_id).batches(part, self.model.config.batch_size):
            images = batch.images
            if key is not None:
                some = wanted[seen : seen + len(images)]
                images = self.augment(images, [key(row) for row in some])
            seen += len(images)
            yield self.normalized(images)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits ``(N, K)`` float32 of normalised tiles, each alone."""
        found: torch.Tensor = self.network(images)
        return found.float()

    def vectors(self, images: torch.Tensor) -> torch.Tensor:
        """Return the feature vectors ``(N, D)`` of normalised tiles."""
        found: torch.Tensor = self.network(images, vectors=True)
        return found

    def of_each(
        self, compute: Callable[[torch.Tensor], torch.Tensor], batches: Iterator[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Return :meth:`logits` or :meth:`vectors` of each batch."""
        if self.model.module.training:  # layers that draw numbers draw them in order
            return [compute(images) for images in batches]
        return list(map_batches(compute, batches, self.model.device, self.model.config.tile))

    def pooled(
        self, vectors: torch.Tensor, label: torch.Tensor | None = None, smoothing: float = 0.0
    ) -> BagOutput:
        """Return the output for the bag ``(N, D)``, with a loss if there is a label."""
        found: BagOutput = self.network(bag=vectors, label=label, smoothing=smoothing)
        return found

    def normalized(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise tiles for the backbone."""
        return normalize(images, self.model.mean, self.model.std)


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Switch to eval mode for a while: a resumed run may compute vectors in a training step."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
        freeze_norm_statistics(module)
