"""Multiple-instance learning: each tile is classified, the slide is its most suspicious tile.

Source: streaming-prostate-2020, section IV.B, after Campanella et al. 2019. Training is in
:mod:`slidelens.families.mil_train`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field, model_validator
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
from slidelens.nn.backbones import BackboneName, build_features
from slidelens.nn.mil import TileClassifier, class_probabilities
from slidelens.nn.pixels import normalize
from slidelens.tiling.grid import GridSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["FAMILY", "MilConfig", "grid_spec", "no_tiles"]


class MilConfig(FamilyConfig):
    """What defines a MIL model; training has its own (:class:`~.mil_train.MilTraining`)."""

    backbone: BackboneName = Field("resnet34", description="torchvision network, ImageNet-trained")
    tile: int = Field(224, ge=32, le=4096, description="tile side in px")
    mpp: float = Field(0.5, gt=0, le=100, description="resolution of the tiles in µm/px")
    overlap: int = Field(0, ge=0, description="overlap of neighbouring tiles in px")
    min_tissue: float = Field(0.5, ge=0, le=1, description="least tissue fraction of a tile")
    pooling: Literal["top1"] = Field("top1", description="how tiles make a slide score")
    batch_size: int = Field(32, ge=1, le=4096, description="tiles per forward pass")

    run_fields: ClassVar[frozenset[str]] = frozenset({"overlap", "min_tissue", "batch_size"})

    @model_validator(mode="after")
    def _overlap_below_tile(self) -> MilConfig:
        if self.overlap >= self.tile:
            raise ValueError(f"overlap {self.overlap} px must be below the tile's {self.tile} px")
        return self


def grid_spec(config: MilConfig) -> GridSpec:
    """Return the grid that a model of this configuration reads, in training and after."""
    return GridSpec(config.tile, config.mpp, config.overlap, config.min_tissue)


def no_tiles(config: MilConfig) -> str:
    """Say that a slide has nothing to look at."""
    return (
        f"no tile of {config.tile} px at {config.mpp} µm/px holds {config.min_tissue:.0%} tissue; "
        "check the tissue mask, lower min_tissue or give a larger region."
    )


def build(config: MilConfig, n_classes: int) -> nn.Module:
    """Build the tile network, with random weights."""
    return TileClassifier(build_features(config.backbone), n_classes)


def infer(model: Model[MilConfig], view: View) -> Iterator[Event]:
    """Draw the probability of each class per tile; the slide's is that of its top-1 tile.

    Raises
    ------
    SlideError
        No tile holds enough tissue.
    """
    grid = view.grid(grid_spec(model.config))
    if len(grid) == 0:
        raise SlideError(no_tiles(model.config))
    view.total(len(grid))
    best: torch.Tensor | None = None
    for batch in view.batches(grid, model.config.batch_size):
        logits = model.module(normalize(batch.images, model.mean, model.std)).float()
        top = logits.amax(0)
        best = top if best is None else torch.maximum(best, top)
        values = class_probabilities(logits).cpu().numpy()
        yield Patch("probability", batch.boxes, values)
        view.step(len(values))
    assert best is not None
    yield SlideScore(tuple(class_probabilities(best[None])[0].tolist()))


def maps(config: MilConfig, classes: Sequence[str]) -> Sequence[MapSpec]:
    """Return the one map: a cell per step of the grid."""
    cell = (config.tile - config.overlap) * config.mpp
    return (MapSpec("probability", "probability", tuple(classes), cell, instances=True),)


FAMILY = Family(
    name="mil",
    title="Multiple-instance learning (top-1)",
    about="Classifies each tile; the slide's score is that of its most suspicious tile.",
    config=MilConfig,
    build=build,
    infer=infer,
    maps=maps,
    trainer="slidelens.families.mil_train:MilTask",
)
