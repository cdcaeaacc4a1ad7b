"""A streamed classifier of whole images: backbone, global pooling, one linear layer.

Source: streaming-prostate-2020, section IV.A: ResNet-34 streamed over its first 28 layers, the rest
of the network on the whole feature map, global pooling, one linear layer.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slidelens.errors import ModelError
from slidelens.nn.backbones import build_features, load_weights
from slidelens.nn.fine_stem import refine
from slidelens.nn.mil import outputs, soft_maximum
from slidelens.nn.pixels import IMAGENET_MEAN, IMAGENET_STD
from slidelens.nn.precision import at_least_single, without_autocast
from slidelens.nn.streaming import StreamingTrunk
from slidelens.nn.streaming.costs import count_costs
from slidelens.nn.streaming.trace import trace

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from slidelens.nn.backbones import BackboneName, LoadReport
    from slidelens.nn.source import LazyImage

__all__ = ["Pooling", "SlideClassifier", "Streaming", "parts", "split"]

Pooling = Literal["max", "mean", "lse"]


class Streaming(NamedTuple):
    """How the image goes through the network: it changes time and memory, not the result."""

    upto: str = ""
    """Last layer that is streamed; empty: the whole trunk. The rest sees the whole feature map."""
    tile: int = 1024
    """Side of a tile in px; 0 takes the largest for the memory."""
    scheme: Literal["auto", "seam", "halo"] = "auto"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


class SlideClassifier(nn.Module):
    """Images of any size to one row of logits each.

    The network stays in eval mode: batch norms keep their mean and variance, scale and shift train
    (paper: "we froze the batch normalization mean and variance").

    Parameters
    ----------
    backbone
        Network of torchvision.
    n_classes
        Two classes make one logit, that of the last; more make one each.
    layers
        Last layer of the backbone that is used, such as ``layer3`` or ``features.7``; empty: all.
    pooling
        Over all cells of the feature map: ``max`` of each channel (the paper's), ``mean``, or
        ``lse``: the head scores each cell, and the image's score is the soft maximum of these
        (log-sum-exp, Pinheiro & Collobert 2015). Ours, for few slides: see ``docs/streaming.md``.
    sharpness
        Of ``lse``: near 0 it is the mean, large it is the maximum.
    context
        Side, in cells, of the neighbourhood over which the feature map is averaged before; 1 is the
        paper's. Ours, for shallow networks: they were trained to be averaged over an image, and the
        maximum of single cells is that of their outliers.
    fine
        The first layer sees the image as if it were enlarged twice: :mod:`slidelens.nn.fine_stem`.

    Raises
    ------
    ModelError
        No such layer, or a first layer that cannot be made fine.
    StreamingError
        A layer that cannot be streamed.
    """

    def __init__(
        self,
        backbone: BackboneName,
        n_classes: int,
        *,
        layers: str = "",
        pooling: Pooling = "max",
        sharpness: float = 4.0,
        context: int = 1,
        fine: bool = False,
    ) -> None:
        super().__init__()
        features = build_features(backbone)
        self.features = refine(features) if fine else features
        self.fine = fine
        self.pooling: Pooling = pooling
        self.sharpness = sharpness
        self.context = context
        if layers:
            self.features.trunk, behind = split(self.features.trunk, layers)
            if len(behind):
                self.features.norm = nn.Identity()
        self.features.eval()
        graph = trace(self.features.trunk)
        self.field = graph.field
        """Receptive field of a cell of the feature map, along y and x."""
        self.lost = graph.lost
        """Cells along y and x that are fewer than an image's strides."""
        self.features.dim = count_costs(graph, self.features.trunk, 3).channels[graph.output]
        self.head = nn.Linear(self.features.dim, outputs(n_classes))
        self._streamed: dict[Streaming, tuple[StreamingTrunk, nn.Sequential]] = {}

    def load_backbone(self, weights: str | Path) -> LoadReport:
        """Load ImageNet weights, as :func:`slidelens.nn.backbones.load_weights` does."""
        if not self.fine:
            return load_weights(self.features, weights)
        plain = build_features(self.features.name)
        report = load_weights(plain, weights)
        found = refine(plain).state_dict()
        self.features.load_state_dict({name: found[name] for name in self.features.state_dict()})
        return report

    def train(self, mode: bool = True) -> SlideClassifier:
        """Set the mode of the head; the backbone stays in eval mode."""
        super().train(mode)
        self.features.eval()
        return self

    def forward(
        self,
        image: Tensor | LazyImage,
        mask: Tensor | None = None,
        streaming: Streaming = Streaming(),  # noqa: B008  (immutable)
        *,
        vectors: bool = False,
    ) -> Tensor:
        """Return the logits ``(N, K)``, or with ``vectors`` what they are made of: :meth:`pooled`.

        ``image`` and ``mask`` are as :meth:`StreamingTrunk.forward` takes them.
        """
        pooled = self.pooled(self.cells(image, mask, streaming))
        return pooled if vectors else self.score(pooled)

    def cells(self, image: Tensor | LazyImage, mask: Tensor | None, streaming: Streaming) -> Tensor:
        """Return the feature map ``(N, C, h, w)``."""
        trunk, rest = self.streamed(streaming)
        return self.averaged(rest(trunk(image, mask)))

    def averaged(self, cells: Tensor) -> Tensor:
        """Return the feature map averaged over each cell's neighbourhood (inside the map)."""
        side = self.context
        if side == 1:
            return cells
        return F.avg_pool2d(cells, side, 1, side // 2, count_include_pad=False)

    def pooled(self, cells: Tensor) -> Tensor:
        """Return what the score is made of ``(N, C, h, w)``: one vector; all cells for ``lse``."""
        if self.pooling == "lse":
            return cells
        if self.pooling == "mean":
            return cells.mean(
                (2, 3), keepdim=True, dtype=torch.promote_types(cells.dtype, torch.float32)
            )
        return cells.amax((2, 3), keepdim=True)

    def score(self, pooled: Tensor) -> Tensor:
        """Return the logits ``(N, K)`` of what was pooled, in float32 or better.

        Also under autocast: of logits that were rounded to 8 bits, those of many slides are alike.
        """
        if self.pooling == "lse":
            logits = self.evidence(pooled).flatten(2)
            return soft_maximum(at_least_single(logits), self.sharpness, 2)
        with without_autocast(pooled.device):
            return self.evidence(at_least_single(pooled))[..., 0, 0]

    def evidence(self, cells: Tensor) -> Tensor:
        """Return the logits ``(N, K, h, w)`` that an image of each cell alone would have.

        With mean pooling this is the class activation map of Zhou et al. 2016.
        """
        vectors: Tensor = self.features.norm(cells)
        logits: Tensor = self.head(vectors.movedim(1, -1))
        return logits.movedim(-1, 1)

    def streamed(self, streaming: Streaming) -> tuple[StreamingTrunk, nn.Sequential]:
        """Return the streamed part of the trunk and the rest, which share this module's weights."""
        parts = self._streamed.get(streaming)
        if parts is None:
            first, rest = self.features.trunk, nn.Sequential()
            if streaming.upto:
                first, rest = split(first, streaming.upto)
            trunk = StreamingTrunk(
                first,
                streaming.tile or "auto",
                scheme=streaming.scheme,
                mean=streaming.mean,
                std=streaming.std,
            )
            parts = (trunk, rest)
            self._streamed = {streaming: parts}  # not a submodule: its weights are ours
        return parts


def split(trunk: nn.Sequential, layer: str) -> tuple[nn.Sequential, nn.Sequential]:
    """Cut a trunk of nested sequences behind a layer; both halves keep the names of their parts.

    Raises
    ------
    ModelError
        No such layer; its message lists those where the trunk can be cut.
    """
    names = [name for name, _ in parts(trunk)]
    if layer not in names:
        raise ModelError(f"no layer {layer!r} to cut at; there are {', '.join(names)}.")
    name, _, inner = layer.partition(".")
    before: OrderedDict[str, nn.Module] = OrderedDict()
    behind: OrderedDict[str, nn.Module] = OrderedDict()
    into = before
    for key, child in trunk.named_children():
        if key == name and inner:
            assert isinstance(child, nn.Sequential)
            before[key], rest = split(child, inner)
            if len(rest):
                behind[key] = rest
        else:
            into[key] = child
        if key == name:
            into = behind
    return nn.Sequential(before), nn.Sequential(behind)


def parts(trunk: nn.Sequential, prefix: str = "") -> Sequence[tuple[str, nn.Module]]:
    """Return the parts of nested sequences in the order they run, a sequence after its parts."""
    found: list[tuple[str, nn.Module]] = []
    for key, child in trunk.named_children():
        if isinstance(child, nn.Sequential):
            found += parts(child, f"{prefix}{key}.")
        found.append((f"{prefix}{key}", child))
    return found
