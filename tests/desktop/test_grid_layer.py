"""The grid of tiles as a layer: every edge of every tile, exactly on the slide."""

import numpy as np
import pytest
from known_slides import make_slide
from napari.components import ViewerModel
from napari.layers import Layer

from slidelens.desktop.grid import grid_lines
from slidelens.desktop.layers import result_layers
from slidelens.geometry import Mpp
from slidelens.maps.result import ModelInfo, Result, SlideInfo, Tiles
from slidelens.tiling.grid import GridSpec, make_grid


def edges(boxes: np.ndarray) -> set[tuple[float, ...]]:
    """Each edge of each box as y, x, y, x."""
    found = set()
    for x, y, w, h in boxes:
        sides = [(y, x, y, x + w), (y + h, x, y + h, x + w)]
        sides += [(y, x, y + h, x), (y, x + w, y + h, x + w)]
        found |= {tuple(np.round(side, 3)) for side in sides}
    return found


@pytest.mark.parametrize(
    ("spec", "mpp"),
    [
        (GridSpec(224, 0.5), 0.2527),
        (GridSpec(100, 1 / 3, overlap=30), 0.2),
        (GridSpec(64, 0.7, overlap=63), 0.5),
    ],
)
def test_lines_cover_every_edge_and_nothing_else(spec, mpp):
    grid = make_grid((4000, 3000), Mpp(mpp, mpp), spec)
    rng = np.random.default_rng(0)
    boxes = grid.boxes[rng.random(len(grid)) < 0.6][:400]
    lines = grid_lines(boxes)
    assert len(lines) < len(edges(boxes))
    assert (lines[:, 2:] >= lines[:, :2]).all()
    length = np.zeros(len(lines))
    for y, x, end_y, end_x in edges(boxes):
        flat = y == end_y
        along, at = (1, 0) if flat else (0, 1)
        start, stop = ((y, x), (end_y, end_x))
        on = (lines[:, at] == start[at]) & (lines[:, 2 + at] == start[at])
        on &= (lines[:, along] <= start[along]) & (lines[:, 2 + along] >= stop[along])
        assert on.sum() == 1
        length += on
    assert (length > 0).all()


def test_grid_lies_on_the_slide_in_um_and_is_hidden():
    mpp = 0.2527
    slide = make_slide(mpp)
    grid = make_grid(slide.size, Mpp(mpp, mpp), GridSpec(200, 0.2527))
    info = SlideInfo(id=slide.id, path="", width=1000, height=800, mpp=mpp)
    tiles = Tiles(grid.boxes, ("a", "b"), np.full((len(grid), 2), 0.5, np.float32))
    result = Result(info, ModelInfo(name="m"), {"a": 0.5, "b": 0.5}, tiles=tiles)
    viewer = ViewerModel()
    for data in result_layers(result, slide):
        viewer.add_layer(Layer.create(*data))
    layer = viewer.layers["m: grid"]
    assert not layer.visible
    assert [str(u) for u in layer.units] == ["micrometer", "micrometer"]
    assert len(layer.data) == 5 + 6  # 5 x 4 tiles: six lines down, five across
    low, high = layer.data[:, 0], layer.data[:, 0] + layer.data[:, 1]
    corners = np.concatenate([low, high])
    world = np.array([layer.data_to_world(p) for p in corners])
    np.testing.assert_allclose(world.min(0), (-mpp / 2, -mpp / 2), atol=1e-9)
    np.testing.assert_allclose(world.max(0), ((800 - 0.5) * mpp, (1000 - 0.5) * mpp), atol=1e-9)


def test_without_the_tissue_there_is_no_grid_either():
    slide = make_slide(0.5)
    info = SlideInfo(id=slide.id, path="", width=1000, height=800, mpp=0.5)
    tiles = Tiles(np.array([[0.0, 0, 100, 100]]), ("a",), np.ones((1, 1), np.float32))
    result = Result(info, ModelInfo(name="m"), {"a": 1.0}, tiles=tiles)
    assert result_layers(result, slide, tissue=False) == []
