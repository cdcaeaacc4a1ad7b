"""The facts that ``slidelens info --json`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slidelens.slide.base import Slide

__all__ = ["describe"]

_TILE = 256


def describe(slide: Slide) -> dict[str, Any]:
    """Collect a slide's facts, and decode one level-0 tile to make sure that it can be read.

    Returns
    -------
    ``path, backend, width, height, mpp`` (a number, ``[x, y]`` where they differ, or ``None``),
    ``mpp_source, objective_power, levels`` (each ``downsample, width, height``), ``properties,
    associated_images``; plain JSON types.

    Raises
    ------
    SlideError
        The file opens but its pixels cannot be decoded.
    """
    width, height = slide.size
    w, h = min(_TILE, width), min(_TILE, height)
    slide.read_level(0, (width - w) // 2, (height - h) // 2, w, h)
    mpp: float | list[float] | None = None
    if slide.mpp is not None:
        mpp = slide.mpp.x if slide.mpp.x == slide.mpp.y else list(slide.mpp)
    return {
        "path": str(slide.path),
        "backend": slide.backend,
        "width": width,
        "height": height,
        "mpp": mpp,
        "mpp_source": slide.mpp_source,
        "objective_power": slide.objective_power,
        "levels": [
            {"downsample": level.downsample, "width": level.size.width, "height": level.size.height}
            for level in slide.levels
        ],
        "properties": dict(slide.properties),
        "associated_images": list(slide.associated_images),
    }
