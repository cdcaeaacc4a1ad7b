"""End-to-end learning on whole slides, streamed in the memory of one tile.

Source: streaming-prostate-2020, sections III and IV.A. Training is in
:mod:`slidelens.families.streaming_train`, the engine in :mod:`slidelens.nn.streaming`.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from slidelens.errors import ModelError, StreamingError
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
from slidelens.geometry import Box
from slidelens.nn.backbones import BackboneName
from slidelens.nn.mil import class_probabilities
from slidelens.nn.slide_classifier import Pooling, SlideClassifier, Streaming
from slidelens.nn.smoothgrad import iter_smoothgrad
from slidelens.steps import Steps

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from slidelens.nn.smoothgrad import Quantity, SaliencyPart

__all__ = ["FAMILY", "StreamingConfig", "frame_of", "network_of", "streaming_of"]

Saliency = Literal["none", "gradient", "gradient-x-input", "smoothgrad", "smoothgrad-squared"]
_QUANTITIES: dict[Saliency, Quantity] = {
    "gradient": "absolute",
    "gradient-x-input": "input",
    "smoothgrad": "absolute",
    "smoothgrad-squared": "squared",
}
_KEEP = 1 << 30
"""An image of up to so many bytes is kept in memory while it is read over and over."""


class StreamingConfig(FamilyConfig):
    """Configuration of a streaming model."""

    backbone: BackboneName = Field("resnet34", description="torchvision network, ImageNet-trained")
    layers: str = Field(
        "", description="last layer of the backbone to use, such as features.7; empty: all"
    )
    pooling: Pooling = Field(
        "max",
        description="pooling over the slide: max or mean of each channel, or lse: a soft maximum "
        "of the cells' scores",
    )
    sharpness: float = Field(
        4.0, gt=0, le=100, description="sharpness of lse: near 0 it is the mean, large the maximum"
    )
    context: int = Field(
        1,
        ge=1,
        le=99,
        description="odd number of cells over which the feature map is averaged first",
    )
    fine: bool = Field(
        False,
        description="compute the first layer as if the image were enlarged twice, at four times "
        "the work: for a network that was trained on finer images",
    )
    mpp: float = Field(1.0, gt=0, le=100, description="resolution of the image in µm/px")
    size: int = Field(
        16384, ge=32, description="largest side of the image in px; larger tissue is cropped"
    )
    background: Literal["white", "kept"] = Field(
        "white", description="white: paint everything but tissue white, which saves computation"
    )
    streamed: str = Field(
        "auto", description="last layer to stream; auto: layer4.0 of a ResNet, else all"
    )
    tile: int = Field(
        1024, ge=0, description="side of a streamed tile in px; 0: as large as memory allows"
    )
    scheme: Literal["auto", "seam", "halo"] = Field("auto", description="how tiles are joined")
    saliency: Saliency = Field("none", description="saliency map to draw")
    saliency_class: str = Field("", description="class of the saliency map; empty: the last")
    saliency_samples: int = Field(25, ge=1, description="noisy samples of SmoothGrad")
    saliency_noise: float = Field(
        0.05, ge=0, description="SmoothGrad's noise as a fraction of the image's standard deviation"
    )
    saliency_mpp: float = Field(8.0, gt=0, description="cell size of the saliency map in µm")

    run_fields: ClassVar[frozenset[str]] = frozenset(
        {"size", "background", "streamed", "tile", "scheme", "saliency", "saliency_class",
         "saliency_samples", "saliency_noise", "saliency_mpp"}
    )  # fmt: skip

    @model_validator(mode="after")
    def _context_has_a_middle(self) -> StreamingConfig:
        if self.context % 2 == 0:
            raise ValueError(f"context {self.context} must be odd, so that it has a middle")
        return self


def build(config: StreamingConfig, n_classes: int) -> nn.Module:
    """Build the network, with random weights.

    Raises
    ------
    ModelError
        No such layer, or layers that cannot be streamed.
    """
    try:
        return SlideClassifier(
            config.backbone,
            n_classes,
            layers=config.layers,
            pooling=config.pooling,
            sharpness=config.sharpness,
            context=config.context,
            fine=config.fine,
        )
    except StreamingError as error:
        raise ModelError(
            f"backbone {config.backbone}: {error}. Networks of local layers throughout stream: "
            "resnet18, resnet34, resnet50, squeezenet1_1, convnext_tiny, googlenet, inception_v3."
        ) from error


def network_of(model: Model[StreamingConfig]) -> SlideClassifier:
    """Return the model's network."""
    assert isinstance(model.module, SlideClassifier)
    return model.module


def streaming_of(model: Model[StreamingConfig]) -> Streaming:
    """Return the settings with which a model's images are streamed."""
    config, upto = model.config, model.config.streamed
    if upto == "auto":
        deep = config.backbone.startswith("resnet") and config.layers in ("", "layer4")
        upto = "layer4.0" if deep else ""
    return Streaming(upto, config.tile, config.scheme, model.mean, model.std)


def frame_of(model: Model[StreamingConfig], view: View) -> Frame:
    """Return the part of a slide that a model reads.

    Raises
    ------
    SlideError
        No tissue.
    """
    network, config = network_of(model), model.config
    return frame_tissue(view, config.mpp, network.field, network.lost, config.size)


def infer(model: Model[StreamingConfig], view: View) -> Iterator[Event]:
    """Draw the evidence for each class and, if requested, saliency; then yield the slide's score.

    The evidence is the head's probability for each cell of the feature map alone: the score of a
    slide that consists of this cell. After each tile an empty patch reports progress.

    Raises
    ------
    ModelError
        A class for saliency that the model does not have.
    SlideError
        No tissue.
    """
    network, config = network_of(model), model.config
    image = SlideImage(view.read, frame_of(model, view))
    if config.saliency != "none" and image.nbytes <= _KEEP:
        image.load()
    mask = _mask(model, image.frame)
    trunk, rest = network.streamed(streaming_of(model))
    tape = trunk.tape(trunk.source(image, mask), record=False, input_grad=False)
    passes = 1 if config.saliency == "none" else 1 + 2 * _samples(config)
    view.total(passes * len(tape.tiles))
    forward = Steps(tape.iter_forward(trunk.tensors()))
    for _ in forward:
        view.step()
        yield Patch.empty("probability", len(model.classes))
    cells = network.averaged(rest(forward.result))
    yield _evidence(network, cells, image.frame)
    if config.saliency != "none":
        yield from _saliency(model, view, image, mask)
    logits = network.score(network.pooled(cells))
    yield SlideScore(tuple(class_probabilities(logits)[0].tolist()))


def maps(config: StreamingConfig, classes: Sequence[str]) -> Sequence[MapSpec]:
    """Return the evidence map, a cell per cell of the feature map, and the saliency map."""
    cell = _stride(config.backbone, config.layers, config.fine) * config.mpp
    found = [MapSpec("probability", "probability", tuple(classes), cell)]
    if config.saliency != "none":
        name = classes[_class_index(config.saliency_class, classes)]
        found.append(MapSpec("saliency", "saliency", (name,), _side(config) * config.mpp))
    return found


@cache
def _stride(backbone: BackboneName, layers: str, fine: bool) -> int:
    """Px of the image per cell of the feature map."""
    with torch.device("meta"):
        return SlideClassifier(backbone, 2, layers=layers, fine=fine).field[0].stride


def _evidence(network: SlideClassifier, cells: torch.Tensor, frame: Frame) -> Patch:
    """Return the probabilities of each cell that has tissue; NaN elsewhere."""
    logits = network.evidence(cells)[0]
    values = class_probabilities(logits.movedim(0, -1)).movedim(-1, 0).cpu().numpy()
    # Without padding a network has fewer cells than there are strides in its image.
    rows, columns = (min(n, m) for n, m in zip(values.shape[1:], frame.mask.shape, strict=True))
    values = np.where(frame.mask[:rows, :columns], values[:, :rows, :columns], np.float32("nan"))
    box = frame.cells.box(0, 0, columns, rows)
    return Patch("probability", np.array([box]), values[None])


def _samples(config: StreamingConfig) -> int:
    return config.saliency_samples if config.saliency.startswith("smoothgrad") else 1


def _class_index(name: str, classes: Sequence[str]) -> int:
    """Find a class by name or 0-based index."""
    if not name:
        return len(classes) - 1
    if name in classes:
        return classes.index(name)
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    raise ModelError(f"saliency_class {name!r}: the model's classes are {', '.join(classes)}.")


def _mask(model: Model[StreamingConfig], frame: Frame) -> torch.Tensor | None:
    return torch.from_numpy(frame.blocks) if model.config.background == "white" else None


def _side(config: StreamingConfig) -> int:
    """Px of the image per cell of the saliency map."""
    return max(round(config.saliency_mpp / config.mpp), 1)


def _saliency(
    model: Model[StreamingConfig], view: View, image: SlideImage, mask: torch.Tensor | None
) -> Iterator[Event]:
    """Draw the saliency map, the mean of the samples so far, each from the bottom up."""
    network, config, frame, side = network_of(model), model.config, image.frame, _side(model.config)
    trunk, rest = network.streamed(streaming_of(model))

    def head(features: torch.Tensor) -> torch.Tensor:
        logits = network.score(network.pooled(network.averaged(rest(features))))
        # One logit stands for the last of two classes, and its opposite for the first.
        return torch.cat((-logits, logits), 1) if logits.shape[1] == 1 else logits

    parts = iter_smoothgrad(
        trunk, head, image, _class_index(config.saliency_class, model.classes),
        samples=_samples(config),
        noise=config.saliency_noise if config.saliency.startswith("smoothgrad") else 0.0,
        quantity=_QUANTITIES[config.saliency],
        cell=side,
        mask=mask,
    )  # fmt: skip
    known = _painted_out(frame, side) if mask is not None else None
    done = 0
    for part, top, values in _whole_rows(_with_gradients(parts)):
        view.step(part.done - done)
        done = part.done
        rows, columns = values.shape
        box = frame.place.box(0, top * side, columns * side, rows * side)
        # No rows, or all beyond the slide: an image is whole cells, and may end behind it.
        if not box.intersect(Box.of_size(view.size)).area:
            yield Patch.empty("saliency", 1)
            continue
        # The canvas averages what lies over each other: the samples.
        drawn = (values * _samples(config)).float().cpu().numpy()
        if known is not None:
            drawn = np.where(known[top : top + rows], drawn, np.float32("nan"))
        yield Patch("saliency", np.array([box]), drawn[None, None])


def _painted_out(frame: Frame, side: int) -> NDArray[np.bool_]:
    """Return the cells (of ``side`` px) whose centres are not painted white."""
    at = []
    for pixels, blocks in zip((frame.height, frame.width), frame.blocks.shape, strict=True):
        centres = np.minimum(np.arange(-(-pixels // side)) * side + side // 2, pixels - 1)
        at.append(centres * blocks // pixels)
    return frame.blocks[np.ix_(*at)]


def _with_gradients(parts: Iterator[SaliencyPart]) -> Iterator[SaliencyPart]:
    """Run each step with gradients, which the engine has switched off for inference."""
    while True:
        # Entered per step: between two, the caller must find the mode that it has set.
        with torch.inference_mode(False), torch.enable_grad():
            part = next(parts, None)
        if part is None:
            return
        yield part


def _whole_rows(
    parts: Iterator[SaliencyPart],
) -> Iterator[tuple[SaliencyPart, int, torch.Tensor]]:
    """Join rows of cells whose pixels came in two parts, from the bottom up.

    Yields each part with the whole rows ``(h, w)`` that it completes, and the first one's number.
    """
    held: torch.Tensor | None = None  # the topmost row so far, of which more may come
    below = 0  # its number
    for part in parts:
        top, values = part.top, part.values
        if not values.numel():
            yield part, 0, values.new_zeros((0, 0))
            continue
        if held is not None and below < top + len(values):
            values = torch.cat((values[:-1], values[-1:] + held))
        elif held is not None:
            values = torch.cat((values, held))
        held = None
        if top:
            held, below = values[:1], top
            top, values = top + 1, values[1:]
        yield part, top, values


FAMILY = Family(
    name="streaming",
    title="End-to-end streaming",
    about="Classifies the whole slide as one image, streamed tile by tile; no patches, no bags.",
    config=StreamingConfig,
    build=build,
    infer=infer,
    maps=maps,
    trainer="slidelens.families.streaming_train:StreamingTask",
)
