"""A family whose answer is known: the class of a tile is a linear map of its mean colour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

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


class TinyConfig(FamilyConfig):
    tile: int = Field(16, ge=1)
    mpp: float = Field(1.0, gt=0)
    overlap: int = 0
    min_tissue: float = 0.5
    batch_size: int = 4

    run_fields: ClassVar[frozenset[str]] = frozenset({"overlap", "batch_size"})


class MeanColour(nn.Module):
    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, n_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.float().mean((2, 3)) / 255)


def build(config: TinyConfig, n_classes: int) -> nn.Module:
    return MeanColour(n_classes)


def infer(model: Model[TinyConfig], view: View) -> Iterator[Event]:
    from slidelens.tiling.grid import GridSpec

    c = model.config
    grid = view.grid(GridSpec(c.tile, c.mpp, c.overlap, c.min_tissue))
    view.total(len(grid))
    best = torch.zeros(len(model.classes))
    for batch in view.batches(grid, c.batch_size):
        values = model.module(batch.images).float().softmax(1).cpu()
        best = torch.maximum(best, values.amax(0))
        yield Patch("probability", batch.boxes, values.numpy())
        view.step(len(values))
    yield SlideScore(tuple(best.tolist()))


def maps(config: TinyConfig, classes: Sequence[str]) -> Sequence[MapSpec]:
    return (
        MapSpec(
            "probability",
            "probability",
            tuple(classes),
            (config.tile - config.overlap) * config.mpp,
            instances=True,
        ),
    )


FAMILY = Family("tiny", "Tiny", "Mean colour.", TinyConfig, build, infer, maps)


def make_model(name: str = "tiny-model", seed: int = 0, **config: Any) -> Model[TinyConfig]:
    torch.manual_seed(seed)
    settings = TinyConfig(**config)
    return Model(name, "tiny", settings, ("normal", "tumour"), build(settings, 2))
