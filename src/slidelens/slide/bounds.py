"""The scanned part of a slide, where its file states one: other programs count px from there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slidelens.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slidelens.geometry import Size

__all__ = ["bounds_of", "in_qupath"]


def bounds_of(properties: Mapping[str, str], size: Size) -> Box | None:
    """Return the part of a slide that was scanned, in level-0 px; ``None``: all of it.

    Parameters
    ----------
    properties
        Of the slide; OpenSlide states ``openslide.bounds-*`` of MRXS, SCN and others.
    size
        Of the slide, in level-0 px.
    """
    try:
        sides = ("x", "y", "width", "height")
        stated = Box(*(int(properties[f"openslide.bounds-{side}"]) for side in sides))
    except (KeyError, ValueError):
        return None
    whole = Box.of_size(size)
    found = stated.intersect(whole)
    return None if found.area == 0 or found == whole else found


def in_qupath(bounds: Box) -> str:
    """Return what to know of a slide with such bounds (level-0 px) in QuPath, to end a sentence."""
    return (
        f"QuPath shows only the scanned part, from x={bounds.x:.0f}, y={bounds.y:.0f} px, and "
        "counts from there, unless the slide is added with --no-crop; slidelens counts from the "
        "corner of the whole slide"
    )
