"""Exact resampling: an output pixel depends only on where its edges are on the source.

Edges are quantised to 2**-16 source px, so a pixel has the same edges, the same taps and the same
weights in whichever read it appears, and all arithmetic is elementwise in a fixed order. That is
why reading a box equals the crop of a bigger read, bit for bit. Shrinking averages over area with
fractional coverage (no aliasing); enlarging is bilinear between pixel centres.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from slidelens.geometry import Size

__all__ = ["ENLARGE_BELOW", "WHITE", "pixel_edges", "sample"]

QUANTUM = 1 << 16
WHITE = 255
ENLARGE_BELOW = 0.99
"""Source px per output px below which pixels are interpolated, not averaged."""

_BAND_BYTES = 32 << 20
_NUDGE = 2.0**-10  # moves ties of the quantisation away from numbers that people choose

Source = Callable[[int, int, int, int], NDArray[np.uint8]]


def pixel_edges(start: float, step: float, n: int, scale: float) -> NDArray[np.int64]:
    """Place ``n + 1`` pixel edges on a source axis.

    Parameters
    ----------
    start, step
        First edge and pixel size in level-0 px.
    n
        Number of output pixels.
    scale
        Level-0 px per source px.

    Returns
    -------
    ``(n + 1,)`` positions in units of ``2**-16`` source px.
    """
    at = (start + np.arange(n + 1) * step) / scale
    edges: NDArray[np.int64] = np.floor(at * QUANTUM + (0.5 + _NUDGE)).astype(np.int64)
    return edges


@dataclass(frozen=True, slots=True)
class _Axis:
    """Taps of one axis: source range, ``(T, n)`` indices and weights, covered part ``(n,)``."""

    first: int
    stop: int
    index: NDArray[np.intp]
    weight: NDArray[np.float32]
    cover: NDArray[np.float32]


def sample(
    read: Source,
    size: Size,
    x_edges: NDArray[np.int64],
    y_edges: NDArray[np.int64],
    *,
    enlarge: tuple[bool, bool] = (False, False),
) -> NDArray[np.uint8]:
    """Resample a source to the pixels between given edges; white outside the source.

    Parameters
    ----------
    read
        ``read(x, y, w, h)`` gives ``(h, w, 3)`` uint8 at whole source px, white outside.
    size
        Size of the source.
    x_edges, y_edges
        From :func:`pixel_edges`.
    enlarge
        Along x and along y: interpolate between pixel centres instead of averaging.
    """
    n_x, n_y = len(x_edges) - 1, len(y_edges) - 1
    span = max(1, int((x_edges[-1] - x_edges[0]) // QUANTUM)) * 3
    rows = max(1.0, float(y_edges[-1] - y_edges[0]) / QUANTUM / n_y)
    band = max(1, int(_BAND_BYTES // (span * rows)))
    if band >= n_y:
        return _sample_band(read, size, x_edges, y_edges, enlarge)
    out = np.empty((n_y, n_x, 3), np.uint8)
    for top in range(0, n_y, band):
        part = y_edges[top : top + band + 1]
        out[top : top + band] = _sample_band(read, size, x_edges, part, enlarge)
    return out


def _sample_band(
    read: Source,
    size: Size,
    xe: NDArray[np.int64],
    ye: NDArray[np.int64],
    enlarge: tuple[bool, bool],
) -> NDArray[np.uint8]:
    factor = 0 if any(enlarge) else _power_of_two(xe, ye)
    if factor:
        x, y, w, h = (int(v) // QUANTUM for v in (xe[0], ye[0], xe[-1] - xe[0], ye[-1] - ye[0]))
        return _halve(read(x, y, w, h), factor)
    along_x, along_y = (_bilinear if one else _area for one in enlarge)
    ax, ay = along_x(xe, size.width), along_y(ye, size.height)
    if ax is None or ay is None:
        return np.full((len(ye) - 1, len(xe) - 1, 3), WHITE, np.uint8)
    source = read(ax.first, ay.first, ax.stop - ax.first, ay.stop - ay.first)
    rows = _weigh(source, ay, 0)
    mixed = _weigh(rows, ax, 1)
    inside = ay.cover[:, None] * ax.cover[None, :]
    mixed += ((1 - inside) * WHITE + np.float32(0.5))[..., None]
    return mixed.astype(np.uint8)


def _weigh(source: NDArray[np.generic], axis: _Axis, along: int) -> NDArray[np.float32]:
    """Sum of taps along one axis, in tap order."""
    shape = (-1, 1, 1) if along == 0 else (1, -1, 1)
    total: NDArray[np.float32] | None = None
    for index, weight in zip(axis.index, axis.weight, strict=True):
        part = np.multiply(source.take(index, along), weight.reshape(shape), dtype=np.float32)
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None
    return total


def _area(edges: NDArray[np.int64], size: int) -> _Axis | None:
    """Fractional coverage of each source pixel; ``None`` where no pixel is covered."""
    low, high = edges[:-1], edges[1:]
    first, last = low // QUANTUM, (high - 1) // QUANTUM
    start, stop = max(0, int(first[0])), min(size, int(last[-1]) + 1)
    if start >= stop:
        return None
    taps = first + np.arange(int((last - first).max()) + 1)[:, None]
    overlap = np.minimum(high, (taps + 1) * QUANTUM) - np.maximum(low, taps * QUANTUM)
    overlap = np.where((taps >= 0) & (taps < size), np.maximum(overlap, 0), 0)
    width = high - low
    return _Axis(
        start,
        stop,
        np.clip(taps, start, stop - 1) - start,
        (overlap / width).astype(np.float32),
        (overlap.sum(0) / width).astype(np.float32),
    )


def _bilinear(edges: NDArray[np.int64], size: int) -> _Axis | None:
    """Linear weights between centres; the border pixel continues to the border of the source."""
    centre = (edges[:-1] + edges[1:]) // 2
    inside = (centre >= 0) & (centre < size * QUANTUM)
    if not inside.any():
        return None
    at = centre - QUANTUM // 2
    taps = np.clip(np.stack([at // QUANTUM, at // QUANTUM + 1]), 0, size - 1)
    right = (at % QUANTUM) / QUANTUM
    start, stop = int(taps[:, inside].min()), int(taps[:, inside].max()) + 1
    return _Axis(
        start,
        stop,
        np.clip(taps, start, stop - 1) - start,
        (np.stack([1 - right, right]) * inside).astype(np.float32),
        inside.astype(np.float32),
    )


def _power_of_two(xe: NDArray[np.int64], ye: NDArray[np.int64]) -> int:
    """Return 1, 2, 4, ... where pixels are whole blocks of that many source px, else 0.

    Only powers of two: there the float32 taps are exact, so this path gives the same bits (and a
    block that extends over the border averages with the white outside, as the taps do).
    """
    step = int(xe[1] - xe[0])
    factor = step // QUANTUM
    if step % QUANTUM or factor not in (1, 2, 4, 8, 16) or xe[0] % QUANTUM or ye[0] % QUANTUM:
        return 0
    same = (np.diff(xe) == step).all() and (np.diff(ye) == step).all()
    return factor if same else 0


def _halve(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Average blocks of ``factor`` x ``factor`` (at most 16), rounding halves up."""
    if factor == 1:
        return pixels
    total = pixels.astype(np.uint16)
    for _ in range(factor.bit_length() - 1):
        total = total[0::2] + total[1::2]
        total = total[:, 0::2] + total[:, 1::2]
    area = factor * factor
    return ((total + area // 2) // area).astype(np.uint8)
