"""A small result with everything in it, for the tests of maps and exporters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slidelens.geometry import Affine, Mpp, Size
from slidelens.maps.canvas import Canvas
from slidelens.maps.map import Kind, Map
from slidelens.maps.regions import positive_regions
from slidelens.maps.result import ModelInfo, Result, SlideInfo, TileFeatures, Tiles
from slidelens.maps.run_settings import RunSettings

SIZE, MPP = Size(3000, 2000), Mpp(0.2527, 0.2527)


@dataclass(frozen=True)
class Spec:
    name: str
    kind: Kind
    channels: tuple[str, ...]
    mpp: float


def grid_boxes(shape: tuple[int, int], cell: float) -> np.ndarray:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    corners = np.stack([columns.ravel() * cell, rows.ravel() * cell], 1)
    return np.concatenate([corners, np.full((len(corners), 2), cell)], 1)


def make_result() -> Result:
    """A small result with everything in it; a third of the tiles are background."""
    rng = np.random.default_rng(0)
    spec = Spec("probability", "probability", ("normal", "tumor"), 32.0)
    canvas = Canvas.create(None, spec, SIZE, MPP)
    boxes = grid_boxes(canvas.shape, canvas.affine.sx)
    boxes = boxes[rng.random(len(boxes)) > 1 / 3]
    tumor = rng.random(len(boxes), np.float32)
    values = np.stack([1 - tumor, tumor], 1)
    canvas.add(boxes, values)
    probability = canvas.finish()
    affine = Affine(SIZE.width / 61, SIZE.height / 41)
    tissue = Map.from_array(
        "tissue", "labels", ("tissue",), rng.random((41, 61)) > 0.3, affine, MPP
    )
    saliency = Map.from_array(
        "saliency", "saliency", ("tumor",), rng.normal(size=(200, 300)), Affine(10, 10), MPP
    )
    return Result(
        SlideInfo(
            id="Fall 7 µ",
            path="/somewhere/a.svs",
            width=SIZE.width,
            height=SIZE.height,
            mpp=MPP.x,
            mpp_source="file",
        ),
        ModelInfo(name="m", family="mil", sha256="00ff"),
        {"normal": 0.25, "tumor": 0.75},
        maps=[probability, saliency, tissue],
        tiles=Tiles(boxes, ("normal", "tumor"), values, tumor**2),
        features=TileFeatures(
            rng.normal(size=(len(boxes), 4)).astype(np.float16),
            {"tile": "256", "overlap": "0", "mpp": "0.5", "backbone": "resnet18"},
        ),
        regions=positive_regions(probability),
        timings={"infer": 1.5},
        settings=RunSettings(
            region=(0, 10, 2000, 1500.5),
            precision="fp32",
            config={"tile": 256, "overlap": 32, "pooling": None},
            options={"overlap": 32},
        ),
        settings_sha256="abcd",
        software={"slidelens": "0.1.0"},
    )
