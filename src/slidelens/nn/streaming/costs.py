"""Channels and multiply-adds of a network, counted without data."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slidelens.errors import StreamingError
from slidelens.nn.streaming.stand_in import stand_in
from slidelens.nn.windows import Rect, crop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slidelens.nn.streaming.graph import LocalGraph, Node

__all__ = ["Costs", "count_costs", "image_channels"]


class Costs(NamedTuple):
    """For each node: channels of its value, and multiply-adds per cell."""

    channels: list[int]
    multiply_adds: list[int]


def image_channels(graph: LocalGraph, module: nn.Module) -> int:
    """Return the number of image channels of a network: its first convolution's, or 3."""
    for node in graph.nodes:
        if node.window is not None and node.window.kind == "conv" and node.module is not None:
            return int(getattr(module.get_submodule(node.module), "in_channels", 3))
    return 3


def count_costs(graph: LocalGraph, module: nn.Module, channels: int) -> Costs:
    """Count channels and multiply-adds by running the graph on tensors without data.

    Raises
    ------
    StreamingError
        The network does not take an image with this many channels.
    """
    try:
        return _count(graph, module, channels, _smallest_image(graph))
    except RuntimeError as error:
        raise StreamingError(
            f"the network does not take an image of {channels} channels: {error}"
        ) from error


def _smallest_image(graph: LocalGraph) -> tuple[int, int]:
    for exponent in range(20):
        side = 2**exponent
        try:
            graph.sizes(0, side), graph.sizes(1, side)
        except StreamingError:
            continue
        return side, side
    raise StreamingError("the network takes no image up to a million px wide")


def _count(graph: LocalGraph, module: nn.Module, channels: int, size: tuple[int, int]) -> Costs:
    named = {
        name: torch.empty_like(value, device="meta")
        for name, value in (*module.named_parameters(), *module.named_buffers())
    }
    dtype = next((v.dtype for v in named.values() if v.is_floating_point()), torch.float32)
    sizes = tuple(zip(graph.sizes(0, size[0]), graph.sizes(1, size[1]), strict=True))
    result = Costs([], [])

    root = stand_in(module, named, code=graph.opaque)
    values: dict[int, Tensor] = {}
    with torch.no_grad():
        for node in graph.nodes:
            i, weights = node.index, node.window_weights(root, values)
            if node.kind == "input":
                values[i] = torch.empty((1, channels, *size), device="meta", dtype=dtype)
            elif node.window is not None:
                source, whole = node.inputs[0], Rect(0, sizes[i][0], 0, sizes[i][1])
                have = Rect(0, sizes[source][0], 0, sizes[source][1])
                value, covers = node.window.run(values[source], have, whole, sizes[source], weights)
                values[i] = crop(value, covers, whole)
            else:
                assert node.call is not None
                value = node.call.run(root, values)
                values[i] = value.to("meta") if isinstance(value, Tensor) else value
            result.channels.append(
                0 if node.kind == "constant" else values[i].shape[node.roles.index("c")]
            )
            result.multiply_adds.append(_per_cell(node, root, values, weights))
    return result


def _per_cell(
    node: Node, root: nn.Module, values: dict[int, Tensor], weights: Sequence[Tensor | None]
) -> int:
    """Multiply-adds of one cell: those of convolutions and linear layers, which are nearly all."""
    if weights and weights[0] is not None:
        return weights[0].numel()
    if node.kind != "local" or node.call is None:
        return 0
    if node.call.target is F.linear:
        return values[node.constants[0]].numel()
    layer = root.get_submodule(node.module) if node.module is not None else None
    return layer.weight.numel() if isinstance(layer, nn.Linear) else 0
