"""A contact sheet of a trajectory: every window that the network looked at.

After figure 5 of magnifying-networks-2023.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slidelens.errors import ResultError
from slidelens.maps.palette import OUTLINE, depth_color
from slidelens.maps.picture import lettering

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image, ImageDraw

    from slidelens.geometry import Box
    from slidelens.maps.result import Result
    from slidelens.maps.trajectory import Trajectory

    Read = Callable[[Box, float], NDArray[np.uint8]]

__all__ = ["contact_sheet", "trajectory_of"]

_MARGIN = 24
_GAP = 10
_SIDE, _SIZE = 176, 12  # of a picture, and of letters
_GREY = (80, 80, 80)
_SMOOTH = 1  # PIL.Image.Resampling.LANCZOS, without importing it here


def trajectory_of(result: Result) -> Trajectory:
    """Return where a network looked.

    Raises
    ------
    ResultError
        The result has no trajectory.
    """
    if result.trajectory is None or not result.trajectory.windows:
        raise ResultError(
            f"{result.slide.id}: the result has no trajectory; only models that choose where to "
            "look (family magnet) make one."
        )
    return result.trajectory


def contact_sheet(result: Result, read: Read) -> Image.Image:
    """Draw every window that the network looked through.

    Each row is one window that others were chosen in, with their outlines, and beside it the chosen
    ones; windows of the last layer state the network's probabilities for the slide after them.

    Parameters
    ----------
    result
        With a trajectory.
    read
        Reads a box of level-0 px at a resolution in µm/px, as ``Slide.read`` does.

    Raises
    ------
    ResultError
        See :func:`trajectory_of`.
    """
    from PIL import Image, ImageDraw

    trajectory = trajectory_of(result)
    rows = [i for i in range(len(trajectory.windows)) if trajectory.children(i)]
    most = max((len(trajectory.children(i)) for i in rows), default=0)
    head, line = _MARGIN + 4 * _SIZE, _SIDE + round(1.9 * _SIZE) + _GAP
    width = 2 * _MARGIN + (most + 1) * (_SIDE + _GAP) + _GAP
    page = Image.new("RGB", (width, head + len(rows) * line + _MARGIN), "white")
    draw = ImageDraw.Draw(page)
    _title(draw, result)
    for number, index in enumerate(rows):
        top = head + number * line
        _picture(page, trajectory, index, read, (_MARGIN, top))
        for place, child in enumerate(trajectory.children(index), 1):
            left = _MARGIN + _GAP + place * (_SIDE + _GAP)
            _picture(page, trajectory, child, read, (left, top))
    return page


def _title(draw: ImageDraw.ImageDraw, result: Result) -> None:
    scores = "   ".join(f"{name} {p:.3f}" for name, p in result.probabilities.items())
    draw.text((_MARGIN, _MARGIN), result.slide.id, OUTLINE, lettering(round(1.3 * _SIZE)))
    below = f"{result.model.name}:  {scores}"
    draw.text((_MARGIN, _MARGIN + round(1.8 * _SIZE)), below, _GREY, lettering(_SIZE))


def _picture(
    page: Image.Image,
    trajectory: Trajectory,
    index: int,
    read: Read,
    at: tuple[int, int],
) -> None:
    """Draw one window in its frame, with its children's outlines and a caption."""
    from PIL import Image, ImageDraw

    window = trajectory.windows[index]
    # As the network saw it: nothing finer than its pixels.
    seen = Image.fromarray(read(window.box, window.mpp)).convert("RGB")
    picture = seen.resize((_SIDE, _SIDE), _SMOOTH)
    draw = ImageDraw.Draw(picture)
    for child in trajectory.children(index):
        inner = trajectory.windows[child]
        fx, fy = _SIDE / window.box.w, _SIDE / window.box.h
        x, y = (inner.box.x - window.box.x) * fx, (inner.box.y - window.box.y) * fy
        edges = (x, y, x + inner.box.w * fx - 1, y + inner.box.h * fy - 1)
        draw.rectangle(edges, outline="white", width=4)
        draw.rectangle(edges, outline=depth_color(inner.layer), width=2)
    page.paste(picture, at)
    drawn = ImageDraw.Draw(page)
    x, y = at
    frame = (x - 2, y - 2, x + _SIDE + 1, y + _SIDE + 1)
    drawn.rectangle(frame, None, depth_color(window.layer), 2)
    low = y + _SIDE + _SIZE // 3
    drawn.text((x, low), f"{index}  {window.magnification:.2g}x", _GREY, lettering(_SIZE))
    if window.layer == trajectory.depth and window.probabilities:
        said = f"{window.probabilities[-1]:.2f}"
        drawn.text((x + _SIDE, low), said, OUTLINE, lettering(_SIZE), "ra")
