"""Colours for viewer, pictures and reports, safe for colour-blind readers.

Classes take the colours of Okabe and Ito (2008, "Color Universal Design"); values take perceptually
uniform colormaps whose opacity grows with the value, so that tissue stays visible.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from slidelens.maps.map import Kind

__all__ = [
    "COLORMAPS",
    "OUTLINE",
    "TISSUE",
    "class_colors",
    "colormap",
    "depth_color",
    "hex_color",
]

RGB = tuple[int, int, int]

_FIRST: RGB = (0, 114, 178)  # blue: normal, benign, negative
_LAST: RGB = (213, 94, 0)  # vermillion: positive
_BETWEEN: tuple[RGB, ...] = (
    (86, 180, 233),  # sky blue
    (230, 159, 0),  # orange
    (204, 121, 167),  # reddish purple
    (0, 158, 115),  # bluish green
    (240, 228, 66),  # yellow
)
TISSUE: RGB = (120, 120, 120)
"""Grey, visible on white and on black: the outline of tissue, which is not a finding."""

OUTLINE: RGB = (0, 0, 0)
"""Text and scale bars on white."""

COLORMAPS: dict[Kind, str] = {
    "probability": "viridis",
    "attention": "cividis",
    "saliency": "magma",
}
"""The matplotlib (and napari) name of each kind's colormap."""


def class_colors(classes: Sequence[str]) -> dict[str, RGB]:
    """Return a colour per class, in label order: the first blue, the last (positive) vermillion.

    A single class is positive. More than seven classes repeat the middle colours, darker.
    """
    names = list(classes)
    colors: dict[str, RGB] = {}
    for i, name in enumerate(names):
        if i == len(names) - 1:
            colors[name] = _LAST
        elif i == 0:
            colors[name] = _FIRST
        else:
            turn, k = divmod(i - 1, len(_BETWEEN))
            r, g, b = _BETWEEN[k]
            colors[name] = (r >> turn, g >> turn, b >> turn)
    return colors


def colormap(kind: Kind, *, alpha: bool = True) -> NDArray[np.float32]:
    """Return a kind's table ``(256, 4)`` RGBA in 0..1, for values from 0 to 1.

    With ``alpha`` opacity grows with the value from 0 to 0.8, so that unsuspicious tissue looks
    unchanged.
    """
    from matplotlib import colormaps

    table = np.asarray(colormaps[COLORMAPS[kind]](np.linspace(0, 1, 256)), np.float32)
    if alpha:
        table[:, 3] = np.linspace(0, 0.8, 256)
    return table


_DEPTHS: tuple[RGB, ...] = (
    (90, 90, 90),  # the whole slide
    (0, 114, 178),  # blue
    (0, 158, 115),  # bluish green
    (230, 159, 0),  # orange
    (213, 94, 0),  # vermillion
)


def depth_color(layer: int) -> RGB:
    """Return the colour of nested windows of a layer; 0 is the whole slide, deeper is warmer."""
    return _DEPTHS[min(layer, len(_DEPTHS) - 1)]


def hex_color(color: RGB) -> str:
    """Return ``RRGGBB``, as OME metadata and web pages write it."""
    return "".join(f"{c:02X}" for c in color)
