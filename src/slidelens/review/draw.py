"""Draw scale bars, numbered fields and outlines on evidence, and encode it as JPEG."""

from __future__ import annotations

from io import BytesIO
from math import dist, inf
from typing import TYPE_CHECKING

import numpy as np

from slidelens.maps.overlay import scale_bar_um
from slidelens.maps.picture import lettering

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from PIL import Image, ImageDraw

    from slidelens.geometry import Box
    from slidelens.tiling.annotations import Annotation

__all__ = ["encode", "mark_fields", "mark_outlines", "mark_scale"]

_BLACK, _WHITE = (20, 20, 20), (255, 255, 255)
_QUALITY = 75


def mark_scale(picture: Image.Image, um_per_px: float) -> float:
    """Draw a scale bar at the lower left, dark on a light ground; return its length in µm."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(picture, "RGBA")
    um = scale_bar_um(picture.width * um_per_px)
    length, size = max(1, round(um / um_per_px)), _text_px(picture, 19)
    text = f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"
    font = lettering(size)
    wide, pad = max(length, round(draw.textlength(text, font))), size // 2
    thick = max(2, size // 5)
    bottom = picture.height - pad
    top = bottom - thick - size - pad
    draw.rectangle((pad, top, 2 * pad + wide + pad, bottom), (255, 255, 255, 205))
    left, line = 2 * pad, bottom - pad // 2
    draw.rectangle((left, line - thick, left + length - 1, line), _BLACK)
    draw.text((left, line - thick - 1), text, _BLACK, font, anchor="lb")
    return um


def mark_fields(picture: Image.Image, shown: Box, fields: Sequence[Box], *, numbers: bool) -> None:
    """Outline fields and number them from 1, visibly on any background.

    Parameters
    ----------
    picture
        Shows the part ``shown`` of the slide.
    shown, fields
        In level-0 px.
    """
    from PIL import ImageDraw

    draw = ImageDraw.Draw(picture)
    fx, fy = picture.width / shown.w, picture.height / shown.h
    size, taken = _text_px(picture), list[tuple[int, int]]()
    for number, field in enumerate(fields, 1):
        left, top = round((field.x - shown.x) * fx), round((field.y - shown.y) * fy)
        right, bottom = round((field.right - shown.x) * fx), round((field.bottom - shown.y) * fy)
        least = size // 2  # a field too small to see is marked by a small square
        if right - left < least:
            left, right = (left + right - least) // 2, (left + right + least) // 2
        if bottom - top < least:
            top, bottom = (top + bottom - least) // 2, (top + bottom + least) // 2
        draw.rectangle((left - 2, top - 2, right + 1, bottom + 1), outline=_WHITE, width=4)
        draw.rectangle((left - 1, top - 1, right, bottom), outline=_BLACK, width=2)
        if numbers:
            corners = ((right, top), (left, top), (right, bottom), (left, bottom))
            room = [min((dist(at, t) for t in taken), default=inf) for at in corners]
            near = [at for at, far in zip(corners, room, strict=True) if far > 2 * size]
            taken.append(near[0] if near else corners[room.index(max(room))])
            _tag(draw, picture, str(number), taken[-1], size)


def mark_outlines(picture: Image.Image, shown: Box, areas: Iterable[Annotation]) -> None:
    """Outline annotated areas in black on white."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(picture)
    scale = (picture.width / shown.w, picture.height / shown.h)
    for area in areas:
        for part in getattr(area.polygon, "geoms", [area.polygon]):
            for ring in (part.exterior, *part.interiors):
                points = (np.asarray(ring.coords)[:, :2] - (shown.x, shown.y)) * scale
                line = [tuple(point) for point in points.tolist()]
                draw.line(line, _WHITE, 4, joint="curve")
                draw.line(line, _BLACK, 2, joint="curve")


def encode(picture: Image.Image | NDArray[np.uint8]) -> bytes:
    """Return a small JPEG file, without any metadata."""
    from PIL import Image as Pillow

    image = Pillow.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    stream = BytesIO()
    image.save(stream, "JPEG", quality=_QUALITY, optimize=True)
    return stream.getvalue()


def _tag(
    draw: ImageDraw.ImageDraw, picture: Image.Image, text: str, at: tuple[int, int], size: int
) -> None:
    """Write a number at a field's corner, inside the picture."""
    font = lettering(size)
    wide, high = round(draw.textlength(text, font)) + size // 2, size + size // 4
    x = min(max(at[0] - wide // 2, 0), picture.width - wide)
    y = min(max(at[1] - high // 2, 0), picture.height - high)
    draw.rectangle((x, y, x + wide - 1, y + high - 1), _BLACK)
    draw.text((x + wide / 2, y + high / 2), text, _WHITE, font, anchor="mm")


def _text_px(picture: Image.Image, share: int = 24) -> int:
    """Return a text size that is legible where a page shows the picture small."""
    return max(11, round(max(picture.size) / share))
