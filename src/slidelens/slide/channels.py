"""Turn stored samples into RGB: grey, 16-bit, transparent and fluorescence pixels."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["COLOURS", "Alpha", "Composer", "depth_of", "spread"]

Alpha = Literal["unassociated", "associated"]
"""What a colour with alpha holds: the colour itself, or the colour times alpha."""

COLOURS: tuple[tuple[int, int, int], ...] = (
    (0, 114, 178),  # blue, for the nuclear stain, which comes first in practice
    (230, 159, 0),  # orange
    (0, 158, 115),  # bluish green
    (204, 121, 167),  # reddish purple
    (240, 228, 66),  # yellow
    (86, 180, 233),  # sky blue
    (213, 94, 0),  # vermilion
)
"""Okabe and Ito's palette (2008), which people with any common colour vision can tell apart."""

_WINDOW = (0.5, 99.8)  # percentiles of the overview that become black and full colour
_DEPTHS = (8, 10, 12, 14, 16)  # bits of a 16-bit sample that cameras use
_STRAY = 0.001  # share of samples that may exceed the number of bits stated in the file
_OVERVIEW = 2048
_PARTS = 4  # parts of an overview, along each side of a level that is larger


class Composer:
    """Turns ``(h, w, C)`` samples into ``(h, w, 3)`` uint8 RGB, pixel by pixel.

    Colour images pass through (16 bit by the upper 8 of the bits in use, alpha on white).
    Everything else is drawn by channel: one channel in grey, several added up in :data:`COLOURS`,
    each stretched between two percentiles of the coarsest level, so that a pixel looks the same in
    every read. A single channel of up to 8 bits is shown unchanged.

    Parameters
    ----------
    channels
        Number of samples per pixel.
    dtype
        Their type.
    rgb
        Whether the first three are red, green and blue.
    overview
        Returns ``(h, w, C)`` samples of the coarsest level; called once, on first use.
    alpha
        The meaning of the sample after red, green and blue; ``None``: no alpha, it is left out.
    white_is_zero
        Whether low values of a grey image are bright.
    bits
        How many bits of a sample are used, as the file states; if it states nothing, or the
        overview contradicts it, the overview decides.
    """

    def __init__(
        self,
        channels: int,
        dtype: np.dtype[Any],
        rgb: bool,
        overview: Callable[[], NDArray[Any]],
        alpha: Alpha | None = None,
        *,
        white_is_zero: bool = False,
        bits: int | None = None,
    ) -> None:
        self.channels = channels
        self.rgb = rgb
        self._dtype = dtype
        self._overview = overview
        self._alpha = alpha
        self._white_is_zero = white_is_zero
        self._stated = bits
        self._depth: int | None = None
        self._lock = Lock()
        self._windows: NDArray[np.float32] | None = None

    def __call__(self, samples: NDArray[Any]) -> NDArray[np.uint8]:
        """Return RGB."""
        if self.rgb:
            return _colour(samples, self._alpha, self.depth())
        if self.channels == 1 and samples.dtype in (np.uint8, np.bool_):
            one = 255 // (2 ** (self._stated or 8) - 1) if samples.dtype == np.uint8 else 255
            grey = samples if one == 1 else samples.astype(np.uint8) * np.uint8(one)
            return np.repeat(255 - grey if self._white_is_zero else grey, 3, axis=2)
        low, high = self.windows()
        shown = np.clip((samples.astype(np.float32) - low) / (high - low), 0, 1)
        shown = 1 - shown if self._white_is_zero else shown
        if samples.dtype.kind == "f":
            shown = np.nan_to_num(shown, nan=0)  # not measured
        if self.channels == 1:
            return np.repeat((shown * 255 + 0.5).astype(np.uint8), 3, axis=2)
        total = np.zeros((*samples.shape[:2], 3), np.float32)
        for index in range(self.channels):
            colour = np.array(COLOURS[index % len(COLOURS)], np.float32)
            total += shown[..., index, None] * colour
        return (np.minimum(total, 255) + 0.5).astype(np.uint8)

    def depth(self) -> int:
        """Return how many bits of a colour are used: 8, or up to 16."""
        if self._dtype.itemsize == 1:
            return 8
        with self._lock:
            if self._depth is None:
                seen = self._overview()[..., :3]
                known = seen[seen < np.iinfo(self._dtype).max]  # those were never written
                self._depth = self._stated
                if self._depth is None or np.sum(known >> self._depth > 0) > _STRAY * known.size:
                    self._depth = depth_of(int(known.max(initial=0)))
        return self._depth

    def notes(self) -> list[str]:
        """Return a note on how colours with unused bits are drawn."""
        if not self.rgb or self.depth() == 8 * self._dtype.itemsize:
            return []
        stated = self._stated == self.depth()
        why = "the file says so" if stated else "no value of its coarsest level is larger"
        note = (
            f"of its {8 * self._dtype.itemsize}-bit colours {self.depth()} bits are used ({why}), "
            f"so that {2 ** self.depth() - 1} is drawn in full"
        )
        return [note]

    def windows(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the values drawn black and drawn in full colour, ``(C,)`` each."""
        with self._lock:
            if self._windows is None:
                seen = self._overview().reshape(-1, self.channels)
                ends = [100 - end for end in _WINDOW[::-1]] if self._white_is_zero else _WINDOW
                known = [v[np.isfinite(v)].astype(np.float64) for v in seen.T]
                pairs = [np.percentile(v, ends) if len(v) else (0, 1) for v in known]
                bounds = np.array(pairs, np.float32).T
                bounds[1] = np.maximum(bounds[1], bounds[0] + np.float32(1e-6) + _step(seen))
                self._windows = bounds
        return self._windows[0], self._windows[1]


def depth_of(largest: int) -> int:
    """Return the bits of a camera, 8 to 16, that the largest value fits into."""
    return next((bits for bits in _DEPTHS if largest < 2**bits), _DEPTHS[-1])


def spread(
    read: Callable[[int, int, int, int], NDArray[Any]], width: int, height: int
) -> NDArray[Any]:
    """Read samples from all over a level: ``(h, w, C)``.

    Parameters
    ----------
    read
        ``read(x, y, w, h)`` gives ``(h, w, C)``.
    width, height
        Size of the level. One longer than 2048 px is read in parts, at equal distances.
    """
    (xs, w), (ys, h) = _places(width), _places(height)
    return np.concatenate([np.concatenate([read(x, y, w, h) for x in xs], 1) for y in ys])


def _places(side: int) -> tuple[list[int], int]:
    """Where the parts of an overview begin along a side, and their length."""
    if side <= _OVERVIEW:
        return [0], side
    part = _OVERVIEW // _PARTS
    return [(2 * i + 1) * side // (2 * _PARTS) - part // 2 for i in range(_PARTS)], part


def _step(samples: NDArray[Any]) -> np.float32:
    """Smallest window of integer samples: one grey value, so that a flat channel is drawn flat."""
    return np.float32(1 if samples.dtype.kind in "iu" else 0)


def _colour(samples: NDArray[Any], alpha: Alpha | None, depth: int) -> NDArray[np.uint8]:
    """Colour samples of 8 or 16 bits, ``(h, w, 3 or more)``, as 8-bit RGB on white."""
    if samples.dtype.itemsize == 2:  # of either byte order
        samples = np.minimum(samples >> (depth - 8), 255).astype(np.uint8)
    if samples.shape[2] == 3:
        return samples
    if alpha is None:
        return np.ascontiguousarray(samples[..., :3])
    colour, opaque = samples[..., :3].astype(np.uint16), samples[..., 3:4].astype(np.uint16)
    clear = 255 - opaque
    if alpha == "associated":
        laid = np.minimum(colour + clear, 255)
    else:
        laid = (colour * opaque + 255 * clear + 127) // 255
    rgb: NDArray[np.uint8] = laid.astype(np.uint8)
    return rgb
