"""From stored samples to RGB: grey, deep, transparent and fluorescence pixels."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["COLOURS", "Alpha", "Composer"]

Alpha = Literal["unassociated", "associated"]
"""What a colour with alpha states: itself, or itself times alpha."""

COLOURS: tuple[tuple[int, int, int], ...] = (
    (0, 114, 178),  # blue, for the nuclear stain, which comes first in practice
    (230, 159, 0),  # orange
    (0, 158, 115),  # bluish green
    (204, 121, 167),  # reddish purple
    (240, 228, 66),  # yellow
    (86, 180, 233),  # sky blue
    (213, 94, 0),  # vermilion
)
"""Okabe and Ito's palette, which people with any common colour vision tell apart (2008)."""

_WINDOW = (0.5, 99.8)  # percentiles of the overview that become black and full colour


class Composer:
    """Turns ``(h, w, C)`` samples into ``(h, w, 3)`` uint8 RGB, pixel by pixel.

    Colour images pass through (16 bit by their upper byte, alpha laid on white). Everything else is
    drawn by channel: one channel in grey, several added up in :data:`COLOURS`, each stretched
    between two percentiles of the coarsest level, so that a pixel looks the same in every read.
    A single 8-bit channel is shown as it is.

    Parameters
    ----------
    channels
        Number of samples per pixel.
    dtype
        Their type.
    rgb
        Whether the first three are red, green and blue.
    overview
        Gives ``(h, w, C)`` samples of the coarsest level; called once, when first needed.
    alpha
        What the sample after red, green and blue is; ``None``: no alpha, it is left out.
    white_is_zero
        Whether low values of a grey image are bright.
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
    ) -> None:
        self.channels = channels
        self.rgb = rgb
        self._dtype = dtype
        self._overview = overview
        self._alpha = alpha
        self._white_is_zero = white_is_zero
        self._lock = Lock()
        self._windows: NDArray[np.float32] | None = None

    def __call__(self, samples: NDArray[Any]) -> NDArray[np.uint8]:
        """Return RGB."""
        if self.rgb:
            return _colour(samples, self._alpha)
        if self.channels == 1 and samples.dtype in (np.uint8, np.bool_):
            grey = samples if samples.dtype == np.uint8 else samples.astype(np.uint8) * 255
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


def _step(samples: NDArray[Any]) -> np.float32:
    """Smallest window of integer samples: one grey value, so that a flat channel is drawn flat."""
    return np.float32(1 if samples.dtype.kind in "iu" else 0)


def _colour(samples: NDArray[Any], alpha: Alpha | None) -> NDArray[np.uint8]:
    """Colour samples of 8 or 16 bits, ``(h, w, 3 or more)``, as 8-bit RGB on white."""
    if samples.dtype.itemsize == 2:  # of either byte order
        samples = (samples >> 8).astype(np.uint8)
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
