"""Which epochs to keep: chosen by a moving average of the tuning loss, not by a lucky epoch.

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
    """Return the window with the lowest mean loss; of equals, the earliest.

    With fewer epochs than ``size``, the window holds all of them.
    """
    size = min(size, len(losses))
    means = np.convolve(losses, np.full(size, 1 / size), "valid")
    start = int(means.argmin())
    return Window(start, start + size, float(means[start]))


def wanted_epochs(losses: Sequence[float], size: int) -> set[int]:
    """Return the epochs whose weights may still be needed.

    They are those of the best window so far, and the last ones, which later windows may include.
    """
    recent = range(max(0, len(losses) - size + 1), len(losses))
    return {*best_window(losses, size).epochs, *recent}
