"""Locally supervised learning: a network in modules, each with its own loss.

A whole slide goes through module after module. Each learns from a classifier of its own, and from
having to keep what it was given (:class:`~slidelens.nn.local_heads.Reconstruction`); no gradient
crosses from one to the next, so that a training step needs the memory of one module.

Source: Zhang et al., "Gigapixel whole-slide images classification using locally supervised
learning" (MICCAI 2022), section 2. What the paper leaves open is said to be ours.
"""

from __future__ import annotations

from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slidelens.errors import StreamingError
from slidelens.nn.backbones import build_features
from slidelens.nn.frozen import FrozenNorm, freeze_norms
from slidelens.nn.local_cuts import (
    blocks_of,
    cut_points,
    first_convolution,
    measure,
    module_shapes,
)
from slidelens.nn.local_heads import AttentionHead, Reconstruction, kept
from slidelens.nn.local_stream import ALL, STEM_TILE, read_slide
from slidelens.nn.pixels import IMAGENET_MEAN, IMAGENET_STD
from slidelens.nn.receptive import ReceptiveField
from slidelens.nn.streaming import StreamingTrunk
from slidelens.nn.streaming.trace import trace
from slidelens.steps import finish

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slidelens.nn.backbones import BackboneName
    from slidelens.nn.local_heads import Reading
    from slidelens.nn.relay import Relay

__all__ = ["LocalNetwork"]

_INNER = 128


class LocalNetwork(nn.Module):
    """A backbone cut into modules, each with a classifier and, except the last, a reconstruction.

    The stem is frozen, and so are all batch norms (paper: "all the batch normalization layers were
    frozen as well"). The backbone stays in eval mode.

    Parameters
    ----------
    backbone
        One of torchvision's networks.
    n_classes
        Logits of each head.
    modules
        K; 1 is end-to-end training.
    stem_stride
        Stride of the first convolution (the paper's is 3 for ResNet-34); None for the network's.
    patches
        Patches to reconstruct per step; 0 for no reconstruction.
    patch_share
        Largest share of a map that they cover together; see
        :class:`~slidelens.nn.local_heads.Reconstruction`.
    head_width
        Channels of the heads; None for those of the module's map (the paper).
    mean_windows
        Whether heads take the mean of each window, or convolve it (the paper's code).
    additive
        Whether heads weigh the logits of their windows, or their vectors (the paper).
    least_window
        Smallest side of a head's window in image px; by default it is 9, 7 or 5 cells.

    Raises
    ------
    ModelError
        More modules than the network has blocks.

    Examples
    --------
    One training step of all modules:

    >>> network = LocalNetwork("resnet18", 2, modules=4)  # doctest: +SKIP
    >>> relay = Relay(image, label)  # doctest: +SKIP
    >>> for index in range(4):  # doctest: +SKIP
    ...     network(relay, index).backward()
    """

    def __init__(
        self,
        backbone: BackboneName,
        n_classes: int,
        modules: int = 4,
        *,
        stem_stride: int | None = None,
        patches: int = 10,
        patch_share: float = 0.1,
        head_width: int | None = None,
        mean_windows: bool = True,
        additive: bool = False,
        least_window: int = 0,
    ) -> None:
        super().__init__()
        self.features = build_features(backbone)
        self.features.norm = nn.Identity()  # what ConvNeXt applies to the pooled vector
        freeze_norms(self.features.trunk)
        stem, blocks = blocks_of(self.features.trunk)
        if stem_stride is not None:
            first_convolution(self.features.trunk).stride = (stem_stride, stem_stride)
        # Plain sequences over layers that `features` owns: lists, so that nothing is owned twice.
        self._stem = [nn.Sequential(*stem).requires_grad_(False)]
        self._parts: list[nn.Sequential] = []
        for count in cut_points(backbone, modules):
            self._parts.append(nn.Sequential(*(layer for b in blocks[:count] for layer in b)))
            del blocks[:count]
        self.shapes = module_shapes(backbone, modules, stem_stride, least_window)
        self.heads = nn.ModuleList(
            AttentionHead(
                shape.channels,
                n_classes,
                window=shape.window,
                **_sizes(head_width or shape.channels, last=shape is self.shapes[-1]),
                mean=mean_windows,
                additive=additive,
            )
            for shape in self.shapes
        )
        self._strides = [trace(self.stem.eval()).field[0].stride, *(s.stride for s in self.shapes)]
        channels = [measure(backbone).stem.channels, *(s.channels for s in self.shapes)]
        self.decoders = nn.ModuleList(
            Reconstruction(
                shape.channels,
                channels[i],
                scale=shape.stride // self._strides[i],
                side=shape.side,
                patches=patches,
                share=patch_share,
            )
            for i, shape in enumerate(self.shapes[:-1])
            if patches
        )
        self._trunks: dict[tuple[object, ...], StreamingTrunk] = {}
        self.features.eval()

    @property
    def parts(self) -> list[nn.Sequential]:
        """The modules, which share the weights of :attr:`features`."""
        return list(self._parts)

    @property
    def stem(self) -> nn.Sequential:
        """The frozen layers before the first module."""
        return self._stem[0]

    @cached_property
    def streams(self) -> bool:
        """Whether tiles of a map can be computed on their own.

        Squeeze-and-excitation (MobileNetV3, EfficientNet) depends on the whole slide.
        """
        try:
            for part in self._parts:
                trace(part)
        except StreamingError:
            return False
        return True

    @cached_property
    def fields(self) -> list[tuple[ReceptiveField, ReceptiveField]]:
        """Receptive field of a cell of each module's map, along y and x, in image px.

        For layers that depend on the whole slide, the field is that of a cell alone.
        """
        if not self.streams:
            return [(ReceptiveField(s.stride, 0, s.stride - 1),) * 2 for s in self.shapes]
        layers = [*self.stem]
        fields = []
        for part in self._parts:
            layers += [*part]
            fields.append(trace(nn.Sequential(*layers)).field)
        return fields

    @cached_property
    def lost(self) -> tuple[int, int]:
        """Cells missing in the last map along y and x, compared to the image's strides."""
        if not self.streams:
            return 0, 0
        return trace(nn.Sequential(*self.stem, *(layer for p in self._parts for layer in p))).lost

    def train(self, mode: bool = True) -> LocalNetwork:
        """Set the mode of the heads; the backbone stays in eval mode."""
        super().train(mode)
        self.features.eval()
        return self

    def forward(
        self,
        relay: Relay,
        index: int | None = None,
        *,
        learns: bool = True,
        means: bool = False,
    ) -> Tensor | list[Reading] | list[Tensor] | None:
        """Train one module on the map of the previous one, or run all on a slide.

        Both are one method, since a trainer wraps ``forward``.

        Parameters
        ----------
        relay
            The slide. It then holds the module's map for the next.
        index
            Of the module, from 0. Call ``backward`` before the next: the graph of one module goes
            before that of the next is made. None: read the slide with all heads, without a graph.
        learns
            False: only hand on, without a graph.
        means
            Only look at a slide as heads of means do, which can learn from that while all modules
            stay as they are (:meth:`AttentionHead.score`).

        Returns
        -------
        The module's loss, averaged over the batch; what each head reads; None for a module that
        only hands on; the means of each head's windows that have tissue, ``(N, C, n)``.
        """
        if means:
            return self._means(relay)
        if index is None:
            return finish(read_slide(self, relay))
        given = self.stem_features(relay) if index == 0 else relay.features
        assert given is not None
        if not learns:
            with torch.no_grad():
                relay.features = self._run(index, given, relay.tile)
            return None
        made = self._run(index, given, relay.tile)
        tissue = self.tissue(relay, index, made.shape[2], made.shape[3])
        logits = self.heads[index](made, tissue)
        assert relay.label is not None
        loss = F.cross_entropy(logits, relay.label, label_smoothing=relay.smoothing)
        if index < len(self.decoders):
            loss = loss + relay.alpha * self.decoders[index](made, given)
        relay.features, relay.logits = made.detach(), logits.detach()
        return loss

    def own_parameters(self, index: int) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return the parameters that module ``index`` trains: its own, and its auxiliary ones."""
        auxiliary = list(self.heads[index].parameters())
        if index < len(self.decoders):
            auxiliary += self.decoders[index].parameters()
        part = self._parts[index]
        norms = {id(p) for m in part.modules() if isinstance(m, FrozenNorm) for p in m.parameters()}
        return [p for p in part.parameters() if id(p) not in norms], auxiliary

    @torch.no_grad()
    def stem_features(self, relay: Relay) -> Tensor:
        """Return the frozen stem's features of the whole image, ``(N, C, H, W)``."""
        wide = next(self.parameters()).is_cuda
        trunk = self.trunk(None, STEM_TILE, relay.mean, relay.std, wide=wide)
        features: Tensor = trunk(relay.image, relay.mask)
        return features

    def trunk(
        self,
        index: int | None,
        tile: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        *,
        wide: bool = False,
    ) -> StreamingTrunk:
        """Return module ``index`` (None: the stem), streamed.

        ``tile`` is the height of a tile in cells of its own input. ``wide``: tiles are four times
        as wide, and where it runs on a GPU as wide as the image.
        """
        key = (index, wide, tile, mean, std)
        trunk = self._trunks.get(key)
        if trunk is None:
            module = self.stem if index is None else self._parts[index]
            columns = tile if index is None else self._width_of(index, tile)
            if wide:
                columns = ALL if next(self.parameters()).is_cuda else 4 * columns
            trunk = StreamingTrunk(
                module.eval(), (tile, columns), scheme="seam", mean=mean, std=std
            )
            kept = {k: v for k, v in self._trunks.items() if k[:2] != key[:2]}
            self._trunks = {**kept, key: trunk}  # other threads may ask for other tiles
        return trunk

    def tile_of(self, index: int, tile: int) -> int:
        """Return the height of a tile of module ``index``'s input, in its cells.

        ``tile`` is in image px; whole cells of what the module makes, for speed.
        """
        before, own = self._strides[index], self._strides[index + 1]
        return max(tile // own, 1) * own // before

    def _width_of(self, index: int, tile: int) -> int:
        """Return the width of a tile that is ``tile`` cells high, in cells of the input.

        Deeper modules make fewer values of a pixel than the first: their tiles are as much wider,
        for the same memory, and for more speed, since all of many weights are read for each tile.
        """
        first, here = self.shapes[0], self.shapes[index]
        more = here.stride**2 * first.channels / (first.stride**2 * here.channels)
        own = here.stride // self._strides[index]
        return int(tile * more) // own * own

    def tissue(self, relay: Relay, index: int, rows: int, columns: int) -> Tensor | None:
        """Return the numbers of the windows of module ``index``'s map that have tissue, or None.

        ``rows`` and ``columns`` are the map's, in cells.
        """
        shape = self.shapes[index]
        grid = (ceil(rows / shape.window), ceil(columns / shape.window))
        found = relay.windows_of_tissue(self.start_of(index), shape.cell, grid)
        return None if found is None else found.to(next(self.parameters()).device)

    def start_of(self, index: int) -> tuple[float, float]:
        """Return top and left of module ``index``'s map, in px of the image.

        A cell is centred on its receptive field.
        """
        stride = self.shapes[index].stride
        y, x = ((field.first + field.last + 1 - stride) / 2 for field in self.fields[index])
        return y, x

    @torch.no_grad()
    def _means(self, relay: Relay) -> list[Tensor]:
        made = []
        features = self.stem_features(relay)
        for index, head in enumerate(self.heads):
            features = self._run(index, features, relay.tile)
            assert isinstance(head, AttentionHead)
            tissue = self.tissue(relay, index, features.shape[2], features.shape[3])
            made.append(kept(head.windows(features), tissue))
        return made

    def _run(self, index: int, given: Tensor, tile: int) -> Tensor:
        made: Tensor
        if tile and self.streams:
            made = self.trunk(index, self.tile_of(index, tile))(given)
        else:
            made = self._parts[index](given)
        return made


def _sizes(width: int, *, last: bool) -> dict[str, int]:
    """Return the sizes of a head of so many channels."""
    hidden = max(width // (4 if last else 2), 1)
    return {"width": width, "hidden": hidden, "inner": width if last else _INNER}
