"""Read windows of a slide for a magnifying network, each at its own resolution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from slidelens.geometry import Box, Mpp, Size
from slidelens.nn.orientation import orient_points, restore_points
from slidelens.slide.array import from_array

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from slidelens.nn.orientation import NumberT

__all__ = ["Eye", "Overview", "Recollection", "orient_windows", "restore_windows"]


class _View(Protocol):
    """The members of a view that :class:`Eye` uses."""

    mpp: Mpp
    region: Box

    def read(self, box: Box, mpp: float) -> NDArray[np.uint8]: ...


class Eye:
    """Reads windows of one slide, each from the pyramid level with its detail, and nothing else.

    A window is ``(scale, x, y)`` in the square around the view's region, from -1 to 1;
    see :mod:`slidelens.nn.sampling`.
    """

    def __init__(self, view: _View) -> None:
        self.view = view
        region = view.region.scaled(*view.mpp)
        self.side_um = max(region.w, region.h)
        self._centre = (region.x + region.w / 2, region.y + region.h / 2)

    def box(self, window: Sequence[float]) -> Box:
        """Return the box of a window in level-0 px."""
        scale, x, y = window
        half = self.side_um / 2
        left, top = (c + half * (v - scale) for c, v in zip(self._centre, (x, y), strict=True))
        side = 2 * half * scale
        mpp = self.view.mpp
        return Box(left / mpp.x, top / mpp.y, side / mpp.x, side / mpp.y)

    def mpp(self, window: Sequence[float], size: int) -> float:
        """Return the µm per px of a window read at ``size`` px."""
        return self.side_um * window[0] / size

    @property
    def detail(self) -> float:
        """The finest µm/px available."""
        return max(self.view.mpp)

    def finest(self, size: int, mpp: float) -> float:
        """Return the scale of a window that has ``size`` px of ``mpp`` µm; 1 at most."""
        return min(1.0, size * mpp / self.side_um)

    def read(self, window: Sequence[float], size: int) -> NDArray[np.uint8]:
        """Read a window as ``(size, size, 3)`` uint8 RGB, white outside the region."""
        box = self.box(window)
        picture = self.view.read(box, self.mpp(window, size))
        inside = box.intersect(self.view.region)
        if inside != box:
            picture = picture.copy()
            step = box.w / size, box.h / size
            columns = box.x + (np.arange(size) + 0.5) * step[0]
            rows = box.y + (np.arange(size) + 0.5) * step[1]
            region = self.view.region
            picture[:, (columns < region.x) | (columns >= region.right)] = 255
            picture[(rows < region.y) | (rows >= region.bottom)] = 255
        return picture


class Overview:
    """A coarse copy of a whole slide in memory, with the interface of the slide's view.

    Parameters
    ----------
    pixels
        ``(h, w, 3)`` uint8 RGB of the whole slide.
    extent_um
        Width and height of the slide in µm.
    glance
        ``(glance, glance, 3)`` uint8: the slide as the network's first look has it.
    """

    def __init__(
        self, pixels: NDArray[np.uint8], extent_um: tuple[float, float], glance: NDArray[np.uint8]
    ) -> None:
        self.glance = glance
        size = Size(pixels.shape[1], pixels.shape[0])
        self.mpp = Mpp(extent_um[0] / size.width, extent_um[1] / size.height)
        self.region = Box.of_size(size)
        self.nbytes = pixels.nbytes + glance.nbytes
        self._slide = from_array(pixels, mpp=(self.mpp[0], self.mpp[1]))

    def read(self, box: Box, mpp: float) -> NDArray[np.uint8]:
        """Read any box, in px of the copy, at any resolution."""
        return self._slide.read(box, mpp)


class Recollection(Eye):
    """Reads windows from a coarse copy; ``glance`` is the first picture, read from the slide."""

    def __init__(self, overview: Overview) -> None:
        super().__init__(overview)
        self.glance = overview.glance


def orient_windows(windows: NDArray[NumberT], n: int) -> NDArray[NumberT]:
    """Return where windows ``(N, 3)`` of a slide lie on the slide in orientation ``n``."""
    return np.concatenate((windows[:, :1], orient_points(windows[:, 1:], n)), 1)


def restore_windows(windows: NDArray[NumberT], n: int) -> NDArray[NumberT]:
    """Undo :func:`orient_windows`."""
    return np.concatenate((windows[:, :1], restore_points(windows[:, 1:], n)), 1)
