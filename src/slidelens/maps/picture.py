"""Overview pictures of results, made without a display."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slidelens.errors import ResultError
from slidelens.maps.overlay import draw_overlay, scale_bar_um, scale_top
from slidelens.maps.palette import COLORMAPS, OUTLINE, TISSUE, class_colors, colormap
from slidelens.maps.result import Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from PIL import Image, ImageDraw, ImageFont

    from slidelens.geometry import Mpp, Size
    from slidelens.maps.map import Map
    from slidelens.maps.regions import Region

__all__ = ["lettering", "overview"]

_MARGIN = 24
_GREY = (80, 80, 80)
_SMOOTH = 1  # PIL.Image.Resampling.LANCZOS, without importing it here


def overview(
    results: Result | Sequence[Result],
    thumbnail: NDArray[np.uint8],
    map_name: str | None = None,
    *,
    panel: int = 720,
    regions: bool = True,
) -> Image.Image:
    """Draw a slide, and beside it the slide under the heatmap of each result.

    Parameters
    ----------
    results
        One, or several of the same slide, with their maps; ``slide`` must state size and
        resolution.
    thumbnail
        ``(H, W, 3)`` uint8: the whole slide, of any size.
    map_name
        Which map; default: the first that is not of labels, and those of saliency beside it. Its
        last class, the positive one, is drawn.
    panel
        Longer side of a panel in px.
    regions
        Outline the positive regions, in their class's colour.

    Returns
    -------
    RGB picture with scores, colour bars, tissue outlines and a scale bar in µm or mm.

    Raises
    ------
    ResultError
        No such map, a slide of unknown size or resolution, or results of different slides.
    """
    from PIL import Image, ImageDraw

    several = (results,) if isinstance(results, Result) else tuple(results)
    size, mpp = _world_of(several)
    sources = [(result, source) for result in several for source in _choose(result, map_name)]
    layout = _Layout.of(size, panel, 1 + len(sources))
    plain = np.asarray(Image.fromarray(thumbnail).convert("RGB").resize(layout.panel, _SMOOTH))
    page = Image.new("RGB", layout.page, "white")
    draw = ImageDraw.Draw(page)
    page.paste(Image.fromarray(plain), layout.places[0])
    extent = f"{_length(size.width * mpp.x)} x {_length(size.height * mpp.y)}"
    _caption(draw, layout, layout.places[0], several[0].slide.id, extent)
    for (result, source), place in zip(sources, layout.places[1:], strict=True):
        name = source.channels[-1]
        heat = Image.fromarray(
            draw_overlay(plain, size, source, name, tissue=result.maps.get("tissue"))
        )
        _outline_regions(heat, size, result.regions if regions else (), result.classes)
        page.paste(heat, place)
        _caption(draw, layout, place, result.model.name, _scores(result))
        _colour_bar(page, draw, layout, place, source, name)
    for place in layout.places:
        _frame(draw, place, layout.panel)
    _legend(draw, layout, several, regions)
    _scale_bar(draw, layout, size, mpp)
    return page


def _world_of(results: Sequence[Result]) -> tuple[Size, Mpp]:
    """Return size and resolution of the one slide that results are of."""
    if len({result.slide.id for result in results}) != 1:
        ids = ", ".join(sorted({result.slide.id for result in results})) or "none"
        raise ResultError(f"an overview shows results of one slide; these are of: {ids}.")
    for result in results:
        size, mpp = result.slide.size, result.slide.resolution
        if size is not None and mpp is not None:
            return size, mpp
    raise ResultError(f"{results[0].slide.id}: needs the slide's width, height and mpp to draw it.")


def _choose(result: Result, name: str | None) -> list[Map]:
    names = [n for n, one in result.maps.items() if one.kind != "labels"] or list(result.maps)
    if not names or (name is not None and name not in result.maps):
        raise ResultError(
            f"{result.slide.id}: no map {name or 'to draw'!r}; it has {', '.join(result.maps)}."
        )
    if name is not None:
        return [result.maps[name]]
    more = [n for n in names[1:] if result.maps[n].kind == "saliency"]
    return [result.maps[n] for n in (names[0], *more)]


@dataclass(frozen=True)
class _Layout:
    """Positions of things on the page, in px."""

    panel: tuple[int, int]
    page: tuple[int, int]
    places: tuple[tuple[int, int], ...]  # left, top of each panel; its caption is above
    foot: int  # top of the line of legend and scale bar
    font: int

    @classmethod
    def of(cls, size: Size, longest: int, count: int) -> _Layout:
        factor = longest / max(size)
        w, h = max(1, round(size.width * factor)), max(1, round(size.height * factor))
        wide = w > 1.6 * h
        columns = (1 if count <= 3 else 2) if wide else (2 if count in (2, 4) else 3)
        font = max(12, longest // 42)
        head, gap = round(3.4 * font), _MARGIN // 2
        places = tuple(
            (_MARGIN + n % columns * (w + gap), _MARGIN // 2 + head + n // columns * (h + head))
            for n in range(count)
        )
        foot = places[-1][1] + h + gap
        right = max(left for left, _ in places) + w
        return cls((w, h), (right + _MARGIN, foot + font + _MARGIN), places, foot, font)


@cache
def lettering(size: int) -> ImageFont.FreeTypeFont:
    """Return the font of all pictures, which has µ, at a size in px."""
    import matplotlib as mpl
    from PIL import ImageFont

    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size)


def _frame(draw: ImageDraw.ImageDraw, at: tuple[int, int], panel: tuple[int, int]) -> None:
    x, y = at
    draw.rectangle((x - 1, y - 1, x + panel[0], y + panel[1]), outline=(160, 160, 160))


def _caption(
    draw: ImageDraw.ImageDraw, layout: _Layout, place: tuple[int, int], title: str, below: str
) -> None:
    left, top = place
    size = layout.font
    draw.text((left, top - round(1.7 * size)), title, OUTLINE, lettering(round(1.15 * size)), "ls")
    draw.text((left, top - size // 2), below, _GREY, lettering(size), "ls")


def _scores(result: Result) -> str:
    """Name the most probable classes; three fit beside the colour bar."""
    names = sorted(result.probabilities, key=lambda name: -result.probabilities[name])[:3]
    return "   ".join(f"{n} {p:.3f}" for n, p in result.probabilities.items() if n in names)


def _colour_bar(
    page: Image.Image,
    draw: ImageDraw.ImageDraw,
    layout: _Layout,
    place: tuple[int, int],
    source: Map,
    name: str,
) -> None:
    """Draw the colours of a map above the right end of its panel."""
    from PIL import Image

    font, size = lettering(layout.font), layout.font
    right, low = place[0] + layout.panel[0], place[1] - size // 2
    draw.text((right, low - round(1.3 * size)), f"{source.name}: {name}", _GREY, font, "rs")
    if source.kind not in COLORMAPS:
        return
    cut = "≥ " * (source.kind == "saliency")  # what is above has the same colour
    end = f"{cut}{scale_top(source, name):.2g}"
    draw.text((right, low), end, OUTLINE, font, "rs")
    right -= round(draw.textlength(end, font)) + size // 3
    width, height = layout.panel[0] // 5, round(0.7 * size)
    table = colormap(source.kind)
    color = table[:, :3] * table[:, 3:] + (1 - table[:, 3:])  # as it looks on white
    strip = Image.fromarray(np.rint(255 * color[None]).astype(np.uint8))
    page.paste(strip.resize((width, height), _SMOOTH), (right - width, low - height))
    box = (right - width - 1, low - height - 1, right, low)
    draw.rectangle(box, outline=(160, 160, 160))
    draw.text((right - width - size // 3, low), "0", OUTLINE, font, "rs")


def _legend(
    draw: ImageDraw.ImageDraw, layout: _Layout, results: Sequence[Result], regions: bool
) -> None:
    entries = {"tissue": TISSUE} if any("tissue" in r.maps for r in results) else {}
    for result in results:
        colors = class_colors(result.classes)
        drawn = {region.label for region in result.regions} if regions else set()
        entries |= {f"{name} region": colors[name] for name in result.classes if name in drawn}
    x, font = _MARGIN, lettering(layout.font)
    middle = layout.foot + layout.font // 2
    for text, color in entries.items():
        draw.line((x, middle, x + 2 * layout.font, middle), color, 3)
        x += round(2.5 * layout.font)
        draw.text((x, middle), text, OUTLINE, font, anchor="lm")
        x += round(draw.textlength(text, font)) + 2 * layout.font


def _scale_bar(draw: ImageDraw.ImageDraw, layout: _Layout, size: Size, mpp: Mpp) -> None:
    um = scale_bar_um(size.width * mpp.x)
    length = round(um / (size.width * mpp.x) * layout.panel[0])
    right = layout.page[0] - _MARGIN
    thick = max(3, layout.font // 5)
    middle = layout.foot + layout.font // 2
    draw.rectangle((right - length, middle - thick // 2, right, middle + thick // 2), OUTLINE)
    place = (right - length - layout.font // 2, middle)
    draw.text(place, _length(um), OUTLINE, lettering(layout.font), anchor="rm")


def _length(um: float) -> str:
    return f"{um / 1000:.3g} mm" if um >= 1000 else f"{um:.3g} µm"


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
