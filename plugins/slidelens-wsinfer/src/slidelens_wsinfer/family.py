"""The family ``wsinfer``: a patch classifier from a WSInfer folder.

Source: Kaczmarzyk et al. 2024, *Open and reusable deep learning for pathology with WSInfer and
QuPath*; the specification of ``config.json`` in the WSInfer zoo.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import nn

from slidelens.errors import SlideError
from slidelens.families.base import Family, FamilyConfig, MapSpec, Patch, SlideScore
from slidelens.nn.pixels import normalize
from slidelens.tiling.grid import GridSpec
from slidelens_wsinfer.networks import Network, Script

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from slidelens.families.base import Event, Model, View

__all__ = ["FAMILY", "WsinferConfig"]

SLIDELENS_API = 1


class WsinferConfig(FamilyConfig):
    """What ``config.json`` says of the model."""

    architecture: str = Field("resnet18", description="network, by timm's or torchvision's name")
    script_bytes: int = Field(0, ge=0, description="size of the TorchScript program; 0 is none")
    outputs: int = Field(0, ge=0, description="numbers that the network gives; 0 is one per class")
    tile: int = Field(224, ge=1, le=4096, description="tile side in px (patch_size_pixels)")
    mpp: float = Field(0.5, gt=0, le=100, description="resolution of the tiles (spacing_um_px)")
    resize: int = Field(0, ge=0, le=4096, description="side to which tiles are resized; 0 is none")
    overlap: int = Field(0, ge=0, description="overlap of neighbouring tiles in px")
    min_tissue: float = Field(0.5, ge=0, le=1, description="smallest tissue fraction of a tile")
    batch_size: int = Field(32, ge=1, le=4096, description="tiles per forward pass")

    run_fields: ClassVar[frozenset[str]] = frozenset({"batch_size", "overlap", "min_tissue"})


def build(config: WsinferConfig, n_classes: int) -> nn.Module:
    """Build the network; a TorchScript program waits in its place until it is trusted and run."""
    if config.script_bytes:
        return Script(config.script_bytes)
    return Network(config.architecture, config.outputs or n_classes)


def infer(model: Model[WsinferConfig], view: View) -> Iterator[Event]:
    """Draw the probabilities of every tile; the slide's are the mean over its tiles."""
    config = model.config
    grid = view.grid(GridSpec(config.tile, config.mpp, config.overlap, config.min_tissue))
    if len(grid) == 0:
        raise SlideError(
            f"no tile of {config.tile} px at {config.mpp} µm/px holds {config.min_tissue:.0%} "
            "tissue; check the tissue mask or lower min_tissue."
        )
    view.total(len(grid))
    total = np.zeros(len(model.classes))
    for batch in view.batches(grid, config.batch_size):
        images = _resized(batch.images, config.resize)
        logits = model.module(normalize(images, model.mean, model.std)).float()
        values = probabilities(logits).cpu().numpy()
        total += values.sum(0)
        yield Patch("probability", batch.boxes, values)
        view.step(len(values))
    yield SlideScore(tuple((total / len(grid)).tolist()))


def probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Turn ``(N, K)`` logits into probabilities; one output is the second of two classes."""
    if logits.shape[1] == 1:
        positive = logits.sigmoid()
        return torch.cat((1 - positive, positive), 1)
    return logits.softmax(1)


def _resized(images: torch.Tensor, side: int) -> torch.Tensor:
    """Resize as WSInfer does: by Pillow, whose bilinear filter averages and rounds to 8 bits."""
    if side in (0, images.shape[-1]):
        return images
    pictures = [
        np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR))
        for picture in images.permute(0, 2, 3, 1).cpu().numpy()
    ]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(images.device)


def maps(config: WsinferConfig, classes: Sequence[str]) -> Sequence[MapSpec]:
    """Declare the one map: a cell per step of the grid."""
    cell = (config.tile - config.overlap) * config.mpp
    return (MapSpec("probability", "probability", tuple(classes), cell, instances=True),)


FAMILY = Family(
    name="wsinfer",
    title="WSInfer patch classifier",
    about="Classifies each tile as a model of the WSInfer zoo does; the slide's score is the mean.",
    config=WsinferConfig,
    build=build,
    infer=infer,
    maps=maps,
)
