"""Which epochs to keep: a moving average of the tuning loss, against a lucky single epoch.

Source: streaming-prostate-2020, section IV.A.1: windows of five epochs; the centre of the best one
starts the next stage, and the average of its weights is the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Window", "best_window", "wanted_epochs"]


@dataclass(frozen=True, slots=True)
class Window:
    """Epochs ``start`` to ``stop`` (excluded) and their mean tuning loss."""

    start: int
    stop: int
    loss: float

    @property
    def epochs(self) -> range:
        """The epochs."""
        return range(self.start, self.stop)

    @property
    def centre(self) -> int:
        """The middle epoch (the earlier of two)."""
        return (self.start + self.stop - 1) // 2


def best_window(losses: Sequence[float], size: int) -> Window:
    """Return the window with the lowest mean loss, the earliest of equals.

    With fewer epochs than ``size``, all of them are the window.
    """
    size = min(size, len(losses))
    means = np.convolve(losses, np.full(size, 1 / size), "valid")
    start = int(means.argmin())
    return Window(start, start + size, float(means[start]))


def wanted_epochs(losses: Sequence[float], size: int) -> set[int]:
    """Return the epochs whose weights may still be asked for.

    They are those of the best window so far, and the last ones, of which later windows are made.
    """
    recent = range(max(0, len(losses) - size + 1), len(losses))
    return {*best_window(losses, size).epochs, *recent}
