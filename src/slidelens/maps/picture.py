"""Pictures of a result without a display: the slide beside the slide with its heatmap."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.errors import ResultError
from slidelens.maps.palette import COLORMAPS, OUTLINE, TISSUE, class_colors, colormap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from PIL import Image, ImageDraw, ImageFont

    from slidelens.geometry import Mpp, Size
    from slidelens.maps.map import Map
    from slidelens.maps.regions import Region
    from slidelens.maps.result import Result

__all__ = ["draw_overlay", "overview", "scale_bar_um"]

_MARGIN = 24
_SMOOTH = 1  # PIL.Image.Resampling.LANCZOS, without importing it here


def overview(
    result: Result,
    thumbnail: NDArray[np.uint8],
    map_name: str | None = None,
    *,
    channel: str | None = None,
    panel: int = 720,
    regions: bool = True,
) -> Image.Image:
    """Draw a slide, and beside it the slide under its heatmap.

    Parameters
    ----------
    result
        With its maps; ``slide`` must state size and resolution.
    thumbnail
        ``(H, W, 3)`` uint8: the whole slide, of any size.
    map_name
        Which map; default: the first that is not of labels.
    channel
        Which class; default: the last, the positive one.
    panel
        Longer side of a panel in px.
    regions
        Outline the positive regions, in their class's colour.

    Returns
    -------
    RGB picture with title, colour bar, tissue outline and a scale bar in µm or mm.

    Raises
    ------
    ResultError
        No such map, or a slide of unknown size or resolution.
    """
    from PIL import Image, ImageDraw

    size, mpp = result.slide.size, result.slide.resolution
    if size is None or mpp is None:
        raise ResultError(f"{result.slide.id}: needs the slide's width, height and mpp to draw it.")
    source = _choose(result, map_name)
    name = channel or source.channels[-1]
    layout = _Layout.of(size, panel)
    plain = np.asarray(Image.fromarray(thumbnail).convert("RGB").resize(layout.panel, _SMOOTH))
    drawn = draw_overlay(plain, size, source, name, tissue=result.maps.get("tissue"))
    page = Image.new("RGB", layout.page, "white")
    page.paste(Image.fromarray(plain), layout.first)
    heat = Image.fromarray(drawn)
    outlined = result.regions if regions else ()
    _outline_regions(heat, size, outlined, result.classes)
    page.paste(heat, layout.second)
    draw = ImageDraw.Draw(page)
    for at in (layout.first, layout.second):
        _frame(draw, at, layout.panel)
    _title(draw, layout, result)
    _colour_bar(page, draw, layout, source, name)
    _legend(draw, layout, result, {region.label for region in outlined})
    _scale_bar(draw, layout, size, mpp)
    return page


def draw_overlay(
    picture: NDArray[np.uint8],
    size: Size,
    source: Map,
    channel: str | None = None,
    *,
    tissue: Map | None = None,
) -> NDArray[np.uint8]:
    """Blend a map over a picture of the whole slide, cell by cell, exactly in its place.

    Parameters
    ----------
    picture
        ``(H, W, 3)`` uint8 of the whole slide of ``size`` level-0 px.
    source, channel
        The map and which class of it; saliency and attention are scaled to their largest value.
        A label map takes the colours of its classes.
    tissue
        The tissue mask, to be outlined.
    """
    height, width = picture.shape[:2]
    if source.kind == "labels":
        table = np.zeros((len(source.channels) + 1, 4), np.float32)
        table[1:, :3] = np.array(list(class_colors(source.channels).values())) / 255
        table[1:, 3] = 0.6
        index = _sample(source, 0, (height, width), size).astype(np.intp)
    else:
        table = colormap(source.kind)
        values = _sample(source, source.channel(channel or -1), (height, width), size)
        top = 1.0 if source.kind == "probability" else float(np.nanmax(values, initial=0)) or 1.0
        index = (np.nan_to_num(values / top).clip(0, 1) * 255).astype(np.intp)
        table[0, 3] = 0.0
    color = table[index]
    out = picture * (1 - color[..., 3:]) + 255 * color[..., :3] * color[..., 3:]
    drawn = np.rint(out).astype(np.uint8)
    if tissue is not None:
        mask = _sample(tissue, 0, (height, width), size) > 0
        drawn[_border(mask)] = TISSUE
    return drawn


def scale_bar_um(width_um: float) -> float:
    """Return the length 1, 2 or 5 times a power of ten that is nearest below a fifth of a width."""
    target = width_um / 5
    power = 10.0 ** np.floor(np.log10(target))
    return float(max(step * power for step in (1, 2, 5) if step * power <= target * (1 + 1e-9)))


def _choose(result: Result, name: str | None) -> Map:
    names = [n for n, one in result.maps.items() if one.kind != "labels"] or list(result.maps)
    if not names or (name is not None and name not in result.maps):
        raise ResultError(
            f"{result.slide.id}: no map {name or 'to draw'!r}; it has {', '.join(result.maps)}."
        )
    return result.maps[name or names[0]]


def _sample(source: Map, channel: int, shape: tuple[int, int], size: Size) -> NDArray[Any]:
    """Return the values under the centres of a picture's pixels, from the level nearest to them."""
    height, width = shape
    levels = source.levels
    across = size.width / width  # level-0 px per picture px
    full = levels[0].shape
    chosen = levels[0]
    for level in levels:
        if source.affine.sx * full[2] / level.shape[2] <= across:
            chosen = level
    plane = np.asarray(chosen[channel : channel + 1, :, :])[0]
    fy, fx = full[1] / plane.shape[0], full[2] / plane.shape[1]
    a = source.affine
    columns = ((np.arange(width) + 0.5) * across - a.tx) / (a.sx * fx)
    rows = ((np.arange(height) + 0.5) * size.height / height - a.ty) / (a.sy * fy)
    out = np.full(shape, 0 if source.kind == "labels" else np.nan, plane.dtype)
    j, i = np.floor(columns).astype(int), np.floor(rows).astype(int)
    in_x, in_y = (j >= 0) & (j < plane.shape[1]), (i >= 0) & (i < plane.shape[0])
    out[np.ix_(in_y, in_x)] = plane[np.ix_(i[in_y], j[in_x])]
    return out


def _border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark the inner edge of a mask; the picture's own edge counts as outside."""
    inside = np.pad(mask, 1)
    core = inside.copy()
    for shift in (-1, 1):
        core &= np.roll(inside, shift, 0) & np.roll(inside, shift, 1)
    return np.asarray((inside & ~core)[1:-1, 1:-1])


@dataclass(frozen=True)
class _Layout:
    """Where things stand on the page, in px."""

    panel: tuple[int, int]
    page: tuple[int, int]
    first: tuple[int, int]
    second: tuple[int, int]
    bar: tuple[int, int, int, int]  # left, top, right, bottom of the colour bar
    foot: int  # top of the line of legend and scale bar
    font: int

    @classmethod
    def of(cls, size: Size, longest: int) -> _Layout:
        factor = longest / max(size)
        w, h = max(1, round(size.width * factor)), max(1, round(size.height * factor))
        font = max(12, longest // 42)
        top = _MARGIN + 3 * font
        first = (_MARGIN, top)
        if w > 1.6 * h:
            second = (_MARGIN, top + h + _MARGIN // 2)
        else:
            second = (_MARGIN + w + _MARGIN // 2, top)
        right, bottom = second[0] + w, second[1] + h
        height = min(h, 16 * font)
        bar = (right + _MARGIN, bottom - height, right + _MARGIN + font, bottom)
        page = (bar[2] + 6 * font, bottom + _MARGIN + 3 * font)
        return cls((w, h), page, first, second, bar, bottom + _MARGIN, font)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib as mpl
    from PIL import ImageFont

    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size)


def _frame(draw: ImageDraw.ImageDraw, at: tuple[int, int], panel: tuple[int, int]) -> None:
    x, y = at
    draw.rectangle((x - 1, y - 1, x + panel[0], y + panel[1]), outline=(160, 160, 160))


def _title(draw: ImageDraw.ImageDraw, layout: _Layout, result: Result) -> None:
    scores = "   ".join(f"{name} {p:.3f}" for name, p in result.probabilities.items())
    draw.text((_MARGIN, _MARGIN), result.slide.id, OUTLINE, _font(round(layout.font * 1.2)))
    second = _MARGIN + round(1.6 * layout.font)
    draw.text(
        (_MARGIN, second), f"{result.model.name}:  {scores}", (80, 80, 80), _font(layout.font)
    )


def _colour_bar(
    page: Image.Image, draw: ImageDraw.ImageDraw, layout: _Layout, source: Map, name: str
) -> None:
    from PIL import Image

    if source.kind not in COLORMAPS:
        return
    left, top, right, bottom = layout.bar
    table = colormap(source.kind)
    color = table[:, :3] * table[:, 3:] + (1 - table[:, 3:])  # as it looks on white
    strip = np.rint(255 * color[::-1, None]).astype(np.uint8)
    page.paste(Image.fromarray(strip).resize((right - left, bottom - top), _SMOOTH), (left, top))
    draw.rectangle((left - 1, top - 1, right, bottom), outline=(160, 160, 160))
    font = _font(layout.font)
    ends = ("1", "0.5", "0") if source.kind == "probability" else ("max", "", "0")
    for i, text in enumerate(ends):
        y = top + (bottom - top) * i // 2
        draw.text((right + 6, y), text, OUTLINE, font, anchor="lm")
    draw.text((left, top - round(3 * layout.font)), f"{source.name}", (80, 80, 80), font)
    draw.text((left, top - round(1.8 * layout.font)), name, OUTLINE, font)


def _legend(draw: ImageDraw.ImageDraw, layout: _Layout, result: Result, labels: set[str]) -> None:
    colors = class_colors(result.classes)
    entries = [("tissue", TISSUE)] if "tissue" in result.maps else []
    entries += [(f"{name} region", colors[name]) for name in result.classes if name in labels]
    x, font = _MARGIN, _font(layout.font)
    middle = layout.foot + layout.font // 2
    for text, color in entries:
        draw.line((x, middle, x + 2 * layout.font, middle), color, 3)
        x += round(2.5 * layout.font)
        draw.text((x, middle), text, OUTLINE, font, anchor="lm")
        x += round(draw.textlength(text, font)) + 2 * layout.font


def _scale_bar(draw: ImageDraw.ImageDraw, layout: _Layout, size: Size, mpp: Mpp) -> None:
    um = scale_bar_um(size.width * mpp.x)
    length = round(um / (size.width * mpp.x) * layout.panel[0])
    right = layout.second[0] + layout.panel[0]
    thick = max(3, layout.font // 5)
    middle = layout.foot + layout.font // 2
    draw.rectangle((right - length, middle - thick // 2, right, middle + thick // 2), OUTLINE)
    text = f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"
    place = (right - length - layout.font // 2, middle)
    draw.text(place, text, OUTLINE, _font(layout.font), anchor="rm")


def _outline_regions(
    picture: Image.Image, size: Size, regions: Sequence[Region], classes: Sequence[str]
) -> None:
    from PIL import ImageDraw

    draw = ImageDraw.Draw(picture)
    colors = class_colors(classes)
    factor = (picture.width / size.width, picture.height / size.height)
    for region in regions:
        for ring in (region.polygon.exterior, *region.polygon.interiors):
            line = [tuple(p) for p in (np.asarray(ring.coords)[:, :2] * factor).tolist()]
            draw.line(line, "white", 4, joint="curve")
            draw.line(line, colors.get(region.label, TISSUE), 2, joint="curve")
