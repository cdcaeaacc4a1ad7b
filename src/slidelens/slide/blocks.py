"""Read a box from pixels that are stored in equal blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["read_blocks"]


def read_blocks(
    block: Callable[[int, int], NDArray[Any]],
    block_size: tuple[int, int],
    box: tuple[int, int, int, int],
) -> NDArray[Any]:
    """Assemble ``(h, w, C)`` from the blocks that a box touches.

    Parameters
    ----------
    block
        ``block(row, column)`` gives ``(bh, bw, C)``, at the border perhaps smaller.
    block_size
        (width, height) of a block.
    box
        x, y, w, h; inside the area that the blocks cover.
    """
    x, y, w, h = box
    bw, bh = block_size
    out: NDArray[Any] | None = None
    for row in range(y // bh, (y + h - 1) // bh + 1):
        top, bottom = max(y, row * bh), min(y + h, (row + 1) * bh)
        for column in range(x // bw, (x + w - 1) // bw + 1):
            left, right = max(x, column * bw), min(x + w, (column + 1) * bw)
            pixels = block(row, column)
            if out is None:
                out = np.empty((h, w, *pixels.shape[2:]), pixels.dtype)
            out[top - y : bottom - y, left - x : right - x] = pixels[
                top - row * bh : bottom - row * bh, left - column * bw : right - column * bw
            ]
    assert out is not None
    return out
