"""Slides made of arrays in memory, for tests, demos and pictures."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slidelens.geometry import Mpp
from slidelens.slide.base import Slide
from slidelens.slide.reader import Facts, Reader, levels_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ArrayReader", "from_array", "in_memory"]


class ArrayReader(Reader):
    """A slide in memory.

    Parameters
    ----------
    levels
        Finest first, each ``(H, W, 3)`` uint8 RGB.
    facts
        Facts about the slide; by default only its levels.

    Raises
    ------
    ValueError
        The array has another shape or type.
    """

    backend = "array"

    def __init__(self, *levels: NDArray[np.uint8], facts: Facts | None = None) -> None:
        if not levels:
            raise ValueError("a slide needs an array, of shape (H, W, 3)")
        for array in levels:
            shape: tuple[int, ...] = getattr(array, "shape", ())
            kind = getattr(array, "dtype", type(array).__name__)
            if kind != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
                raise ValueError(
                    f"a slide needs uint8 arrays of shape (H, W, 3), not {kind} {tuple(shape)}"
                )
        self._arrays = levels
        self.facts = facts or Facts(levels_of([(a.shape[1], a.shape[0]) for a in levels]))

    @classmethod
    def sniff(cls, path: Path, head: bytes) -> bool:  # noqa: ARG003  # an array has no file
        """Decline: no file holds this kind of slide."""
        return False

    def read(self, level: int, x: int, y: int, w: int, h: int) -> NDArray[np.uint8]:
        """Copy the box (x, y, w, h), in px of ``level``: ``(h, w, 3)`` uint8 RGB."""
        return self._arrays[level][y : y + h, x : x + w].copy()

    def close(self) -> None:
        """Release the arrays."""
        self._arrays = ()


def in_memory(slide: Slide) -> bool:
    """Return whether a slide is made of arrays: its path is only a name then."""
    return slide.backend == ArrayReader.backend


def from_array(
    *levels: NDArray[np.uint8],
    mpp: float | tuple[float, float] | None = None,
    name: str = "array",
) -> Slide:
    """Make a slide from arrays in memory.

    Parameters
    ----------
    levels
        ``(H, W, 3)`` uint8 RGB arrays, finest first; not copied.
    mpp
        Resolution in µm per level-0 px.
    name
        Slide id.

    Raises
    ------
    ValueError
        The array has another shape or type.
    """
    resolution = None if mpp is None else Mpp.of(mpp)
    slide = Slide(ArrayReader(*levels), Path(name), mpp=resolution, mpp_source="given")
    slide.reopen = partial(from_array, *levels, name=name)
    return slide
