"""Slides and results whose every pixel is known."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from slidelens.families.base import MapSpec
from slidelens.geometry import Affine, Box, Mpp
from slidelens.maps.canvas import Canvas
from slidelens.maps.map import Map
from slidelens.maps.regions import positive_regions
from slidelens.maps.result import ModelInfo, Result, SlideInfo
from slidelens.slide.array import from_array

if TYPE_CHECKING:
    from slidelens.slide.base import Slide

CLASSES = ("normal", "tumor")
CELL = 37  # level-0 px
SQUARE = Box(37 * 5, 37 * 3, 37 * 8, 37 * 6)
"""A square on the slide; its edges lie on edges of map cells and on no edge of a coarser level."""


@dataclass(frozen=True)
class Case:
    """A slide with a red square, and the result of a model that sees exactly that."""

    slide: Slide
    result: Result
    mpp: Mpp


def shrink(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Area mean to any size, so that a level's content lies exactly where its shape says."""

    def weights(n: int, out: int) -> np.ndarray:
        edges = np.arange(out + 1) * (n / out)
        cells = np.arange(n)
        low = np.maximum(edges[:-1, None], cells)
        high = np.minimum(edges[1:, None], cells + 1)
        return np.clip(high - low, 0, None) * (out / n)

    rows, columns = weights(image.shape[0], height), weights(image.shape[1], width)
    shrunk = np.einsum("ai,ijc,bj->abc", rows, image.astype(float), columns, optimize=True)
    return shrunk.round().astype(np.uint8)


def make_slide(mpp: float | tuple[float, float] | None, name: str = "square") -> Slide:
    """A slide of `levels`."""
    return from_array(*levels(), mpp=mpp, name=name)


@cache
def levels() -> list[np.ndarray]:
    """Levels of 1000 x 800, 300 x 240 and 91 x 73 px: downsamples 3.33 and about 10.97."""
    image = np.full((800, 1000, 3), 240, np.uint8)
    x, y, w, h = (int(v) for v in SQUARE)
    image[y : y + h, x : x + w] = (200, 30, 30)
    return [image, shrink(image, 300, 240), shrink(image, 91, 73)]


def make_result(slide: Slide, mpp: Mpp, model: str = "oracle") -> Result:
    """Predict the square as tumour (1), all else as normal (0); nothing right of x = 900."""
    cell = CELL * mpp.mean
    spec = MapSpec("probability", "probability", CLASSES, cell)
    canvas = Canvas.create(None, spec, slide.size, mpp)
    step_x, step_y = canvas.affine.sx, canvas.affine.sy
    columns, rows = int(900 / step_x), int(800 / step_y)
    boxes = [(c * step_x, r * step_y, step_x, step_y) for r in range(rows) for c in range(columns)]
    inside = [SQUARE.contains(x + w / 2, y + h / 2) for x, y, w, h in boxes]
    canvas.add(boxes, [[1 - v, v] for v in inside])
    probability = canvas.finish()
    tissue = np.zeros((8, 10), np.uint8)
    tissue[1:7, 1:9] = 1
    tissue[3, 3] = 0
    maps = [
        probability,
        Map.from_array("tissue", "labels", ["tissue"], tissue, Affine(100, 100), mpp),
    ]
    info = SlideInfo(
        id=slide.id,
        path=str(slide.path),
        width=slide.size.width,
        height=slide.size.height,
        mpp=tuple(mpp),
    )
    scores = {"normal": 0.1, "tumor": 0.9}
    return Result(
        info, ModelInfo(name=model), scores, maps=maps, regions=positive_regions(probability)
    )
