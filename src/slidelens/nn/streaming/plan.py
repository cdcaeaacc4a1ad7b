"""Plan the streaming of an image: tiles, bytes and multiply-adds."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from math import ceil, prod
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, Literal

import torch

from slidelens.errors import StreamingError
from slidelens.nn.streaming.layout import AxisLayout, frame, halo_layout, seam_layout
from slidelens.nn.streaming.repeats import Repeats

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from torch import Tensor

    from slidelens.nn.streaming.costs import Costs
    from slidelens.nn.streaming.graph import LocalGraph, Node

__all__ = ["Planner", "StreamingPlan", "free_memory", "tile_sides", "too_little"]

Scheme = Literal["seam", "halo", "whole"]
Layout = tuple[AxisLayout, AxisLayout]

_STATUS = Struct("<2I7Q")
"""Windows' MEMORYSTATUSEX: its size, the share in use, bytes in all, available, and five more."""


@dataclass(frozen=True)
class StreamingPlan:
    """How an image will be streamed through a trunk, and the memory and work needed.

    Bytes are for one training step with batch size 1, unless noted, without the weights.
    """

    scheme: Scheme
    image: tuple[int, int]
    """Height and width, px."""
    tile: tuple[int, int]
    """Height and width of the area that a tile computes (seam) or reads (halo), px."""
    grid: tuple[int, int]
    """Rows and columns of tiles."""
    output: tuple[int, int, int]
    """Channels, height and width of the trunk's output."""
    bytes_kept: int
    """Seams, held from the forward to the backward pass."""
    bytes_tile: int
    """Estimate for one tile's graph and gradients."""
    bytes_graph: int
    """Estimate for one tile's graph alone."""
    bytes_output: int
    """The output and its gradient."""
    multiply_adds: int
    """Of one forward pass."""
    multiply_adds_whole: int
    """Of one forward pass of the module on the whole image."""
    computed: int
    """Tiles that the forward pass computes; equal tiles of masked background count once."""
    graphs: int = 1
    """Number of last tiles whose graph is kept; the backward pass recomputes the others."""

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return self.grid[0] * self.grid[1]

    @property
    def bytes(self) -> int:
        """Estimated memory of a training step, without weights and image."""
        return self.bytes_kept + self.bytes_moving + self.bytes_output

    @property
    def bytes_moving(self) -> int:
        """Estimated memory that is allocated and freed with the tiles."""
        return self.bytes_tile + (self.graphs - 1) * self.bytes_graph

    def within(self, budget: int) -> StreamingPlan:
        """Return this plan with as many graphs kept as fit into ``budget`` bytes."""
        spare = (budget - self.bytes) // max(self.bytes_graph, 1)
        return replace(self, graphs=min(self.graphs + max(spare, 0), self.tiles))

    @property
    def overhead(self) -> float:
        """Multiply-adds of the forward pass relative to the un-streamed one."""
        return self.multiply_adds / max(self.multiply_adds_whole, 1)

    def work(self, *, training: bool) -> float:
        """Multiply-adds of a step, without background tiles that the scheme skips.

        A backward pass counts as three forward passes, as it repeats the forward pass; two for
        tiles whose graph is kept. Every tile is assumed to have a gradient, as under mean pooling;
        background tiles share theirs only if tiles are independent.
        """
        share = self.computed / self.tiles
        backward = share if self.scheme == "halo" else 1.0
        known = min(self.graphs / self.tiles, backward)
        return self.multiply_adds * (share + (3 * backward - known) * training)


class Planner:
    """Plans images of any size for one trunk.

    Parameters
    ----------
    graph
        The trunk.
    costs
        Channels and multiply-adds per cell, by node.
    size
        Height and width of the image.
    itemsize
        Bytes per value of the feature maps.
    batch
        Images per batch.
    """

    def __init__(
        self, graph: LocalGraph, costs: Costs, size: tuple[int, int], itemsize: int, batch: int = 1
    ) -> None:
        self.graph, self.size, self.itemsize, self.batch = graph, size, itemsize, batch
        self.costs = costs
        self.sizes = (graph.sizes(0, size[0]), graph.sizes(1, size[1]))
        self.whole = sum(
            h * w * cost for h, w, cost in zip(*self.sizes, self.costs.multiply_adds, strict=True)
        )

    def smallest_tile(self, scheme: Scheme) -> tuple[int, int]:
        """Height and width of the smallest tile with which a scheme streams exactly."""
        fields = self.graph.field
        if scheme == "seam":
            return fields[0].stride, fields[1].stride
        return sum(fields[0].halo) + fields[0].stride, sum(fields[1].halo) + fields[1].stride

    def layout(self, scheme: Scheme, tile: tuple[int, int]) -> Layout:
        """Lay out the tiles.

        Raises
        ------
        StreamingError
            The tile is no larger than its halo; the message names the smallest that works.
        """
        if scheme != "halo":
            side = [
                min(t, n) if scheme == "seam" else n for t, n in zip(tile, self.size, strict=True)
            ]
            return (
                seam_layout(self.graph, 0, self.size[0], side[0]),
                seam_layout(self.graph, 1, self.size[1], side[1]),
            )
        axes = []
        for axis, field in enumerate(self.graph.field):
            n = self.size[axis]
            owned = (tile[axis] - sum(field.halo)) // field.stride
            if tile[axis] >= n:
                owned = self.sizes[axis][self.graph.output]
            if owned < 1:
                smallest = self.smallest_tile("halo")
                raise StreamingError(
                    f"a tile of {tile[0]} x {tile[1]} px is smaller than the halo of this network "
                    f"({sum(field.halo)} px): the smallest tile that works is {smallest[0]} x "
                    f"{smallest[1]} px; or use scheme='seam', which takes any tile"
                )
            axes.append(halo_layout(self.graph, axis, n, owned))
        return axes[0], axes[1]

    def plan(
        self, scheme: Scheme, tile: tuple[int, int], mask: Tensor | None = None
    ) -> StreamingPlan:
        """Plan one scheme and tile; ``mask`` marks background as for `Source`."""
        if tile[0] >= self.size[0] and tile[1] >= self.size[1]:
            scheme = "whole"
        rows, columns = layout = self.layout(scheme, tile)
        out = self.graph.output
        output = (self.costs.channels[out], self.sizes[0][out], self.sizes[1][out])
        unit = self.itemsize * self.batch
        held, largest = self._tile_bytes(layout)
        return StreamingPlan(
            scheme=scheme,
            image=self.size,
            tile=(min(tile[0], self.size[0]), min(tile[1], self.size[1])),
            grid=(rows.tiles, columns.tiles),
            output=output,
            bytes_kept=self._seam_cells(layout) * unit,
            bytes_tile=(held + 3 * largest) * self.batch,
            bytes_graph=held * self.batch,
            bytes_output=2 * prod(output) * unit,
            multiply_adds=self._multiply_adds(layout),
            multiply_adds_whole=self.whole,
            computed=rows.tiles * columns.tiles if mask is None else self._computed(layout, mask),
        )

    def values(self) -> tuple[int, int]:
        """Return the most numbers held by a forward pass over the whole image, and by one map.

        A feature map is held until every layer that reads it is done.
        """
        counts = [h * w * c for h, w, c in zip(*self.sizes, self.costs.channels, strict=True)]
        now = peak = 0
        for node in self.graph.nodes:
            now += counts[node.index]
            peak = max(peak, now)
            now -= sum(counts[i] for i in {*node.inputs} if self.graph.last_use[i] == node.index)
        return self.batch * peak, self.batch * max(counts)

    def _computed(self, layout: Layout, mask: Tensor) -> int:
        """Count the tiles with tissue, and the kinds of those without."""
        repeats, (rows, columns) = Repeats(self.graph, *layout), layout
        kinds: set[Hashable] = set()
        count = 0
        for at in ((r, c) for r in range(rows.tiles) for c in range(columns.tiles)):
            piece, (height, width) = frame(rows, columns, 0, *at).whole, mask.shape
            top, bottom = (n * height // self.size[0] for n in (piece.top, piece.bottom - 1))
            left, right = (n * width // self.size[1] for n in (piece.left, piece.right - 1))
            tissue = bool(mask[top : bottom + 1, left : right + 1].any())
            key = repeats.key_of(at, None if tissue else (0.0,))
            count += key is None
            kinds.add(key)
        return count + len(kinds - {None})

    def _seam_cells(self, layout: Layout) -> int:
        """Values in all seams: sum over nodes of C (h_y W (R - 1) + h_x H (C - 1))."""
        rows, columns = layout
        total = 0
        for i in (node.index for node in self.graph.kept):
            top = sum(rows.seam(i, t) for t in range(rows.tiles)) * columns.size[i]
            left = sum(columns.seam(i, t) for t in range(columns.tiles)) * rows.size[i]
            total += self.costs.channels[i] * (top + left)
        return total

    def _multiply_adds(self, layout: Layout) -> int:
        total = 0
        for node in self.graph.nodes:
            cost, i = self.costs.multiply_adds[node.index], node.index
            if cost:
                # A linear layer is computed again over its seam, a convolution is not.
                starts = [a.start if node.kind == "local" else a.first for a in layout]
                total += cost * prod(
                    sum(axis.last[i]) - sum(start[i])
                    for start, axis in zip(starts, layout, strict=True)
                )
        return total

    def _tile_bytes(self, layout: Layout) -> tuple[int, int]:
        """Estimate what autograd saves for the largest tile, and the size of its largest value.

        The backward pass holds gradients of the two largest values besides.
        """
        held, largest = 0, 0
        for node in self.graph.streamed:
            i = node.index
            area = prod(
                max(b - a for a, b in zip(axis.start[i], axis.last[i], strict=True))
                for axis in layout
            )
            value = area * self.costs.channels[i] * self.itemsize
            largest = max(largest, value)
            held += value * self._is_saved(node)
            if node.window is not None and node.window.kind == "max":
                held += area * self.costs.channels[i] * 8  # indices
        return held, largest

    def _is_saved(self, node: Node) -> bool:
        """Whether a separate tensor is held for the backward pass."""
        readers = [self.graph.nodes[i] for i in self.graph.readers[node.index]]
        if node.view or any(r.overwrites for r in readers):
            return False
        return node.kind == "local" or any(r.kind in ("window", "local") for r in readers)


def free_memory(device: torch.device) -> int:
    """Return the free memory of a device in bytes."""
    if device.type == "cuda":
        # Memory that PyTorch holds back for later is free as well.
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        status = ctypes.create_string_buffer(_STATUS.pack(_STATUS.size, *[0] * 8), _STATUS.size)
        ctypes.windll.kernel32.GlobalMemoryStatusEx(status)
        return int(_STATUS.unpack_from(status)[3])
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)


def tile_sides(planner: Planner, scheme: Scheme) -> list[tuple[int, int]]:
    """Return the tile sizes to choose from, smallest first, up to the whole image.

    Tiles are square, or adjusted so that the last ones, whose graphs may be kept, are about as
    large as the others.
    """
    side, size = max(planner.smallest_tile(scheme)), max(planner.size)
    step = max(planner.smallest_tile("seam"))
    sides = []
    while side < size:
        sides.append(side)
        side = max(side + step, side * 5 // 4 // step * step)
    if scheme != "seam":
        return [(n, n) for n in (*sides, size)]
    height, width = planner.size
    return [(_even(n, height, step), _even(n, width, step)) for n in (*sides, size)]


def _even(side: int, size: int, step: int) -> int:
    """Return the smallest multiple of ``step`` that gives as many parts as ``side``."""
    count = ceil(size / side)
    return ceil(size / count / step) * step


def too_little(
    planner: Planner, schemes: Sequence[Scheme], tile: tuple[int, int] | None, budget: int
) -> str:
    """Return an error message that names the memory needed."""
    plans = []
    for scheme in schemes:
        for side in tile_sides(planner, scheme) if tile is None else [tile]:
            with suppress(StreamingError):  # smaller than the halo
                plans.append(planner.plan(scheme, side))
    best = min(plans, key=lambda plan: plan.bytes)
    return (
        f"{'no tile' if tile is None else f'no scheme with a tile of {tile[0]} x {tile[1]} px'} "
        f"fits into {budget:,} bytes: an image of {planner.size[0]} x {planner.size[1]} px takes "
        f"at least about {best.bytes:,} ({best.scheme}, tile {best.tile[0]}); give more memory, a "
        "smaller image, or autocast to bfloat16"
    )
