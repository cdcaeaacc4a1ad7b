"""A slide file's facts, worded for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from slidelens.slide.open import open_slide

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from slidelens.geometry import Mpp
    from slidelens.slide.base import Slide

__all__ = ["About", "about"]

_SAME = 1e-3
"""Relative difference below which two resolutions are the same to a person."""


@dataclass(frozen=True)
class About:
    """Facts of a slide.

    Attributes
    ----------
    facts
        Heading and text, in order.
    properties
        Everything that the file states, by name.
    pictures
        Names of the pictures in the file beside the slide: label, macro, thumbnail.
    """

    path: Path
    facts: tuple[tuple[str, str], ...]
    properties: tuple[tuple[str, str], ...]
    pictures: tuple[str, ...]

    def read_picture(self, name: str) -> NDArray[np.uint8]:
        """Read one of the pictures, ``(H, W, 3)`` or ``(H, W, 4)``.

        Raises
        ------
        SlideError
            The file can no longer be read.
        """
        with open_slide(self.path) as slide:
            return slide.read_associated(name)


def about(path: Path, mpp: Mpp | None = None) -> About:
    """Read what a file states; ``mpp`` is the resolution that it is shown at, if any.

    Raises
    ------
    SlideError
        It cannot be opened.
    """
    with open_slide(path) as slide:
        rows = [
            ("File", path.name),
            ("Folder", str(path.absolute().parent)),
            ("Read by", slide.backend),
            ("Size", _size(slide, mpp)),
            ("Resolution", _resolution(slide, mpp)),
            ("Objective", "" if slide.objective_power is None else f"{slide.objective_power:g}x"),
            ("Levels", _levels(slide)),
            ("Channels", ", ".join(slide.channels)),
            ("On disk", _bytes(path)),
        ]
        return About(
            path,
            tuple((name, text) for name, text in rows if text),
            tuple((name, str(value)) for name, value in sorted(slide.properties.items())),
            tuple(slide.associated_images),
        )


def _size(slide: Slide, mpp: Mpp | None) -> str:
    width, height = slide.size
    pixels = f"{width} × {height} px"
    known = mpp or slide.mpp
    if known is None:
        return pixels
    return f"{pixels}, {width * known.x / 1000:.1f} × {height * known.y / 1000:.1f} mm"


def _resolution(slide: Slide, mpp: Mpp | None) -> str:
    known = slide.mpp
    if known is None:
        return "not stated" if mpp is None else f"{_um(mpp)}, given by hand"
    text = f"{_um(known)} ({slide.mpp_source})" if slide.mpp_source else _um(known)
    if mpp is not None and max(abs(mpp.x / known.x - 1), abs(mpp.y / known.y - 1)) > _SAME:
        return f"{_um(mpp)}, given by hand; the file says {text}"
    return text


def _um(mpp: Mpp) -> str:
    if abs(mpp.x / mpp.y - 1) > _SAME:
        return f"{mpp.x:.4g} × {mpp.y:.4g} µm/px"
    return f"{mpp.x:.4g} µm/px"


def _levels(slide: Slide) -> str:
    steps = ", ".join(f"1/{level.downsample:.4g}" for level in slide.levels[1:])
    return f"{len(slide.levels)}: full size{', ' + steps if steps else ' only'}"


def _bytes(path: Path) -> str:
    if not path.is_file():
        return ""
    size = path.stat().st_size
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
