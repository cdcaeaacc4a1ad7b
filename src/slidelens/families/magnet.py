"""Magnifying networks: the model itself decides where on a slide to look closer.

Source: magnifying-networks-2023. The network is in :mod:`slidelens.nn.magnet`, its training in
:mod:`slidelens.families.magnet_train`.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator

from slidelens.families.base import (
    Event,
    Family,
    FamilyConfig,
    MapSpec,
    Model,
    Patch,
    SlideScore,
    Trajectory,
    View,
)
from slidelens.families.magnet_eye import Eye
from slidelens.families.slide_image import check_tissue
from slidelens.maps.trajectory import Window
from slidelens.nn.backbones import BackboneName, build_features
from slidelens.nn.judge import Judge, SmallFeatures, WindowClassifier
from slidelens.nn.magnet import MagNet
from slidelens.nn.mil import class_probabilities, outputs
from slidelens.nn.pixels import normalize
from slidelens.nn.zoom import Centre, Sees, remove_grey

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from slidelens.geometry import Box, Size
    from slidelens.nn.magnet import Seen

__all__ = ["FAMILY", "MagNetConfig", "Network", "prepare"]

_MOST_WINDOWS = 256
_LEAST_GLANCE = 48
"""Of attention on features: its map has a cell for 8 px, and the rim counts for nothing."""
_RASTER = 32
"""Cells along a window's side in which smaller windows within it are left out of the map."""

_ROUNDING = 1e-6
"""Share of such a cell that is the rounding of a float."""

_AUXILIARY = (1, 3)
"""Layers with an auxiliary classifier, as in the paper; a network of fewer layers has fewer."""

Network = Literal[BackboneName, "small"]


class MagNetConfig(FamilyConfig):
    """What defines a MagNet. Where the paper is explicit, the defaults are its 3-layer network."""

    backbone: Network = Field(
        "inception_v3", description="network of the classification layer; small: for CPUs"
    )
    auxiliary: Network = Field("resnet18", description="network of the auxiliary classifiers")
    auxiliary_layers: tuple[int, ...] = Field(
        _AUXILIARY, description="layers with an auxiliary classifier in training"
    )
    patches: tuple[int, ...] = Field(
        (2, 3, 3),
        min_length=1,
        max_length=6,
        description="windows chosen per window, layer by layer",
    )
    glance: int = Field(
        56, ge=16, le=512, description="side in px of the picture in which a layer chooses windows"
    )
    look: int = Field(
        224, ge=32, le=1024, description="side in px of the windows that are classified"
    )
    width: int = Field(16, ge=4, le=256, multiple_of=4, description="channels of the attention")
    state: int = Field(256, ge=8, le=2048, description="size of the recurrent classifier's state")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout of a window's features")
    evidence: bool = Field(
        False,
        description="score by the most suspicious window, plus what the recurrent classifier adds",
    )
    frozen: bool = Field(True, description="the first window of layer 2 is its whole parent")
    shared: bool = Field(
        False, description="one attention per layer for all its windows, told apart by inhibition"
    )
    gain: tuple[float, ...] = Field(
        (0.05,), min_length=1, description="sharpness of attention: one value, or one per layer"
    )
    least: float = Field(
        0.05, gt=0, le=1, description="smallest scale of a window relative to its parent"
    )
    reach: tuple[float, ...] = Field(
        (1.0,),
        min_length=1,
        description="window scale per spread of attention: one value, or one per layer",
    )
    centre: Centre = Field(
        "exact", description="centre of a window: the expected position, or its tanh"
    )
    inhibition: float = Field(
        0.0, ge=0, description="how much attention is lowered where an earlier window looks"
    )
    sees: Sees = Field(
        "colours", description="input of attention: colours, or early features of the backbone"
    )
    tissue: bool = Field(False, description="keep attention off what the grey filter removed")
    radius: float = Field(1.0, gt=0, le=8, description="radius of multi-sampling in output px")
    mpp: float = Field(0.25, gt=0, le=100, description="finest resolution in µm/px")
    map_mpp: float = Field(32.0, gt=0, description="cell size of the maps in µm")

    @field_validator("reach", mode="before")
    @classmethod
    def _once(cls, given: Any) -> Any:
        """Take a single number, which packages made before it was by layer have."""
        return (given,) if isinstance(given, (int, float)) else given

    @model_validator(mode="after")
    def _possible(self) -> MagNetConfig:
        if min(self.patches) < 1 or prod(self.patches) > _MOST_WINDOWS:
            raise ValueError(
                f"patches {self.patches}: need 1 or more per layer and at most {_MOST_WINDOWS} "
                "windows in the last"
            )
        if self.sees == "features" and self.glance < _LEAST_GLANCE:
            raise ValueError(
                f"glance {self.glance} px: attention on features needs {_LEAST_GLANCE} px or more"
            )
        if self.shared and not self.inhibition and max(self.patches) > 1:
            raise ValueError(
                "shared attention without inhibition: all patches of a window would be the same; "
                "set inhibition, 20 for example"
            )
        for name, given in (("gain", self.gain), ("reach", self.reach)):
            if min(given) <= 0 or len(given) not in (1, len(self.patches)):
                raise ValueError(
                    f"{name} {given}: need one above 0, or one for each of "
                    f"{len(self.patches)} layers"
                )
        layers = range(1, len(self.patches) + 1)
        strange = [n for n in self.auxiliary_layers if n not in (*layers, *_AUXILIARY)]
        if strange:
            raise ValueError(
                f"auxiliary_layers {strange}: the network has layers 1 to {len(self.patches)}"
            )
        if self.backbone == "inception_v3" and self.look < 75:
            raise ValueError(f"look {self.look} px: inception_v3 needs 75 px or more")
        return self

    def finest_mpp(self, extent_um: float) -> float:
        """Return that of the smallest window that the last layer may choose."""
        smallest_um = extent_um * self.least ** len(self.patches)
        return max(self.mpp, smallest_um / self.look)


def prepare(pictures: Tensor, model: Model[Any]) -> Tensor:
    """Make ``(N, 3, H, W)`` uint8 RGB what the network takes: without grey, normalised."""
    return normalize(remove_grey(pictures), model.mean, model.std)


def build(config: MagNetConfig, n_classes: int) -> nn.Module:
    """Build the network, with random weights; attention is even at first."""
    n_outputs = outputs(n_classes)
    auxiliary = {
        layer: WindowClassifier(*_features(config.auxiliary), n_outputs)
        for layer in config.auxiliary_layers
        if layer <= len(config.patches)
    }
    judge = Judge(
        *_features(config.backbone),
        n_outputs,
        config.state,
        dropout=config.dropout,
        evidence=config.evidence,
    )
    names = (
        "patches glance look width frozen shared gain least reach centre inhibition tissue radius "
        "sees"
    )
    return MagNet(judge, auxiliary, **{name: getattr(config, name) for name in names.split()})


def _features(name: Network) -> tuple[nn.Module, int]:
    features = SmallFeatures() if name == "small" else build_features(name)
    return features, features.dim


def infer(model: Model[MagNetConfig], view: View) -> Iterator[Event]:
    """Follow the network through one slide.

    Draws ``probability``: what each window of the last layer is taken for on its own, in the place
    of the window, smaller ones over larger ones; where nothing was looked at, nothing. And
    ``attention``: that of the first layer, the mean of its patches. Both end with the region. The
    trajectory has all windows.

    Raises
    ------
    SlideError
        No tissue.
    """
    check_tissue(view)
    eye, config = Eye(view), model.config
    view.total(1 + sum(prod(config.patches[:n]) for n in range(1, len(config.patches) + 1)))

    def look(windows: Tensor, size: int, margin: int) -> Tensor:
        assert margin == 0  # only training looks beyond a window
        pictures = [eye.read(window, size) for window in windows[0].tolist()]
        view.step(len(pictures))
        stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
        return prepare(stacked.to(windows.device), model)[None]

    first = torch.tensor([[[1.0, 0.0, 0.0]]], device=model.device)
    finest = first.new_tensor([eye.finest(config.look, config.mpp)])
    seen: Seen = model.module(look(first, config.glance, 0)[0], look, finest=finest)
    probabilities = class_probabilities(seen.logits[0].float()).cpu().numpy()
    yield from _drawn(seen, eye, view.size)
    yield _trajectory(seen, eye, model, probabilities)
    yield SlideScore(tuple(probabilities[-1].tolist()))


def _drawn(seen: Seen, eye: Eye, size: Size) -> Iterator[Patch]:
    """Draw attention and the last layer's windows, within the region: beyond, it saw padding."""
    region = eye.view.region
    heat = seen.attention[0][0].float().mean(0).cpu().numpy()
    yield from _within("attention", eye.box((1.0, 0.0, 0.0)), heat[None], region, size)
    windows = seen.windows[-1][0].double().cpu().numpy()
    values = class_probabilities(seen.alone[0].float()).cpu().numpy()
    steps = (np.arange(_RASTER) * 2 + 1) / _RASTER - 1
    for window, value in zip(windows, values, strict=True):
        box = eye.box(window.tolist())
        if not box.intersect(region).area:
            continue
        across, down = window[1] + window[0] * steps, window[2] + window[0] * steps
        raster = np.broadcast_to(value[:, None, None], (len(value), _RASTER, _RASTER)).copy()
        for scale, x, y in windows[windows[:, 0] < window[0]]:
            columns, rows = np.abs(across - x) < scale, np.abs(down - y) < scale
            raster[:, rows[:, None] & columns] = np.nan
        yield from _within("probability", box, raster, region, size)


def _within(
    name: str, box: Box, raster: NDArray[np.float32], region: Box, size: Size
) -> Iterator[Patch]:
    """Draw the part of a raster ``(C, h, w)`` that lies in a region; a map ends with the slide.

    Cells that the region's border cuts are patches of their own, as a patch has cells of one size.
    """
    height, width = raster.shape[1:]
    left, right = _ends(region.x, region.right, size.width)
    across = _spans(box.x, box.w, width, left, right)
    top, bottom = _ends(region.y, region.bottom, size.height)
    for y, lower, rows in _spans(box.y, box.h, height, top, bottom):
        for x, further, columns in across:
            place = np.array([[x, y, further - x, lower - y]])
            yield Patch(name, place, raster[None, :, rows, columns])


def _ends(low: float, high: float, length: float) -> tuple[float, float]:
    """Return the ends of a region along an axis, without those that are the slide's."""
    return (low if low > 0 else -np.inf), (high if high < length else np.inf)


def _spans(
    start: float, length: float, cells: int, low: float, high: float
) -> list[tuple[float, float, slice]]:
    """Return start and stop of the cells within ``low..high``, whole ones together, and which."""
    edges = np.linspace(start, start + length, cells + 1)
    edges = edges.clip(low, high)
    share = np.diff(edges) * cells / length
    whole = np.flatnonzero(share > 1 - _ROUNDING)
    cut = np.flatnonzero((share > _ROUNDING) & (share <= 1 - _ROUNDING))
    spans = [slice(n, n + 1) for n in cut.tolist()]
    if len(whole):
        spans.append(slice(int(whole[0]), int(whole[-1]) + 1))
    return [(float(edges[s.start]), float(edges[s.stop]), s) for s in spans]


def _trajectory(
    seen: Seen, eye: Eye, model: Model[MagNetConfig], probabilities: NDArray[np.float32]
) -> Trajectory:
    """Order the windows depth first, as the classifier takes in those of the last layer."""
    config = model.config
    layers = [np.array([[1.0, 0.0, 0.0]]), *(w[0].double().cpu().numpy() for w in seen.windows)]
    windows: list[Window] = []
    said: tuple[float, ...] | None = None

    def visit(layer: int, number: int, parent: int | None) -> None:
        nonlocal said
        last = layer == len(config.patches)
        if last:
            said = tuple(probabilities[number].clip(0, 1).tolist())
        place = layers[layer][number].tolist()
        size = config.look if last else config.glance
        windows.append(Window(layer, parent, eye.box(place), eye.mpp(place, size), said))
        here = len(windows) - 1
        for patch in range(0 if last else config.patches[layer]):
            visit(layer + 1, number * config.patches[layer] + patch, here)

    visit(0, 0, None)
    return Trajectory(tuple(windows), model.classes, eye.view.mpp)


def maps(config: MagNetConfig, classes: Sequence[str]) -> Sequence[MapSpec]:
    """Return what windows were taken for, and where the first layer's attention lay."""
    return (
        MapSpec("probability", "probability", tuple(classes), config.map_mpp),
        MapSpec("attention", "attention", ("attention",), config.map_mpp),
    )


FAMILY = Family(
    name="magnet",
    title="Magnifying network",
    about="Chooses where to zoom in, and reads those parts of the slide in detail.",
    config=MagNetConfig,
    build=build,
    infer=infer,
    maps=maps,
    trainer="slidelens.families.magnet_train:MagNetTask",
    auto_bf16=False,
    version=2,
)
