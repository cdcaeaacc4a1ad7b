"""Simulate another laboratory's stain and another scanner.

This is what breaks models in practice, not noise: the same tissue in other colours. A shift is
drawn from a name, so that a benchmark on shifted slides is the same everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

from slidelens.testing.pyramid import write_pyramid

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from slidelens.slide.base import Slide

__all__ = ["StainShift"]

_GAIN = 0.4
"""Optical densities are scaled by at most e to this, or its inverse."""
_OFFSET = 0.05
"""And shifted by at most this much."""


@dataclass(frozen=True)
class StainShift:
    """Optical density in each channel times ``gain`` plus ``offset`` (red, green, blue).

    The channels differ, so that hue, strength and background change. This differs from the changes
    of :class:`~slidelens.nn.augment.TileAugment`, which scales the two stains.
    """

    gain: tuple[float, float, float]
    offset: tuple[float, float, float]

    @classmethod
    def of(cls, name: str, strength: float = 1.0) -> StainShift:
        """Draw a shift that depends on ``name`` alone; strength 0 is none."""
        draw = np.random.default_rng(crc32(name.encode())).uniform(-strength, strength, (2, 3))
        red, green, blue = np.exp(_GAIN * draw[0]).tolist()
        return cls((red, green, blue), tuple((_OFFSET * draw[1]).tolist()))

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Shift ``(..., 3)`` uint8 RGB."""
        density = -np.log(np.maximum(np.arange(256), 0.25) / 255)[:, None]
        table = np.exp(-(density * self.gain + self.offset)) * 255
        table = np.rint(table.clip(0, 255)).astype(np.uint8)
        return np.stack([table[pixels[..., c], c] for c in range(3)], -1)

    def write(self, slide: Slide, path: Path) -> None:
        """Write the shifted slide as a pyramid of JPEG tiles (quality 95), its resolution kept."""
        write_pyramid(
            path,
            slide.size,
            slide.require_mpp(),
            lambda box: self(slide.read(box)),
            quality=95,
        )
