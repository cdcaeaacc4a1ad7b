"""The current view: position on the slide, bookmarks, magnification.

Positions are in the world's unit: µm, or px if no resolution is known. The slide's corner is (0,
0), as pathologists count, not half a pixel before it as in napari.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from slidelens.geometry import Box

if TYPE_CHECKING:
    from slidelens.desktop.world import World
    from slidelens.geometry import Size

__all__ = ["OBJECTIVES", "Look", "Overview", "fit", "parse_place", "place_text", "um_per_pixel"]

OBJECTIVES = (5, 10, 20, 40)
"""Magnifications of the usual objectives."""

_NUMBER = r"([-+]?\d+(?:\.\d+)?)\s*(mm|µm|um|μm|px)?"
_PLACE = re.compile(rf"\s*(?:x\s*=?\s*)?{_NUMBER}\s*[,;\s]\s*(?:y\s*=?\s*)?{_NUMBER}\s*", re.I)


class Look(NamedTuple):
    """What napari's camera shows.

    Attributes
    ----------
    y, x
        Centre in napari's world.
    zoom
        Screen pixels per unit of the world.
    """

    y: float
    x: float
    zoom: float

    @classmethod
    def at(cls, x: float, y: float, scale: float, world: World) -> Look:
        """Look at a position, at ``scale`` units per screen pixel."""
        return cls(y - world.mpp.y / 2, x - world.mpp.x / 2, 1 / scale)

    def place(self, world: World) -> tuple[float, float]:
        """Return the position in the middle, x and y."""
        return self.x + world.mpp.x / 2, self.y + world.mpp.y / 2

    def box(self, canvas: tuple[float, float], world: World) -> Box:
        """Return the visible box in level-0 px.

        Parameters
        ----------
        canvas
            Height and width of the canvas in screen pixels.
        """
        height, width = (side / self.zoom for side in canvas)
        x, y = self.place(world)
        mpp = world.mpp
        return Box((x - width / 2) / mpp.x, (y - height / 2) / mpp.y, width / mpp.x, height / mpp.y)


class Overview(NamedTuple):
    """A small picture of a whole slide: the position of its pixels in a widget.

    Attributes
    ----------
    x, y
        Of the slide's corner in the widget, px.
    scale_x, scale_y
        Widget px per level-0 px; they differ if the slide's pixels are not square.
    """

    x: float
    y: float
    scale_x: float
    scale_y: float

    @classmethod
    def of(cls, size: tuple[int, int], world: World, room: tuple[float, float]) -> Overview:
        """Centre a slide in ``room`` (width and height in px), as large as fits."""
        across, down = size[0] * world.mpp.x, size[1] * world.mpp.y
        scale = min(room[0] / across, room[1] / down)
        x, y = (room[0] - across * scale) / 2, (room[1] - down * scale) / 2
        return cls(x, y, scale * world.mpp.x, scale * world.mpp.y)

    def box(self, box: Box) -> Box:
        """Return the position of a box of level-0 px in the widget."""
        return Box(
            self.x + box.x * self.scale_x,
            self.y + box.y * self.scale_y,
            box.w * self.scale_x,
            box.h * self.scale_y,
        )

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Return the level-0 px at a position in the widget."""
        return (x - self.x) / self.scale_x, (y - self.y) / self.scale_y


def fit(box: Box, canvas: tuple[float, float], world: World, margin: float = 0.1) -> Look:
    """Fit a box of level-0 px into the canvas, with a margin."""
    mpp = world.mpp
    room = 1 - margin
    zoom = min(canvas[1] * room / (box.w * mpp.x), canvas[0] * room / (box.h * mpp.y))
    x, y = (box.x + box.w / 2) * mpp.x, (box.y + box.h / 2) * mpp.y
    return Look.at(x, y, 1 / zoom, world)


def um_per_pixel(objective: float) -> float:
    """Return the resolution that an objective's magnification stands for: 0.5 µm/px for 20x."""
    return 10 / objective


def parse_place(text: str, world: World, size: Size | tuple[int, int]) -> tuple[float, float]:
    """Read a position as typed: ``1250, 3400``, ``1.2 mm 3.4 mm``, ``x=100px y=200px``.

    Numbers without a unit are in the world's unit.

    Raises
    ------
    ValueError
        Not two numbers, a length on a slide without resolution, or a position outside the slide.
    """
    found = _PLACE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r}: expected two numbers, such as 1250, 3400")
    x_text, x_unit, y_text, y_unit = found.groups()
    unit = x_unit or y_unit
    place = [
        _length(float(number), (own or unit or "").lower(), mpp, world)
        for number, own, mpp in ((x_text, x_unit, world.mpp.x), (y_text, y_unit, world.mpp.y))
    ]
    ends = (size[0] * world.mpp.x, size[1] * world.mpp.y)
    if not all(0 <= value <= end for value, end in zip(place, ends, strict=True)):
        raise ValueError(f"outside the slide, which ends at {place_text(*ends, world)}")
    return place[0], place[1]


def place_text(x: float, y: float, world: World) -> str:
    """Write a position."""
    return f"{x:.0f}, {y:.0f} {'px' if world.unit == 'pixel' else 'µm'}"


def _length(number: float, unit: str, mpp: float, world: World) -> float:
    if unit == "px":
        return number * mpp
    if unit and world.unit == "pixel":
        raise ValueError("the slide states no resolution: give the position in px")
    return number * 1000 if unit == "mm" else number
