"""Sums over a plane of any size in bounded memory: square blocks, spilled to disk."""

from __future__ import annotations

import tempfile
import weakref
from collections import OrderedDict
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING

import numpy as np

from slidelens.errors import ResultError
from slidelens.files import make_scratch, remove_scratch

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BLOCK", "BlockSums"]

BLOCK = 256
"""Side of a block in cells."""

COARSE = 1024
"""Longest side of the overview that is kept in memory, in cells."""


class BlockSums:
    """``(planes, height, width)`` float64 sums that are never dense.

    Blocks of 256 x 256 cells are made when first added to. The most recently used ones stay in
    memory up to ``buffer_mb``; the others go to files in a temporary folder, which is created only
    if needed and disappears with the object. (Plain files: a zarr array took ten times as long.) It
    is safe to read while another thread adds.

    Parameters
    ----------
    planes, height, width
        Shape in cells.
    folder
        Where the temporary folder goes; ``None`` is the system's own.
    buffer_mb
        Memory for blocks.
    """

    def __init__(
        self, planes: int, height: int, width: int, folder: Path | None, buffer_mb: float
    ) -> None:
        self.shape = (planes, height, width)
        self._parent = folder or Path(tempfile.gettempdir())
        self._capacity = max(1, int(buffer_mb * 2**20 / (planes * BLOCK * BLOCK * 8)))
        self._blocks: OrderedDict[tuple[int, int], NDArray[np.float64]] = OrderedDict()
        self._spilled: dict[tuple[int, int], NDArray[np.float64]] = {}  # key -> its coarse sums
        self._scratch: Path | None = None
        self._lock = RLock()
        self.factor = 1
        while max(height, width) / self.factor > COARSE and self.factor < BLOCK:
            self.factor *= 2

    def add_cells(
        self, rows: NDArray[np.intp], columns: NDArray[np.intp], values: NDArray[np.float64]
    ) -> None:
        """Add ``(planes, N)`` values to N cells; a cell may occur more than once."""
        if not rows.size:
            return
        down, right = rows // BLOCK, columns // BLOCK
        with self._lock:
            if down.min() == down.max() and right.min() == right.max():
                self._add_cells(int(down[0]), int(right[0]), rows, columns, values)
                return
            keys, inverse = np.unique(np.stack([down, right]), axis=1, return_inverse=True)
            for k, (i, j) in enumerate(keys.T.tolist()):
                mine = inverse.ravel() == k
                self._add_cells(i, j, rows[mine], columns[mine], values[:, mine])

    def _add_cells(
        self,
        i: int,
        j: int,
        rows: NDArray[np.intp],
        columns: NDArray[np.intp],
        values: NDArray[np.float64],
    ) -> None:
        flat = (rows - i * BLOCK) * BLOCK + (columns - j * BLOCK)
        block = self._take(i, j).reshape(self.shape[0], -1)
        for plane, value in zip(block, values, strict=True):
            np.add.at(plane, flat, value)

    def add_raster(self, row: int, column: int, values: NDArray[np.float64]) -> None:
        """Add ``(planes, h, w)`` values to the cells from ``row``, ``column`` on."""
        bottom, end = row + values.shape[1], column + values.shape[2]
        with self._lock:
            for i in range(row // BLOCK, -(-bottom // BLOCK)):
                top, low = max(row, i * BLOCK), min(bottom, (i + 1) * BLOCK)
                for j in range(column // BLOCK, -(-end // BLOCK)):
                    left, far = max(column, j * BLOCK), min(end, (j + 1) * BLOCK)
                    part = values[:, top - row : low - row, left - column : far - column]
                    self._take(i, j)[
                        :,
                        top - i * BLOCK : low - i * BLOCK,
                        left - j * BLOCK : far - j * BLOCK,
                    ] += part

    def read(self, rows: slice, columns: slice) -> NDArray[np.float64]:
        """Return the sums of a window, ``(planes, h, w)``; both slices have start and stop."""
        out = np.zeros((self.shape[0], rows.stop - rows.start, columns.stop - columns.start))
        with self._lock:
            for i in range(rows.start // BLOCK, -(-rows.stop // BLOCK)):
                top, low = max(rows.start, i * BLOCK), min(rows.stop, (i + 1) * BLOCK)
                for j in range(columns.start // BLOCK, -(-columns.stop // BLOCK)):
                    block = self._look(i, j)
                    if block is None:
                        continue
                    left, far = max(columns.start, j * BLOCK), min(columns.stop, (j + 1) * BLOCK)
                    out[
                        :,
                        top - rows.start : low - rows.start,
                        left - columns.start : far - columns.start,
                    ] = block[
                        :,
                        top - i * BLOCK : low - i * BLOCK,
                        left - j * BLOCK : far - j * BLOCK,
                    ]
        return out

    def coarse(self) -> NDArray[np.float64]:
        """Return the sums over squares of ``factor`` cells, whole; nothing is read from disk."""
        planes, height, width = self.shape
        side = BLOCK // self.factor
        down, right = -(-height // BLOCK), -(-width // BLOCK)
        out = np.zeros((planes, down * side, right * side))
        with self._lock:
            parts = dict(self._spilled)
            parts.update({key: self._reduce(block) for key, block in self._blocks.items()})
        for (i, j), part in parts.items():
            out[:, i * side : (i + 1) * side, j * side : (j + 1) * side] = part
        return out[:, : -(-height // self.factor), : -(-width // self.factor)]

    def _reduce(self, block: NDArray[np.float64]) -> NDArray[np.float64]:
        side = BLOCK // self.factor
        shape = (len(block), side, self.factor, side, self.factor)
        return np.asarray(block.reshape(shape).sum((2, 4)), np.float64)

    def _look(self, i: int, j: int) -> NDArray[np.float64] | None:
        """Return a block for reading, without moving it into the buffer."""
        if (i, j) in self._blocks:
            return self._blocks[i, j]
        return self._load(i, j) if (i, j) in self._spilled else None

    def _take(self, i: int, j: int) -> NDArray[np.float64]:
        """Return a block for adding, in the buffer."""
        if (i, j) in self._blocks:
            self._blocks.move_to_end((i, j))
            return self._blocks[i, j]
        if (i, j) in self._spilled:
            block = self._load(i, j)
            del self._spilled[i, j]
        else:
            block = np.zeros((self.shape[0], BLOCK, BLOCK))
        self._blocks[i, j] = block
        while len(self._blocks) > self._capacity:
            key, oldest = next(iter(self._blocks.items()))
            self._spill(*key, oldest)
            del self._blocks[key]
        return block

    def _load(self, i: int, j: int) -> NDArray[np.float64]:
        return np.asarray(np.load(self._place() / f"{i}-{j}.npy"), np.float64)

    def _spill(self, i: int, j: int, block: NDArray[np.float64]) -> None:
        try:
            np.save(self._place() / f"{i}-{j}.npy", block)
        except OSError as error:
            raise ResultError(
                f"{self._parent}: cannot write the map under construction ({error}). "
                "Free some space, or set TMPDIR to a disk that has it."
            ) from error
        self._spilled[i, j] = self._reduce(block)

    def _place(self) -> Path:
        if self._scratch is None:
            self._scratch = make_scratch(self._parent)
            weakref.finalize(self, remove_scratch, self._scratch)
        return self._scratch
