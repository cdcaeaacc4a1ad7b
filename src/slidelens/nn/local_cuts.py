"""Where to cut a network into modules that are trained on their own.

Cuts are balanced by what a training step keeps: the step's memory is that of its largest module, so
the best cut has the smallest largest module. (Multiply-adds would be the measure for modules on
devices of their own; the paper's cut of ResNet-34 follows memory too: one block of ``layer1``
weighs as much as three of ``layer3``.)
"""

from __future__ import annotations

from functools import cache
from itertools import accumulate
from math import ceil, log2
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from slidelens.errors import ModelError
from slidelens.nn.backbones import build_features
from slidelens.nn.frozen import freeze_norms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slidelens.nn.backbones import BackboneName

__all__ = [
    "Block",
    "Measured",
    "ModuleShape",
    "balanced_cuts",
    "blocks_of",
    "cut_points",
    "first_convolution",
    "measure",
    "module_shapes",
]

_SIDE = 512
"""Px of the image that blocks are measured on, without data."""

_PATCH_PX = 512
"""Side of a patch that is reconstructed, in image px of a network with its own strides: the paper's
128, 64 and 32 cells."""
_FINE = 8
"""Up to this stride a head's windows are 9 cells wide, above it 7 (the paper's code)."""

_RESNET34 = (1, 1, 1, 2, 2, 3, 3, 3)
"""Residual blocks in each of the eight modules of the paper's ResNet-34."""


class Block(NamedTuple):
    """Measures of a block that need no data."""

    channels: int
    """Of its output."""
    stride: int
    """Image px per cell of its output."""
    bytes: int
    """Kept for its backward pass, in float32, of an image of 512 px."""


class Measured(NamedTuple):
    """Measures of a backbone that need no data."""

    first_stride: int
    """Of the first convolution."""
    stem: Block
    blocks: tuple[Block, ...]


def blocks_of(trunk: nn.Sequential) -> tuple[list[nn.Module], list[list[nn.Module]]]:
    """Divide a trunk into stem and blocks.

    Returns
    -------
    The layers of the stem (those before the first block: plain convolutions, norms, activations,
    poolings), and the blocks after it. A pooling or activation belongs to the block before it, so
    that a block's output is as small as possible.
    """
    layers = _layers(trunk)
    first = next((i for i, layer in enumerate(layers) if not _is_plain(layer)), len(layers))
    blocks: list[list[nn.Module]] = []
    for layer in layers[first:]:
        if blocks and not any(True for _ in layer.parameters()):
            blocks[-1].append(layer)
        else:
            blocks.append([layer])
    return layers[:first], blocks


def first_convolution(trunk: nn.Module) -> nn.Conv2d:
    """Return the first convolution of a trunk."""
    return next(part for part in trunk.modules() if isinstance(part, nn.Conv2d))


@cache
def measure(backbone: BackboneName) -> Measured:
    """Measure a backbone with its own strides, without data."""
    with torch.device("meta"):
        trunk = build_features(backbone).trunk.eval()
        freeze_norms(trunk)
        image = torch.empty(1, 3, _SIDE, _SIDE)
    stem, blocks = blocks_of(trunk)
    with torch.no_grad():
        value: Tensor = nn.Sequential(*stem)(image)
    kept = _Kept(trunk)
    found = [_block(value, 0)]
    for block in blocks:
        before = kept.bytes
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
            value = nn.Sequential(*block)(value)
        found.append(_block(value, kept.bytes - before))
    return Measured(first_convolution(trunk).stride[0], found[0], tuple(found[1:]))


def cut_points(backbone: BackboneName, modules: int) -> list[int]:
    """Return the number of blocks in each module.

    ResNet-34 in 4 or 8 modules is cut as in the paper; all others are balanced.

    Raises
    ------
    ModelError
        More modules than blocks.
    """
    blocks = measure(backbone).blocks
    if not 1 <= modules <= len(blocks):
        raise ModelError(
            f"{backbone} has {len(blocks)} blocks: it can be cut into 1 to {len(blocks)} modules, "
            f"not {modules}."
        )
    if backbone == "resnet34" and modules in (4, 8):
        group = len(_RESNET34) // modules
        return [sum(_RESNET34[i : i + group]) for i in range(0, len(_RESNET34), group)]
    return balanced_cuts([block.bytes for block in blocks], modules)


class ModuleShape(NamedTuple):
    """The output of a network's module."""

    channels: int
    stride: int
    """Image px per cell of its map."""
    window: int
    """Cells per side of a window of its head."""
    side: int
    """Of a patch to reconstruct, in cells."""

    @property
    def cell(self) -> int:
        """Side of a window in image px: the resolution of the head."""
        return self.stride * self.window


def module_shapes(
    backbone: BackboneName, modules: int, stem_stride: int | None = None, least_window: int = 0
) -> list[ModuleShape]:
    """Return the outputs of a network's modules, without building it.

    ``stem_stride`` is the stride of the first convolution, None for the network's. ``least_window``
    is the smallest side of a head's window in image px.

    Raises
    ------
    ModelError
        More modules than the network has blocks.
    """
    measured = measure(backbone)
    shapes, end = [], 0
    for number, count in enumerate(cut_points(backbone, modules), start=1):
        end += count
        channels, stride, _ = measured.blocks[end - 1]
        window = 5 if number == modules else 9 if stride <= _FINE else 7
        scaled = stride * stem_stride // measured.first_stride if stem_stride else stride
        window = max(window, ceil(least_window / scaled))
        shapes.append(ModuleShape(channels, scaled, window, max(_PATCH_PX // stride, 1)))
    return shapes


def balanced_cuts(costs: Sequence[int], parts: int) -> list[int]:
    """Cut a list of costs into non-empty parts such that the largest part is as small as possible.

    Of such cuts, the one with the smallest sum of squares. Returns the length of each part.
    """
    total = [0, *accumulate(costs)]

    @cache
    def largest(start: int, left: int) -> int:
        if left == 1:
            return total[-1] - total[start]
        return min(
            max(total[stop] - total[start], largest(stop, left - 1))
            for stop in range(start + 1, len(costs) - left + 2)
        )

    @cache
    def evenest(start: int, left: int) -> tuple[float, tuple[int, ...]]:
        if left == 1:
            rest = total[-1] - total[start]
            return (rest**2 if rest <= bound else float("inf")), (len(costs) - start,)
        return min(
            ((total[stop] - total[start]) ** 2 + squares, (stop - start, *lengths))
            for stop in range(start + 1, len(costs) - left + 2)
            if total[stop] - total[start] <= bound
            for squares, lengths in [evenest(stop, left - 1)]
        )

    bound = largest(0, parts)
    return list(evenest(0, parts)[1])


def _layers(module: nn.Module) -> list[nn.Module]:
    """Return the parts of nested plain sequences, in execution order.

    A sequence of bare layers (ConvNeXt's norm and convolution between stages) stays together.
    """
    found: list[nn.Module] = []
    for child in module.children():
        nested = type(child) is nn.Sequential and any(any(c.children()) for c in child)
        found += _layers(child) if nested else [child]
    return found


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is no block, as it holds at most one convolution."""
    return sum(isinstance(part, nn.Conv2d | nn.Linear) for part in layer.modules()) <= 1


def _block(value: Tensor, kept: int) -> Block:
    # Rounded to a power of two: a network without padding makes 31 cells of 512 px.
    return Block(value.shape[1], 2 ** round(log2(_SIDE / value.shape[2])), kept)


class _Kept:
    """Counts the bytes that autograd saves, each storage once, without weights."""

    def __init__(self, module: nn.Module) -> None:
        self._own = [*module.parameters(), *module.buffers()]
        self._seen = {tensor.untyped_storage()._cdata for tensor in self._own}
        self._alive: list[Tensor] = []  # so that no address is used again
        self.bytes = 0

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._alive.append(tensor)
            self.bytes += storage.nbytes()
        return tensor
