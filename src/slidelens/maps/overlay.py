"""Draw a map over a picture of the slide or a part of it, each cell exactly in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.geometry import Box
from slidelens.maps.palette import TISSUE, class_colors, colormap

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from slidelens.geometry import Size
    from slidelens.maps.map import Map

__all__ = ["draw_overlay", "scale_bar_um", "scale_top"]

_SALIENT = 0.995

_LABEL_OPACITY = 0.6


def draw_overlay(
    picture: NDArray[np.uint8],
    size: Size,
    source: Map,
    channel: str | None = None,
    *,
    box: Box | None = None,
    tissue: Map | None = None,
    opacity: float = 1.0,
) -> NDArray[np.uint8]:
    """Blend a map over a picture, cell by cell, exactly in its place.

    Parameters
    ----------
    picture
        ``(H, W, 3)`` uint8 of the slide of ``size`` level-0 px, or of a part of it.
    source, channel
        The map and its class; the upper end of its colours is :func:`scale_top`. A label map takes
        the colours of its classes.
    box
        The part of the slide that the picture shows, in level-0 px; by default all of it.
    tissue
        The tissue mask, to be outlined.
    opacity
        Of the whole overlay; viewers take 0.7.
    """
    box = Box.of_size(size) if box is None else box
    if source.kind == "labels":
        table = np.zeros((len(source.channels) + 1, 4), np.float32)
        table[1:, :3] = np.array(list(class_colors(source.channels).values())) / 255
        table[1:, 3] = _LABEL_OPACITY
        index = _sample(source, 0, picture.shape[:2], box).astype(np.intp)
    else:
        table = colormap(source.kind)
        plane = source.channel(channel or -1)
        values = _sample(source, plane, picture.shape[:2], box) / scale_top(source, plane)
        index = (np.nan_to_num(values).clip(0, 1) * 255).astype(np.intp)
        table[0, 3] = 0.0
    table[:, 3] *= opacity
    color = table[index]
    out = picture * (1 - color[..., 3:]) + 255 * color[..., :3] * color[..., 3:]
    drawn = np.rint(out).astype(np.uint8)
    if tissue is not None:
        drawn[_border(_sample(tissue, 0, picture.shape[:2], box) > 0)] = TISSUE
    return drawn


def scale_top(source: Map, channel: str | int = -1) -> float:
    """Return the value of the colours' upper end, as viewers choose it.

    It is 1 for probabilities. Attention and saliency have no scale of their own, so it is taken
    from the channel's coarsest level: the largest attention, or the saliency that one cell in 200
    exceeds, because a single cell (on a speck of dust, say) is often far above all others.
    """
    if source.kind == "probability":
        return 1.0
    plane = source.channel(channel)
    values = np.asarray(source.levels[-1][plane : plane + 1, :, :])
    positive = values[np.isfinite(values) & (values > 0)]
    if not len(positive):
        return 1.0
    return float(np.quantile(positive, _SALIENT) if source.kind == "saliency" else positive.max())


def scale_bar_um(width_um: float) -> float:
    """Return the length 1, 2 or 5 times a power of ten that is nearest below a fifth of a width."""
    target = width_um / 5
    power = 10.0 ** np.floor(np.log10(target))
    return float(max(step * power for step in (1, 2, 5) if step * power <= target * (1 + 1e-9)))


def _sample(source: Map, channel: int, shape: tuple[int, ...], box: Box) -> NDArray[Any]:
    """Return the values under the centres of a picture's pixels, from the level nearest to them."""
    height, width = shape[:2]
    across, down = box.w / width, box.h / height  # level-0 px per picture px
    a, full = source.affine, source.levels[0].shape
    chosen = source.levels[0]
    for level in source.levels:
        if a.sx * full[2] / level.shape[2] <= across:
            chosen = level
    sx, sy = a.sx * full[2] / chosen.shape[2], a.sy * full[1] / chosen.shape[1]
    columns = (box.x + (np.arange(width) + 0.5) * across - a.tx) / sx
    rows = (box.y + (np.arange(height) + 0.5) * down - a.ty) / sy
    out = np.full((height, width), 0 if source.kind == "labels" else np.nan, source.dtype)
    j, i = np.floor(columns).astype(int), np.floor(rows).astype(int)
    in_x, in_y = (j >= 0) & (j < chosen.shape[2]), (i >= 0) & (i < chosen.shape[1])
    if in_x.any() and in_y.any():
        left, top, right, bottom = j[in_x][0], i[in_y][0], j[in_x][-1] + 1, i[in_y][-1] + 1
        part = np.asarray(chosen[channel : channel + 1, top:bottom, left:right])[0]
        out[np.ix_(in_y, in_x)] = part[np.ix_(i[in_y] - top, j[in_x] - left)]
    return out


def _border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark the inner edge of a mask; the picture's own edge counts as outside."""
    inside = np.pad(mask, 1)
    core = inside.copy()
    for shift in (-1, 1):
        core &= np.roll(inside, shift, 0) & np.roll(inside, shift, 1)
    return np.asarray((inside & ~core)[1:-1, 1:-1])
