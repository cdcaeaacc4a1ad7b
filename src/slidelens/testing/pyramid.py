"""Write a tiled JPEG pyramid as TIFF, band by band."""

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
_GLASS = 246
"""Grey level of bare glass."""
_DRAWN = 3
"""Levels made from drawn pixels; coarser ones are made from the tiles of the level before."""

_BARE = (-1, 0, 0)
"""Where the tile of bare glass is kept."""

_COARSEST = 2048  # px, the longer side; programs read the coarsest level whole
BLOCK = _TILE * _FACTOR ** (_DRAWN - 1)
"""Level-0 px that hold whole tiles of every drawn level."""


def write_pyramid(
    path: Path,
    size: Size,
    mpp: Mpp,
    draw: Callable[[Box], NDArray[np.uint8]],
    *,
    quality: int = 85,
    repeat: tuple[int, int] = (1, 1),
    place: tuple[int, int] | None = None,
) -> None:
    """Write levels 1, 1/4, 1/16, ... until one is small, each the area mean of the one above.

    Parameters
    ----------
    path
        File to write (BigTIFF if it may exceed 4 GB).
    size
        Of the drawn part, in level-0 px.
    mpp
        Written to the TIFF's resolution tags, in px per cm.
    draw
        ``draw(box)`` returns ``(h, w, 3)`` uint8 RGB of whole pixels inside ``size``.
    quality
        JPEG quality, 4:2:0.
    repeat
        Lay the slide out this many times along x and y, reusing its encoded tiles.
    place
        Column and row of the only repeat to be drawn; the others are bare glass.

    Raises
    ------
    ValueError
        A repeated size whose pyramid would not repeat exactly, or a place beyond the repeats.
    """
    if repeat != (1, 1) and (size.width % BLOCK or size.height % BLOCK):
        raise ValueError(f"a slide of {size} px does not repeat: need multiples of {BLOCK} px")
    if place is not None and not all(0 <= at < n for at, n in zip(place, repeat, strict=True)):
        raise ValueError(f"place {place} is not among the {repeat} repeats")
    pyramid = _Pyramid(size, repeat, place, quality, draw)
    width, height = pyramid.whole
    with tifffile.TiffWriter(path, bigtiff=width * height > 4e9) as tif:
        for level in range(pyramid.levels):
            scale = _FACTOR**level
            tif.write(
                pyramid.tiles(level),
                shape=(-(-height // scale), -(-width // scale), 3),
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


class _Pyramid:
    """Encoded tiles of all levels; :meth:`tiles` must be called for them in order."""

    def __init__(
        self,
        size: Size,
        repeat: tuple[int, int],
        place: tuple[int, int] | None,
        quality: int,
        draw: Callable[[Box], NDArray[np.uint8]],
    ) -> None:
        self._size, self._repeat, self._quality, self._draw = size, repeat, quality, draw
        self._place = place
        glass = np.full((_TILE, _TILE, 3), _GLASS, np.uint8)
        self._kept: dict[tuple[int, int, int], bytes] = {_BARE: self._encode(glass)}
        self.whole = Size(size.width * repeat[0], size.height * repeat[1])
        self._drawn = 1
        while self._drawn < _DRAWN and max(self.whole) > _TILE * _FACTOR ** (self._drawn - 1):
            self._drawn += 1
        self.levels = self._drawn
        while max(self.whole) > _COARSEST * _FACTOR ** (self.levels - 1):
            self.levels += 1

    def tiles(self, level: int) -> Iterator[bytes]:
        """Yield all tiles of a level, row by row."""
        if level == 0:
            bands = self._bands(keep=self._repeat != (1, 1))
            if self._repeat == (1, 1):
                yield from bands
                return
            for _ in bands:  # all must be drawn before the first row ends
                pass
        scale = _TILE * _FACTOR**level
        for row in range(-(-self.whole.height // scale)):
            for column in range(-(-self.whole.width // scale)):
                if level >= self._drawn:
                    image = _shrink(self._region(level - 1, row, column))
                    self._kept[level, row, column] = self._encode(image)
                yield self._kept[self._key(level, row, column)]

    def _key(self, level: int, row: int, column: int) -> tuple[int, int, int]:
        """Return where a tile is stored; of a drawn level, only the drawn part is."""
        if level < self._drawn:
            scale = _TILE * _FACTOR**level
            down, row = divmod(row, -(-self._size.height // scale))
            across, column = divmod(column, -(-self._size.width // scale))
            if self._place not in (None, (across, down)):
                return _BARE
        return level, row, column

    def _bands(self, keep: bool) -> Iterator[bytes]:
        """Draw band after band of blocks; yield level-0 tiles in order, keep the other levels'."""
        width, height = self._size
        for top in range(0, height, BLOCK):
            for left in range(0, width, BLOCK):
                w, h = min(BLOCK, width - left), min(BLOCK, height - top)
                self._encode_block(self._draw(Box(left, top, w, h)), left, top)
            for row in range(top // _TILE, -(-min(top + BLOCK, height) // _TILE)):
                for column in range(-(-width // _TILE)):
                    key = (0, row, column)
                    yield self._kept[key] if keep else self._kept.pop(key)

    def _encode_block(self, image: NDArray[np.uint8], left: int, top: int) -> None:
        for level in range(self._drawn):
            if level:
                image = _shrink(image)
            row0, column0 = (v // (_TILE * _FACTOR**level) for v in (top, left))
            for y in range(0, image.shape[0], _TILE):
                for x in range(0, image.shape[1], _TILE):
                    encoded = self._encode(image[y : y + _TILE, x : x + _TILE])
                    self._kept[level, row0 + y // _TILE, column0 + x // _TILE] = encoded

    def _encode(self, image: NDArray[np.uint8]) -> bytes:
        pad = [(0, _TILE - n) for n in image.shape[:2]]
        encoded = imagecodecs.jpeg8_encode(
            np.pad(image, [*pad, (0, 0)], mode="edge"),
            level=self._quality,
            colorspace="rgb",
            outcolorspace="ycbcr",
            subsampling="420",
        )
        return bytes(encoded)

    def _region(self, level: int, row: int, column: int) -> NDArray[np.uint8]:
        """Decode the pixels of a level that one tile of the next one shows."""
        scale, side = _FACTOR**level, _TILE * _FACTOR
        x, y = column * side, row * side
        w, h = (min(side, -(-n // scale) - at) for n, at in zip(self.whole, (x, y), strict=True))
        image = np.empty((h, w, 3), np.uint8)
        for top in range(0, h, _TILE):
            for left in range(0, w, _TILE):
                key = self._key(level, (y + top) // _TILE, (x + left) // _TILE)
                part = image[top : top + _TILE, left : left + _TILE]
                part[:] = imagecodecs.jpeg8_decode(self._kept[key])[
                    : part.shape[0], : part.shape[1]
                ]
        return image


def _shrink(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Area mean of ``_FACTOR`` squares; those at the right and bottom repeat the last pixels."""
    pad = [(0, -n % _FACTOR) for n in image.shape[:2]]
    padded = np.pad(image, [*pad, (0, 0)], mode="edge").astype(np.uint16)
    h, w = padded.shape[0] // _FACTOR, padded.shape[1] // _FACTOR
    rows = padded.reshape(h, _FACTOR, w * _FACTOR, 3).sum(axis=1, dtype=np.uint16)
    sums = rows.reshape(h, w, _FACTOR, 3).sum(axis=2, dtype=np.uint16)
    half = _FACTOR * _FACTOR // 2
    return np.asarray((sums + half) // (_FACTOR * _FACTOR), np.uint8)
