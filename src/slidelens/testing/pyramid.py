"""Write a tiled JPEG pyramid as TIFF, band by band: level 0 is never whole in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import imagecodecs
import numpy as np
import tifffile

from slidelens.geometry import Box, Mpp, Size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["write_pyramid"]

_TILE = 256
_FACTOR = 4
_LEVELS = 3
BLOCK = _TILE * _FACTOR ** (_LEVELS - 1)
"""Level-0 px that hold whole tiles of every level."""

_Tiles = dict[tuple[int, int, int], bytes]


def write_pyramid(
    path: Path,
    size: Size,
    mpp: Mpp,
    draw: Callable[[Box], NDArray[np.uint8]],
    *,
    quality: int = 85,
    repeat: tuple[int, int] = (1, 1),
) -> None:
    """Write levels 1, 1/4 and 1/16 (fewer for small slides), each the area mean of the one above.

    Parameters
    ----------
    path
        File to write (BigTIFF where it may pass 4 GB).
    size
        Of what ``draw`` draws, level-0 px.
    mpp
        Goes to the TIFF's resolution tags, in px per cm.
    draw
        ``draw(box)`` gives ``(h, w, 3)`` uint8 RGB of whole pixels inside ``size``.
    quality
        JPEG quality, 4:2:0.
    repeat
        Lay the slide out this many times along x and y, reusing its encoded tiles.

    Raises
    ------
    ValueError
        A repeated size whose pyramid would not repeat exactly.
    """
    if repeat != (1, 1) and (size.width % BLOCK or size.height % BLOCK):
        raise ValueError(f"a slide of {size} px does not repeat: need multiples of {BLOCK} px")
    whole = Size(size.width * repeat[0], size.height * repeat[1])
    levels = 1
    while levels < _LEVELS and max(whole) > _TILE * _FACTOR ** (levels - 1):
        levels += 1
    store: _Tiles = {}
    with tifffile.TiffWriter(path, bigtiff=whole.width * whole.height > 4e9) as tif:
        for level in range(levels):
            scale = _FACTOR**level
            shape = (-(-whole.height // scale), -(-whole.width // scale), 3)
            if level == 0 and repeat == (1, 1):
                tiles = _draw_bands(size, draw, quality, levels, store)
            else:
                if level == 0:
                    for _ in _draw_bands(size, draw, quality, levels, store, keep=True):
                        pass
                tiles = _stored(store, level, size, repeat)
            tif.write(
                tiles,
                shape=shape,
                dtype=np.uint8,
                tile=(_TILE, _TILE),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                resolution=(1e4 / mpp.x / scale, 1e4 / mpp.y / scale),
                resolutionunit="CENTIMETER",
                subfiletype=int(level > 0),
                metadata=None,
                software=False,
            )


def _draw_bands(
    size: Size,
    draw: Callable[[Box], NDArray[np.uint8]],
    quality: int,
    levels: int,
    store: _Tiles,
    keep: bool = False,
) -> Iterator[bytes]:
    """Draw band after band of blocks; yield level-0 tiles in order, store those of other levels."""
    columns = -(-size.width // _TILE)
    for top in range(0, size.height, BLOCK):
        for left in range(0, size.width, BLOCK):
            w, h = min(BLOCK, size.width - left), min(BLOCK, size.height - top)
            _encode_block(draw(Box(left, top, w, h)), left, top, quality, levels, store)
        bottom = min(top + BLOCK, size.height)
        for row in range(top // _TILE, -(-bottom // _TILE)):
            for column in range(columns):
                key = (0, row, column)
                yield store[key] if keep else store.pop(key)


def _encode_block(
    image: NDArray[np.uint8], left: int, top: int, quality: int, levels: int, store: _Tiles
) -> None:
    for level in range(levels):
        if level:
            image = _shrink(image)
        row0, column0 = (v // (_TILE * _FACTOR**level) for v in (top, left))
        for y in range(0, image.shape[0], _TILE):
            for x in range(0, image.shape[1], _TILE):
                part = image[y : y + _TILE, x : x + _TILE]
                pad = [(0, _TILE - part.shape[0]), (0, _TILE - part.shape[1]), (0, 0)]
                encoded = imagecodecs.jpeg8_encode(
                    np.pad(part, pad, mode="edge"),
                    level=quality,
                    colorspace="rgb",
                    outcolorspace="ycbcr",
                    subsampling="420",
                )
                store[level, row0 + y // _TILE, column0 + x // _TILE] = bytes(encoded)


def _shrink(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Area mean of ``_FACTOR`` squares; those at the right and bottom repeat the last pixels."""
    pad = [(0, -n % _FACTOR) for n in image.shape[:2]]
    padded = np.pad(image, [*pad, (0, 0)], mode="edge").astype(np.uint16)
    h, w = padded.shape[0] // _FACTOR, padded.shape[1] // _FACTOR
    rows = padded.reshape(h, _FACTOR, w * _FACTOR, 3).sum(axis=1, dtype=np.uint16)
    sums = rows.reshape(h, w, _FACTOR, 3).sum(axis=2, dtype=np.uint16)
    half = _FACTOR * _FACTOR // 2
    return np.asarray((sums + half) // (_FACTOR * _FACTOR), np.uint8)


def _stored(store: _Tiles, level: int, size: Size, repeat: tuple[int, int]) -> Iterator[bytes]:
    scale = _TILE * _FACTOR**level
    columns, rows = -(-size.width // scale), -(-size.height // scale)
    for row in range(rows * repeat[1]):
        for column in range(columns * repeat[0]):
            yield store[level, row % rows, column % columns]
