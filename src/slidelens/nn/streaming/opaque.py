"""Modules that cannot be traced: streamed with a halo, given their receptive field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from slidelens.errors import StreamingError
from slidelens.nn.receptive import ReceptiveField, Window
from slidelens.nn.streaming.costs import Costs
from slidelens.nn.streaming.graph import LocalGraph, Node
from slidelens.nn.streaming.stand_in import stand_in
from slidelens.nn.windows import Rect, WindowOp, crop

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["opaque_graph"]


@dataclass(frozen=True)
class _OpaqueWindow(Window):
    """A whole module as a window along one axis.

    ``cells`` holds, for each remainder of the image size divided by the stride, the size of a
    small image and the number of output cells for it.
    """

    cells: dict[int, tuple[int, int]] = field(default_factory=dict)

    def size(self, n: int) -> int:
        """Return the number of output cells for ``n`` pixels."""
        small, count = self.cells[n % self.stride]
        return count + (n - small) // self.stride

    def reads(self, first: int, last: int, n: int) -> tuple[int, int]:
        """Return the pixels to read, starting at a multiple of the stride to keep cells aligned."""
        low, high = super().reads(first, last, n)
        return low // self.stride * self.stride, high


class _OpaqueOp(WindowOp):
    """A whole module as one layer."""

    def run(
        self,
        values: Tensor,
        have: Rect,
        out: Rect,
        size: tuple[int, int],
        weights: tuple[Any, ...] = (),
    ) -> tuple[Tensor, Rect]:
        """Run the module, given in place of the weights, on the pixels that ``out`` needs."""
        rows = self.y.reads(out.top, out.bottom, size[0])
        columns = self.x.reads(out.left, out.right, size[1])
        # A copy: the module may write into its input, which is a view of the user's image.
        result = weights[0](crop(values, have, Rect(*rows, *columns)).clone())
        top, left = rows[0] // self.y.stride, columns[0] // self.x.stride
        return result, Rect(top, top + result.shape[2], left, left + result.shape[3])


def opaque_graph(
    module: nn.Module, fields: tuple[ReceptiveField, ReceptiveField], channels: int
) -> tuple[LocalGraph, Costs]:
    """Make a graph of one layer: the module.

    A copy of the module is run on small images to learn its output sizes; multiply-adds are not
    counted.

    Raises
    ------
    StreamingError
        The module does not take such images, its output disagrees with the stride, or it is
        TorchScript.
    """
    if any(isinstance(layer, torch.jit.ScriptModule) for layer in module.modules()):
        raise StreamingError(
            f"{type(module).__name__} is or has a TorchScript module, whose weights tiles cannot "
            "be given: stream the Python module that it was made of"
        )
    windows = []
    features = 0
    own = {name: buffer.clone() for name, buffer in module.named_buffers()}
    probed = stand_in(module, own, code=True)
    for axis, f in enumerate(fields):
        cells: dict[int, tuple[int, int]] = {}
        start = -(-2 * f.size // f.stride) * f.stride
        for n in range(start, start + f.stride):
            shape = _probe(probed, channels, n, axis, fields[1 - axis])
            cells[n % f.stride] = (n, shape[2 + axis])
            features = shape[1]
        longer = _probe(probed, channels, start + f.stride, axis, fields[1 - axis])[2 + axis]
        if longer != cells[0][1] + 1:
            raise StreamingError(
                f"{type(module).__name__} has not the stride {f.stride} that was stated: "
                f"{f.stride} more pixels give {longer - cells[0][1]} more cells"
            )
        windows.append(_OpaqueWindow(f.size, f.stride, before=-f.first, cells=cells))
    op = _OpaqueOp("opaque", windows[0], windows[1])
    name = type(module).__name__
    layer = Node(1, name, "window", inputs=(0,), window=op, module="")
    graph = LocalGraph([Node(0, "input", "input"), layer], 1)
    return graph, Costs([channels, features], [0, 0])


def _probe(
    module: nn.Module, channels: int, n: int, axis: int, across: ReceptiveField
) -> tuple[int, ...]:
    like = next(module.parameters(), torch.zeros(()))
    size = [across.size, across.size]
    size[axis] = n
    image = torch.zeros((1, channels, *size), dtype=like.dtype, device=like.device)
    try:
        with torch.no_grad():
            result = module(image)
    except RuntimeError as error:
        raise StreamingError(
            f"{type(module).__name__} does not take an image of {size[0]} x {size[1]} px, which "
            f"the stated receptive field needs: {error}"
        ) from error
    if not isinstance(result, torch.Tensor) or result.dim() != 4:
        raise StreamingError(f"{type(module).__name__} does not return one map (N, C, H, W)")
    return tuple(result.shape)
