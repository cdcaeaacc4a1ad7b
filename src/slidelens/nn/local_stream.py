"""Run a slide of any size through all modules at once, band by band.

Each module is streamed; its rows go to its head and to the next module as soon as they are done,
and go when both have read them. No map is ever whole: memory is a band of rows per module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from slidelens.nn.side_by_side import side_by_side
from slidelens.nn.source import Source
from slidelens.nn.windows import joined

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from torch import nn

    from slidelens.nn.local_heads import AttentionHead, Reading
    from slidelens.nn.relay import Relay
    from slidelens.nn.streaming import StreamingTrunk
    from slidelens.nn.streaming.tape import Band
    from slidelens.nn.windows import Rect

__all__ = ["ALL", "STEM_TILE", "Modules", "fits_whole", "read_slide"]

ALL = 1 << 30
"""Side of a tile that takes any image in one piece."""
STEM_TILE = 1024
"""Px of the image that the stem sees at once where the modules see all of it: its output at full
resolution is four times what it hands on."""
_MOST_VALUES = 2**31


class Modules(Protocol):
    """The members of a :class:`~slidelens.nn.local.LocalNetwork` used here."""

    heads: nn.ModuleList

    @property
    def parts(self) -> list[nn.Sequential]:
        """The modules."""

    @property
    def streams(self) -> bool:
        """Whether tiles of a map can be computed on their own."""

    def stem_features(self, relay: Relay) -> Tensor:
        """Return the stem's features of the whole image."""

    def trunk(
        self,
        index: int | None,
        tile: int,
        mean: Sequence[float] = ...,
        std: Sequence[float] = ...,
        *,
        wide: bool = ...,
    ) -> StreamingTrunk:
        """Return a module (None: the stem), streamed; ``tile`` in px of its own input."""

    def tile_of(self, index: int, tile: int) -> int:
        """Return the side of a tile of a module's input, in its cells."""

    def tissue(self, relay: Relay, index: int, rows: int, columns: int) -> Tensor | None:
        """Return the indices of the windows of a module's map with tissue; None for all."""


@torch.no_grad()
def read_slide(network: Modules, relay: Relay) -> Generator[float, None, list[Reading]]:
    """Run a slide through a network without training it.

    Parameters
    ----------
    network
        In eval mode.
    relay
        The slide; its ``tile`` is the side in image px of what is computed at once, 0 for the whole
        image (and networks whose layers see the whole slide take it whole).

    Yields
    ------
    float
        Share of the slide that is done.

    Returns
    -------
    What each head reads, in the order of the modules.
    """
    if not (relay.tile and network.streams):
        return (yield from _read_whole(network, relay))
    heads: list[Any] = list(network.heads)
    windows = [_Windows(head) for head in heads]
    device = next(network.heads.parameters()).device
    # On a CPU flat bands, for the same memory: the next stage waits less for the first.
    tile = max(relay.tile // 2, 1) if device.type == "cpu" else relay.tile
    trunk = network.trunk(None, tile, relay.mean, relay.std, wide=True)
    stages = [_Rows(trunk, trunk.source(relay.image, relay.mask))]
    for index, listener in enumerate(windows):
        trunk = network.trunk(index, network.tile_of(index, tile), wide=True)
        stages.append(_Rows(trunk, _Rolling(stages[-1], device), listener))
    with side_by_side([stage.work for stage in stages], device) as ahead:
        for stage in stages:
            stage.bands = ahead(stage.bands)
        for _ in stages[-1].bands:
            yield stages[0].share
    sizes = (stage.shape[2:] for stage in stages[1:])
    tissue = [network.tissue(relay, index, *size) for index, size in enumerate(sizes)]
    return [h.read(w.finish(), t) for h, w, t in zip(heads, windows, tissue, strict=True)]


def fits_whole(network: Modules, relay: Relay, free: int) -> bool:
    """Return whether modules that could stream a slide may process it in one piece each.

    ``free`` is the memory for it in bytes, including the image on the device. Maps of two billion
    values or more never are, since some kernels count in 32 bits.
    """
    height, width = relay.image.shape[:2]
    trunk = network.trunk(None, relay.tile, relay.mean, relay.std, wide=True)
    peak, most = trunk.whole_bytes(min(height, STEM_TILE), width)
    made = trunk.plan(height, width)
    peak += made.bytes_output // 2
    for index in range(len(network.parts)):
        trunk = network.trunk(index, network.tile_of(index, relay.tile), wide=True)
        channels, *size = made.output
        held, largest = trunk.whole_bytes(size[0], size[1], channels)
        peak, most = max(peak, held + made.bytes_output // 2), max(most, largest)
        made = trunk.plan(size[0], size[1], channels=channels)
    return most < _MOST_VALUES and peak + 3 * height * width < free


def _read_whole(network: Modules, relay: Relay) -> Generator[float, None, list[Reading]]:
    features = network.stem_features(relay)
    readings = []
    heads: list[Any] = list(network.heads)
    for index, (part, head) in enumerate(zip(network.parts, heads, strict=True)):
        # Streamed in one tile, a module has no norms to run.
        features = (network.trunk(index, ALL) if network.streams else part)(features)
        tissue = network.tissue(relay, index, features.shape[2], features.shape[3])
        readings.append(head.read(head.windows(features), tissue))
        yield (index + 1) / len(network.parts)
    return readings


class _Rows:
    """The output of a trunk as bands of full rows, from the top; each is passed to a listener."""

    def __init__(
        self, trunk: StreamingTrunk, source: Source, listener: _Windows | None = None
    ) -> None:
        batch, channels, height, width = source.shape
        plan = trunk.plan(height, width, channels=channels, batch=batch, training=False)
        self.shape, self.work = (batch, *plan.output), plan.work(training=False)
        self.share = 0.0
        self.bands = self._computed()
        self._tape = trunk.tape(source, record=False, input_grad=False)
        self._tensors = trunk.tensors()
        self._listener = listener

    def _computed(self) -> Iterator[Band]:
        for band in self._tape.iter_bands(self._tensors):
            self.share = (band.top + band.values.shape[2]) / self.shape[2]
            if self._listener is not None:
                self._listener.feed(band.values)
            yield band


class _Rolling(Source):
    """The map of another trunk: rows are computed on demand, and dropped once passed."""

    def __init__(self, rows: _Rows, device: torch.device) -> None:
        self.shape, self.device = rows.shape, device
        self.noise = self.mask = None
        self._rows = rows
        self._top = 0
        self._held: list[Tensor] = []

    def pixels(self, rect: Rect) -> Tensor:
        """Return a piece; no later one may begin above it."""
        held = self._held
        while not held or self._top + sum(part.shape[2] for part in held) < rect.bottom:
            held.append(next(self._rows.bands).values)
        while len(held) > 1 and self._top + held[0].shape[2] <= rect.top:
            self._top += held.pop(0).shape[2]
        # What lies in one band is not copied, what lies in two is, and nothing of the rest.
        columns = slice(rect.left, rect.right)
        parts, top = [], self._top
        for part in held:
            rows = slice(max(0, rect.top - top), max(0, rect.bottom - top))
            parts.append(part[:, :, rows, columns])
            top += part.shape[2]
        return joined(parts, 2)

    def prepare(self, pixels: Tensor, rect: Rect) -> Tensor:  # noqa: ARG002  # reason: as it is
        """Return the piece unchanged: it is the network's input already."""
        return pixels


class _Windows:
    """The windows of a head's convolution, computed from rows as they arrive."""

    def __init__(self, head: AttentionHead) -> None:
        self._head = head
        self._rest: list[Tensor] = []
        self._made: list[Tensor] = []

    def feed(self, rows: Tensor) -> None:
        """Take the next rows of the map."""
        rows = joined([*self._rest, rows], 2)
        whole = rows.shape[2] // self._head.window * self._head.window
        if whole:
            self._made.append(self._head.windows(rows[:, :, :whole]))
        self._rest = [rows[:, :, whole:].clone()] if whole < rows.shape[2] else []

    def finish(self) -> Tensor:
        """Return all windows ``(N, width, h, w)``."""
        return torch.cat([*self._made, *(self._head.windows(rows) for rows in self._rest)], 2)
