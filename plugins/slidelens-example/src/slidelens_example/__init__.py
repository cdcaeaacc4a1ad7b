"""A model family for SlideLens: the mean colour of each tile, classified.

Replace the network by yours. SlideLens brings the rest: reading slides, the command line, training,
packages, napari, evaluation, reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from slidelens.errors import SlideError
from slidelens.families.base import (
    Event,
    Family,
    FamilyConfig,
    MapSpec,
    Model,
    Patch,
    SlideScore,
    View,
)
from slidelens.tiling.grid import GridSpec

SLIDELENS_API = 1
"""The version of SlideLens's extension points that this is written for."""


class Config(FamilyConfig):
    """What defines a model: options of the command line, the form in napari, ``model.json``."""

    tile: int = Field(default=128, ge=16, le=4096, description="tile side in px")
    mpp: float = Field(default=1.0, gt=0, le=100, description="resolution of the tiles in µm/px")
    min_tissue: float = Field(
        default=0.5, ge=0, le=1, description="smallest tissue fraction of a tile"
    )
    batch_size: int = Field(default=64, ge=1, le=4096, description="tiles per forward pass")

    run_fields: ClassVar[frozenset[str]] = frozenset({"batch_size"})


class Network(nn.Module):
    """``(N, 3, H, W)`` uint8 RGB to ``(N, classes)`` logits: put your network here."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(6, n_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = images.float().flatten(2) / 255
        logits: torch.Tensor = self.head(torch.cat((pixels.mean(2), pixels.std(2)), 1))
        return logits


def grid_spec(config: Config) -> GridSpec:
    """Return the grid of tiles, in training and after."""
    return GridSpec(config.tile, config.mpp, min_tissue=config.min_tissue)


def build(config: Config, n_classes: int) -> nn.Module:
    """Build the network with random weights."""
    return Network(n_classes)


def infer(model: Model[Config], view: View) -> Iterator[Event]:
    """Draw the probability of every tile; the slide's is the mean over its tiles."""
    grid = view.grid(grid_spec(model.config))
    if len(grid) == 0:
        raise SlideError(f"no tile of {model.config.tile} px holds enough tissue.")
    view.total(len(grid))
    logits = []
    for batch in view.batches(grid, model.config.batch_size):
        logits.append(model.module(batch.images).float())
        yield Patch("probability", batch.boxes, logits[-1].softmax(1).cpu().numpy())
        view.step(len(batch.boxes))
    yield SlideScore(tuple(torch.cat(logits).mean(0).softmax(0).tolist()))


def maps(config: Config, classes: Sequence[str]) -> Sequence[MapSpec]:
    """Declare the one map that is drawn: a cell per tile."""
    cell = config.tile * config.mpp
    return (MapSpec("probability", "probability", tuple(classes), cell, instances=True),)


FAMILY = Family(
    name="example",
    title="Example family",
    about="Classifies the mean colour of each tile; the slide's score is the mean.",
    config=Config,
    build=build,
    infer=infer,
    maps=maps,
    trainer="slidelens_example.training:Task",
)
