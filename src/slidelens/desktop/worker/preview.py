"""Previews of growing maps: what has changed, at a size for a pipe and a screen.

The worker's :class:`Preview` looks and sends; the window's :class:`Growing` puts it together.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.desktop.worker.messages import Message, pack, unpack
from slidelens.geometry import Affine, Mpp
from slidelens.maps.map import Map

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from slidelens.maps.map import Cells

__all__ = ["Growing", "Preview"]

_SIDE = 1024  # cells of the preview's longest side
_EVERY = 0.7  # seconds between two looks, at least,
_SHARE = 20.0  # and this many times as long as a look takes


class Preview:
    """Sends the changes of a run's maps as messages ``cells``.

    Parameters
    ----------
    send
        Takes facts and bytes of one message.
    """

    def __init__(self, send: Callable[[Mapping[str, Any], bytes], None]) -> None:
        self._send = send
        self._run = ""
        self._seen: dict[str, NDArray[Any]] = {}
        self._next = 0.0

    def look(self, run: str, maps: Callable[[], Mapping[str, Map]], *, must: bool = False) -> None:
        """Send what changed, unless the last look was a moment ago.

        Parameters
        ----------
        run
            Name of the run; a new one begins with empty maps.
        maps
            Returns the maps as they are now.
        must
            Look in any case, as at the end.
        """
        start = perf_counter()
        if run != self._run:
            self._run, self._seen = run, {}
        elif start < self._next and not must:
            return
        for name, one in maps().items():
            self._one(name, one)
        took = perf_counter() - start
        self._next = start + max(_EVERY, _SHARE * took)

    def _one(self, name: str, source: Map) -> None:
        level, affine = _small(source)
        values = np.asarray(level[:, :, :])
        before = self._seen.get(name)
        if before is None:
            before = np.full_like(values, 0 if source.kind == "labels" else np.nan)
        rows, columns = _changed(before, values)
        if not rows.stop:
            return
        self._seen[name] = values
        facts, blob = pack(values[:, rows, columns])
        self._send(
            {
                **facts,
                "map": name,
                "kind": source.kind,
                "channels": source.channels,
                "affine": tuple(affine),
                "slide_mpp": tuple(source.slide_mpp),
                "whole": values.shape,
                "row": rows.start,
                "column": columns.start,
            },
            blob,
        )


@dataclass
class Growing:
    """A map that grows in the window: an array that is filled in place."""

    map: Map
    values: NDArray[Any]

    @classmethod
    def of(cls, message: Message) -> Growing:
        """Make the empty map that a message of cells belongs to."""
        facts = message.facts
        empty = 0 if facts["kind"] == "labels" else np.nan
        values = np.full(facts["whole"], empty, facts["dtype"])
        affine, mpp = Affine(*facts["affine"]), Mpp(*facts["slide_mpp"])
        source = Map.from_array(facts["map"], facts["kind"], facts["channels"], values, affine, mpp)
        return cls(source, np.asarray(source.levels[0]))

    def add(self, message: Message) -> None:
        """Fill in the cells of a message."""
        cells = unpack(message)
        row, column = message.facts["row"], message.facts["column"]
        _, height, width = cells.shape
        self.values[:, row : row + height, column : column + width] = cells


def _small(source: Map) -> tuple[Cells, Affine]:
    """Return the finest level that is small enough, and the position of its cells."""
    level = next((v for v in source.levels if max(v.shape) <= _SIDE), source.levels[-1])
    _, height, width = source.shape
    affine = source.affine
    sx, sy = affine.sx * width / level.shape[2], affine.sy * height / level.shape[1]
    return level, Affine(sx, sy, affine.tx, affine.ty)


def _changed(before: NDArray[Any], now: NDArray[Any]) -> tuple[slice, slice]:
    """Return rows and columns of the smallest box with all changes; empty if there are none."""
    same = before == now
    if now.dtype.kind == "f":
        same |= np.isnan(before) & np.isnan(now)
    different = ~same.all(0)
    return _span(different.any(1)), _span(different.any(0))


def _span(some: NDArray[np.bool_]) -> slice:
    where = np.flatnonzero(some)
    return slice(int(where[0]), int(where[-1]) + 1) if len(where) else slice(0, 0)
