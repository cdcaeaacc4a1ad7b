"""Tiles per second against plain OpenSlide, with as many threads, on the same boxes.

Plain OpenSlide is ``np.asarray(slide.read_region(corner, level, size).convert("RGB"))``. Every run
opens its slide anew, so neither finds its own tiles decoded; opening is not timed; runs take turns.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import openslide
from common import DATA, Claim, at_least, interleaved, main, ratio

from slidelens import Box, open_slide

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SLIDES = {
    "SVS, JPEG": "wsi/CMU-1-Small-Region.svs",
    "SVS, JPEG 2000": "wsi/TCGA-CR-7395-01A-01-TS1.svs",
    "NDPI": "wsi/test3-DAPI-2-387.ndpi",
    "pyramidal TIFF": "wsi/colon_polyp_203mp.tif",
}
TILE = 256
TARGET = 0.97
Corner = tuple[int, int]


def measure(quick: bool) -> tuple[list[Claim], dict[str, Any]]:
    """Read a grid of neighbouring tiles, and tiles at random places, from every slide."""
    threads = os.cpu_count() or 1
    rounds, tiles = (5, 120) if quick else (11, 400)
    claims, runs = [], []
    for kind, name in SLIDES.items():
        path = DATA / name
        for order, corners in boxes(path, tiles).items():
            check_same(path, corners[:5])
            seconds = interleaved(ways(path, corners, threads), rounds)
            plain, ours = seconds["openslide"], seconds["slidelens"]
            gain = ratio(plain, ours)
            claims.append(at_least(f"{kind}, {order}: tiles/s over OpenSlide's", gain, TARGET, "x"))
            n = len(corners)
            rates = {way: round(n / statistics.median(s), 1) for way, s in seconds.items()}
            runs.append({"slide": kind, "order": order, "tiles": n, "tiles_per_s": rates})
    return claims, {"threads": threads, "tile_px": TILE, "runs": runs}


def boxes(path: Path, tiles: int) -> dict[str, list[Corner]]:
    """Return corners of tiles side by side in the slide's middle, and of tiles anywhere."""
    with openslide.OpenSlide(path) as slide:
        width, height = slide.dimensions
    rng = random.Random(0)  # noqa: S311  # places, not secrets
    anywhere = [(rng.randrange(width - TILE), rng.randrange(height - TILE)) for _ in range(tiles)]
    side = min(int(tiles**0.5), width // TILE, height // TILE)
    left, top = (width - side * TILE) // 2, (height - side * TILE) // 2
    grid = [(left + x * TILE, top + y * TILE) for y in range(side) for x in range(side)]
    return {"side by side": grid, "anywhere": anywhere}


def ways(path: Path, corners: list[Corner], threads: int) -> dict[str, Callable[[], float]]:
    """Return both ways to read all tiles."""

    def plain() -> float:
        with openslide.OpenSlide(path) as slide:
            return timed(lambda at: plain_tile(slide, at), corners, threads)

    def ours() -> float:
        with open_slide(path) as slide:
            return timed(lambda at: slide.read(Box(*at, TILE, TILE)), corners, threads)

    return {"openslide": plain, "slidelens": ours}


def timed(read: Callable[[Corner], object], corners: list[Corner], threads: int) -> float:
    """Read all tiles on several threads; return the seconds that took, opening left out."""
    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        for _ in pool.map(read, corners):
            pass
        return time.perf_counter() - start


def plain_tile(slide: openslide.OpenSlide, at: Corner) -> np.ndarray:
    """Read one level-0 tile as most programs do."""
    return np.asarray(slide.read_region(at, 0, (TILE, TILE)).convert("RGB"))


def check_same(path: Path, corners: list[Corner]) -> None:
    """Make sure that both give the same pixels: speed of something else would mean nothing."""
    with openslide.OpenSlide(path) as plain, open_slide(path) as ours:
        for at in corners:
            np.testing.assert_array_equal(
                ours.read(Box(*at, TILE, TILE)), plain_tile(plain, at), err_msg=f"{path} at {at}"
            )


if __name__ == "__main__":
    main(__doc__, measure, [DATA / name for name in SLIDES.values()])
