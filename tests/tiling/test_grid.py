"""Grids: exact places, every pixel once, a region is a crop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slidelens.geometry import Affine, Box, Mpp, Size
from slidelens.tiling.grid import GridSpec, make_grid
from slidelens.tiling.tissue import TissueMask

sizes = st.builds(Size, st.integers(1, 500), st.integers(1, 500))
mpps = st.builds(Mpp, st.floats(0.1, 2.0), st.floats(0.1, 2.0))


@st.composite
def specs(draw: st.DrawFn) -> GridSpec:
    tile = draw(st.integers(16, 300))
    overlap = draw(st.integers(0, tile // 2))
    return GridSpec(tile, draw(st.floats(0.3, 3.0)), overlap=overlap)


def test_tiles_stand_at_exact_multiples_of_an_unrounded_stride():
    grid = make_grid(Size(100_000, 500), Mpp(0.2527, 0.2527), GridSpec(224, 0.5))
    width = 224 * 0.5 / 0.2527
    assert width == pytest.approx(443.2, abs=0.02)
    first_row = grid.boxes[grid.index[:, 1] == 0]
    assert (first_row[:, 0] == np.arange(len(first_row)) * width).all()
    assert (first_row[:, 2:] == width).all()
    assert first_row[-1, 0] + width >= 100_000 > first_row[-1, 0]


def test_each_axis_has_its_own_resolution():
    grid = make_grid(Size(1000, 1000), Mpp(0.25, 0.5), GridSpec(100, 0.5))
    assert grid.shape == (10, 5)
    assert (grid.boxes[:, 2:] == (200, 100)).all()
    assert grid.affine == Affine(200, 100)


def test_a_slide_of_whole_tiles_gets_no_sliver():
    # 0.3 / 0.1 is 2.9999999999999996: the last tile ends a hair before the slide.
    grid = make_grid(Size(30 * 672, 672), Mpp(0.1, 0.1), GridSpec(224, 0.3))
    assert grid.shape == (1, 30)
    assert grid.cores[-1, 0] + grid.cores[-1, 2] == 30 * 672


def test_tiles_reach_past_the_border_and_a_small_slide_has_one():
    grid = make_grid(Size(250, 90), Mpp(0.5, 0.5), GridSpec(100, 0.5))
    assert grid.shape == (1, 3)
    assert grid.boxes[-1].tolist() == [200, 0, 100, 100]
    assert grid.cores[-1].tolist() == [200, 0, 50, 90]


@given(sizes, mpps, specs())
def test_cores_cover_every_pixel_once(size: Size, mpp: Mpp, spec: GridSpec):
    grid = make_grid(size, mpp, spec)
    rows, columns = grid.shape
    assert len(grid) == rows * columns
    cores = grid.cores.reshape(rows, columns, 4)
    for axis, length in ((0, size.width), (1, size.height)):
        line = cores[0, :, axis::2] if axis == 0 else cores[:, 0, axis::2]
        starts, lengths = line.T
        assert starts[0] == 0
        assert starts[-1] + lengths[-1] == length
        np.testing.assert_allclose(starts[:-1] + lengths[:-1], starts[1:], rtol=1e-12)
        assert (lengths > 0).all()
    assert (cores[..., 0] == cores[:1, :, 0]).all()
    assert (cores[..., 1] == cores[:, :1, 1]).all()
    # A tile covers its own core.
    assert (grid.boxes[:, :2] <= grid.cores[:, :2] + 1e-6).all()
    ends = grid.boxes[:, :2] + grid.boxes[:, 2:]
    assert (ends >= grid.cores[:, :2] + grid.cores[:, 2:] - 2e-6).all()


@given(sizes, mpps, specs(), st.tuples(*[st.floats(0, 1)] * 4))
def test_a_region_is_a_crop_of_the_slide_wide_grid(
    size: Size, mpp: Mpp, spec: GridSpec, part: tuple[float, float, float, float]
):
    x, y = part[0] * 0.99 * size.width, part[1] * 0.99 * size.height
    w, h = max(0.01, part[2] * (size.width - x)), max(0.01, part[3] * (size.height - y))
    whole = make_grid(size, mpp, spec)
    grid = make_grid(size, mpp, spec, region=Box(x, y, w, h))
    have = {tuple(box): tuple(core) for box, core in zip(whole.boxes, whole.cores, strict=True)}
    for box, core in zip(grid.boxes, grid.cores, strict=True):
        assert have[tuple(box)] == tuple(core)
    # The cores cover the region, and the lattice's place is that of its first tile.
    left, top = grid.cores[:, :2].min(axis=0)
    right, bottom = (grid.cores[:, :2] + grid.cores[:, 2:]).max(axis=0)
    assert left <= x + 1e-5
    assert top <= y + 1e-5
    assert right >= min(x + w, size.width) - 1e-5
    assert bottom >= min(y + h, size.height) - 1e-5
    assert len(grid) == grid.shape[0] * grid.shape[1]
    half = spec.overlap * spec.mpp / 2
    np.testing.assert_allclose(
        (grid.affine.tx, grid.affine.ty),
        grid.boxes[0, :2] + (half / mpp.x, half / mpp.y),
        atol=1e-9,
    )


def test_tissue_selects_tiles_and_their_place_in_the_lattice_stays():
    mask = TissueMask(np.array([[1, 0, 0], [0, 0, 1]], bool), Affine(100, 100))
    grid = make_grid(Size(300, 200), Mpp(1, 1), GridSpec(100, 1.0), tissue=mask)
    assert grid.index.tolist() == [[0, 0], [2, 1]]
    assert grid.shape == (2, 3)
    assert grid.tissue.tolist() == [1, 1]


@pytest.mark.parametrize(("least", "kept"), [(0.0, 3), (0.5, 2), (0.51, 1), (1.0, 1)])
def test_min_tissue_is_a_share_of_the_tile_inside_the_slide(least: float, kept: int):
    mask = TissueMask(np.array([[1, 0, 0, 0, 1]], bool), Affine(50, 100))
    spec = GridSpec(100, 1.0, min_tissue=least)
    grid = make_grid(Size(250, 100), Mpp(1, 1), spec, tissue=mask)
    # Shares are 1/2, 0 and, of the half tile inside the slide, 1.
    assert len(grid) == kept


def test_selection_in_chunks_is_the_selection_at_once(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    mask = TissueMask(rng.random((37, 41)) < 0.5, Affine(20.3, 21.7))
    args = (Size(830, 800), Mpp(0.5, 0.4), GridSpec(16, 0.7, overlap=3, min_tissue=0.4))
    whole = make_grid(*args, tissue=mask)
    monkeypatch.setattr("slidelens.tiling.grid._CHUNK", 64)
    parts = make_grid(*args, tissue=mask)
    assert 0 < len(whole) < whole.shape[0] * whole.shape[1]
    for name in ("boxes", "cores", "index", "tissue"):
        assert (getattr(whole, name) == getattr(parts, name)).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"tile": 0},
        {"mpp": 0.0},
        {"mpp": float("nan")},
        {"overlap": 224},
        {"overlap": -1},
        {"min_tissue": 1.5},
    ],
)
def test_a_spec_that_makes_no_grid_is_refused(wrong: dict[str, float]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GridSpec(**{"tile": 224, "mpp": 0.5, **wrong})


def test_a_region_outside_the_slide_is_refused():
    with pytest.raises(ValueError, match="outside the slide of 100 x 100"):
        make_grid(Size(100, 100), Mpp(1, 1), GridSpec(10, 1.0), region=Box(100, 0, 5, 5))
