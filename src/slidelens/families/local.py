"""Locally supervised learning: the whole slide through a network whose modules train on their own.

Source: locally-supervised-2022. The networks are in :mod:`slidelens.nn.local`, training is in
:mod:`slidelens.families.local_train`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from slidelens.errors import ModelError
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
from slidelens.families.slide_image import Frame, SlideImage, frame_tissue
from slidelens.nn.backbones import BackboneName
from slidelens.nn.local import LocalNetwork
from slidelens.nn.local_cuts import cut_points, module_shapes
from slidelens.nn.local_stream import fits_whole, read_slide
from slidelens.nn.relay import Relay
from slidelens.nn.streaming.plan import free_memory
from slidelens.steps import Steps

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from slidelens.nn.local_heads import Reading
    from slidelens.nn.source import LazyImage

__all__ = ["FAMILY", "LocalConfig", "frame_of", "network_of", "relay_of", "set_tile"]

_PAPER_STRIDE = 3
_SHARE = 0.6
"""Of a GPU's free memory that maps may take: the estimate leaves out what kernels need."""
_READING = 0.7
"""Share of progress that reading counts for when maps are whole."""

T = TypeVar("T")
log = logging.getLogger(__name__)


class LocalConfig(FamilyConfig):
    """What defines a locally supervised model, and how it is run."""

    backbone: BackboneName = Field("resnet34", description="torchvision network, ImageNet-trained")
    modules: int = Field(4, ge=1, le=64, description="modules trained on their own; 1: end to end")
    mpp: float = Field(2.0, gt=0, le=100, description="resolution of the image in µm/px")
    size: int = Field(
        24576, ge=32, description="largest side of the image in px; larger tissue is cropped"
    )
    background: Literal["white", "kept"] = Field(
        "white", description="white: paint everything but tissue white, which saves computation"
    )
    stem_stride: int = Field(
        0,
        ge=0,
        le=4,
        description="stride of the first convolution; 0: 3 for ResNets, else unchanged",
    )
    patches: int = Field(
        10, ge=0, le=1000, description="patches of features to reconstruct per step; 0: none"
    )
    patch_share: float = Field(
        0.1, gt=0, le=1, description="largest fraction of a map that all patches cover together"
    )
    head_width: int = Field(
        0, ge=0, description="channels of the heads; 0: as many as their modules have"
    )
    windows: Literal["mean", "convolution"] = Field(
        "mean",
        description="what heads see of a window: its mean, or a convolution (the paper's code)",
    )
    pooling: Literal["additive", "attention"] = Field(
        "additive",
        description="what attention weights: the windows' logits, or their vectors (the paper)",
    )
    window_px: int = Field(
        0, ge=0, description="smallest side of a window in px; 0: 9, 7 or 5 cells, as in the paper"
    )
    tile: int = Field(
        1024,
        ge=0,
        description="side in px of what is computed at once; 0: the whole image (a GPU does so "
        "anyway if it fits)",
    )

    run_fields: ClassVar[frozenset[str]] = frozenset({"size", "background", "tile"})

    @model_validator(mode="after")
    def _cuts_exist(self) -> LocalConfig:
        try:
            cut_points(self.backbone, self.modules)
        except ModelError as error:
            raise ValueError(str(error)) from error
        if self.patches == 1:
            raise ValueError("patches must be 0 or at least 2: they normalise each other")
        if self.head_width == 1:
            raise ValueError("head_width must be 0 or at least 2: channels form groups")
        return self

    @property
    def first_stride(self) -> int | None:
        """Stride of the first convolution; None is the network's own."""
        resnet = _PAPER_STRIDE if self.backbone.startswith("resnet") else None
        return self.stem_stride or resnet


def build(config: LocalConfig, n_classes: int) -> nn.Module:
    """Build the network, with random weights."""
    return LocalNetwork(
        config.backbone,
        n_classes,
        config.modules,
        stem_stride=config.first_stride,
        patches=config.patches,
        patch_share=config.patch_share,
        head_width=config.head_width or None,
        mean_windows=config.windows == "mean",
        additive=config.pooling == "additive",
        least_window=config.window_px,
    )


def network_of(model: Model[LocalConfig]) -> LocalNetwork:
    """Return the model's network."""
    assert isinstance(model.module, LocalNetwork)
    return model.module


def frame_of(model: Model[LocalConfig], view: View) -> Frame:
    """Return the part of a slide that a model sees.

    Raises
    ------
    SlideError
        No tissue.
    """
    network, config = network_of(model), model.config
    return frame_tissue(view, config.mpp, network.fields[-1], network.lost, config.size)


def relay_of(
    model: Model[LocalConfig], image: LazyImage, blocks: NDArray[np.bool_], label: int | None = None
) -> Relay:
    """Return a slide at the start of its way; ``blocks`` tell where it has tissue."""
    tissue = torch.from_numpy(blocks.copy())
    return Relay(
        image,
        None if label is None else torch.tensor([label], device=model.device),
        tissue if model.config.background == "white" else None,
        tissue=tissue,
        mean=model.mean,
        std=model.std,
    )


def infer(model: Model[LocalConfig], view: View) -> Iterator[Event]:
    """Draw where each module looks, what the last one makes of each cell, and score the slide.

    A cell's probabilities are what the last classifier makes of it alone: the score of a slide that
    were this cell.

    Raises
    ------
    SlideError
        No tissue.
    """
    frame = frame_of(model, view)
    view.total(frame.height)
    rows = 0
    steps = Steps(_readings(model, SlideImage(view.read, frame)))
    for share in steps:
        view.step(round(share * frame.height) - rows)
        rows = round(share * frame.height)
        yield Patch.empty("probability", len(model.classes))
    readings = steps.result
    last = readings[-1]
    for index, reading in enumerate(readings):
        drawn = {_attention_name(index, len(readings)): reading.attention}
        if reading is last:
            drawn = {"probability": last.instances.softmax(1)[0], **drawn}
        looked = ~reading.instances[0, 0].isnan()
        yield from _drawn(model, frame, index, drawn, looked)
    yield SlideScore(tuple(last.logits.softmax(1)[0].tolist()))


def _readings(
    model: Model[LocalConfig], image: SlideImage
) -> Generator[float, None, list[Reading]]:
    """Read a slide with all heads; yield the share that is done.

    A GPU takes it in one piece where it has the memory: tile after tile it would wait for files,
    copies and launches of kernels most of the time.
    """
    network = network_of(model)
    relay = relay_of(model, image, image.frame.blocks)
    device = model.device or torch.device("cpu")
    set_tile(model, relay)
    if device.type == "cuda" and not (relay.tile and network.streams):
        try:
            return (yield from read_at_once(model, image, device))
        except torch.OutOfMemoryError:
            if not (model.config.tile and network.streams):
                raise
        relay.tile = model.config.tile
        log.warning("%s: out of memory; going on by tiles of %d px", device, relay.tile)
        torch.cuda.empty_cache()
    return (yield from read_slide(network, relay))


def set_tile(model: Model[LocalConfig], relay: Relay) -> None:
    """Choose the side in px of what is computed at once to read a slide; 0: all of it."""
    network, device = network_of(model), model.device or torch.device("cpu")
    relay.tile = model.config.tile
    if relay.tile and network.streams and device.type == "cuda":
        free = int(_SHARE * free_memory(device))
        relay.tile = 0 if fits_whole(network, relay, free) else relay.tile


def read_at_once(
    model: Model[LocalConfig], image: SlideImage, device: torch.device
) -> Generator[float, None, list[Reading]]:
    """Read a slide that lies on the device as a whole, and so does each map."""
    relay = relay_of(model, image, image.frame.blocks)
    relay.image = yield from _scaled(image.onto(device), 0, _READING)
    return (yield from _scaled(read_slide(network_of(model), relay), _READING, 1))


def _scaled(work: Generator[float, None, T], start: float, end: float) -> Generator[float, None, T]:
    """Scale progress from 0 to 1 to a part of the whole work."""
    steps = Steps(work)
    for share in steps:
        yield start + share * (end - start)
    return steps.result


def maps(config: LocalConfig, classes: Sequence[str]) -> Sequence[MapSpec]:
    """Return the map of probabilities, and of each module's attention, the last one's first."""
    shapes = module_shapes(config.backbone, config.modules, config.first_stride, config.window_px)
    cells = [shape.cell * config.mpp for shape in shapes]
    attention = [
        MapSpec(_attention_name(i, len(cells)), "attention", ("attention",), cell)
        for i, cell in enumerate(cells)
    ]
    probability = MapSpec("probability", "probability", tuple(classes), cells[-1])
    return probability, attention[-1], *attention[:-1]


def _attention_name(index: int, modules: int) -> str:
    return "attention" if index + 1 == modules else f"attention-{index + 1}"


def _drawn(
    model: Model[LocalConfig],
    frame: Frame,
    index: int,
    values: Mapping[str, torch.Tensor],
    looked: torch.Tensor,
) -> Iterator[Patch]:
    """Draw maps ``(C, h, w)`` of module ``index`` by name, NaN where its head did not look."""
    network = network_of(model)
    side = network.shapes[index].cell
    top, left = network.start_of(index)
    height, width = looked.shape
    box = frame.place.box(left, top, width * side, height * side)
    for name, found in values.items():
        drawn = found.float().masked_fill(~looked, torch.nan).cpu().numpy()
        yield Patch(name, np.array([box]), drawn[None])


FAMILY = Family(
    name="local",
    title="Locally supervised learning",
    about="Classifies the whole slide with a network whose modules are trained separately.",
    config=LocalConfig,
    build=build,
    infer=infer,
    maps=maps,
    trainer="slidelens.families.local_train:LocalTask",
)
