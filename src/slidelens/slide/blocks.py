"""Read a box of pixels that are stored in equal blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from numpy.typing import NDArray

    from slidelens.slide.cache import TileCache

__all__ = ["read_blocks"]


def read_blocks(
    tiles: TileCache,
    name: tuple[Hashable, ...],
    make: Callable[[int, int], NDArray[Any]],
    block_size: tuple[int, int],
    box: tuple[int, int, int, int],
) -> NDArray[Any]:
    """Assemble ``(h, w, C)`` from the blocks that a box touches, using a cache.

    Parameters
    ----------
    tiles, name
        The cache, and the owner and level that its keys begin with.
    make
        ``make(row, column)`` decodes one block, ``(bh, bw, C)``, perhaps smaller at the border.
    block_size
        (width, height) of a block.
    box
        x, y, w, h; inside the area that the blocks cover.
    """
    x, y, w, h = box
    bw, bh = block_size
    rows, columns = range(y // bh, (y + h - 1) // bh + 1), range(x // bw, (x + w - 1) // bw + 1)
    places = {(*name, row, column): (row, column) for row in rows for column in columns}
    out: NDArray[Any] | None = None
    for key, pixels in tiles.each(places, lambda key: make(*places[key])):
        row, column = places[key]
        if out is None:
            out = np.empty((h, w, *pixels.shape[2:]), pixels.dtype)
        top, bottom = max(y, row * bh), min(y + h, (row + 1) * bh)
        left, right = max(x, column * bw), min(x + w, (column + 1) * bw)
        out[top - y : bottom - y, left - x : right - x] = pixels[
            top - row * bh : bottom - row * bh, left - column * bw : right - column * bw
        ]
    assert out is not None
    return out
