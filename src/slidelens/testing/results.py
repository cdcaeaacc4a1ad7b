"""Made-up results, as methods of each kind would give them for a phantom at a given score.

For tests, pictures and benchmarks of code that reads results. The heat is on the tumour; without
one, on a place in the tissue that the seed chooses, as a false alarm would be. Its strength follows
the score, so a missed tumour is pale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from slidelens.geometry import Affine, Box
from slidelens.maps.map import Map
from slidelens.maps.regions import positive_regions
from slidelens.maps.result import ModelInfo, Result, SlideInfo, Tiles
from slidelens.maps.trajectory import Trajectory, Window
from slidelens.testing.layout import CLASSES

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from slidelens.testing.layout import PhantomTruth

__all__ = ["Method", "make_result"]

Method = Literal["mil", "streaming", "segmentation", "magnet"]
"""Tiles, saliency, lesions, or windows that the method chose itself."""

_CELL_UM: dict[Method, float] = {
    "mil": 112.0,
    "streaming": 8.0,
    "segmentation": 8.0,
    "magnet": 112.0,
}


_SPREAD_UM = 90.0


def make_result(
    truth: PhantomTruth,
    slide_id: str,
    method: Method,
    score: float,
    *,
    path: Path | None = None,
    seed: int = 0,
) -> Result:
    """Make the result that a method would save.

    Parameters
    ----------
    truth
        Of the phantom.
    slide_id, path
        Of the slide, and its file.
    score
        Probability of tumour, 0..1.
    seed
        Of the noise, and of the place of a false alarm.
    """
    cell, rng = _CELL_UM[method], np.random.default_rng([seed, get_args(Method).index(method)])
    heat, tissue = _heat(truth, cell, rng)
    values = np.clip(score * heat * rng.uniform(0.8, 1.0, heat.shape), 0.0, 1.0)
    values[~tissue] = np.nan
    step = Affine(cell / truth.mpp.x, cell / truth.mpp.y)
    maps, tiles, trajectory = [], None, None
    two = np.stack([1 - values, values]).astype(np.float32)
    if method == "streaming":
        drawn = np.nan_to_num(values) * rng.gamma(2.0, 0.5, values.shape)
        maps = [Map.from_array("saliency", "saliency", CLASSES[1:], drawn, step, truth.mpp)]
    else:
        maps = [Map.from_array("probability", "probability", CLASSES, two, step, truth.mpp)]
    if method == "mil":
        tiles = _tiles(two, tissue, step)
    if method == "magnet":
        trajectory = _trajectory(truth, values, step, score)
    mask = Map.from_array("tissue", "labels", ("tissue",), tissue, step, truth.mpp)
    return Result(
        SlideInfo(
            id=slide_id,
            path=None if path is None else str(path),
            width=truth.size.width,
            height=truth.size.height,
            mpp=tuple(truth.mpp),
            mpp_source="phantom",
        ),
        ModelInfo(name=method, family=method, threshold=0.5),
        {CLASSES[0]: 1 - score, CLASSES[1]: score},
        maps=[*maps, mask],
        tiles=tiles,
        regions=positive_regions(maps[0], min_area_mm2=0.002) if method == "segmentation" else (),
        trajectory=trajectory,
        software={"slidelens.testing": "made, not predicted"},
    )


def _heat(
    truth: PhantomTruth, cell: float, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return how much each cell looks like tumour, 0..1, and which cells are tissue."""
    from scipy.ndimage import gaussian_filter

    whole = Box.of_size(truth.size)
    tissue = truth.mask(whole, cell, "tissue")
    seen = truth.mask(whole, cell).astype(np.float64)
    if not seen.any() and tissue.any():
        seen.flat[rng.choice(np.flatnonzero(tissue))] = 1.0
    heat = gaussian_filter(seen, _SPREAD_UM / cell)
    return heat / (heat.max() or 1.0), tissue


def _tiles(two: NDArray[np.float32], tissue: NDArray[np.bool_], step: Affine) -> Tiles:
    rows, columns = np.nonzero(tissue)
    boxes = [step.box(*at) for at in zip(columns.tolist(), rows.tolist(), strict=True)]
    return Tiles(
        np.array(boxes, np.float64).reshape(-1, 4), CLASSES, two[:, rows, columns].T.copy()
    )


def _trajectory(
    truth: PhantomTruth, values: NDArray[np.float64], step: Affine, score: float
) -> Trajectory:
    """Look at the whole slide, at a quarter of it, and at three windows of 256 µm there."""
    size, mpp = truth.size, truth.mpp
    order = np.argsort(-np.nan_to_num(values), axis=None)[:3]
    places = [step.box(*np.unravel_index(i, values.shape)[::-1]) for i in order.tolist()]
    first = places[0]
    half = Box(first.x - size.width / 4, first.y - size.height / 4, size.width / 2, size.height / 2)
    side = (256.0 / mpp.x, 256.0 / mpp.y)
    windows = [
        Window(0, None, Box.of_size(size), size.width * mpp.x / 256),
        Window(1, 0, half, half.w * mpp.x / 256),
    ]
    for number, place in enumerate(places, 1):
        p = score * number / len(places)
        box = Box(place.x + place.w / 2 - side[0] / 2, place.y + place.h / 2 - side[1] / 2, *side)
        windows.append(Window(2, 1, box, 1.0, (1 - p, p)))
    return Trajectory(tuple(windows), CLASSES, mpp)
