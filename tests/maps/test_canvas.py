"""A canvas equals the dense mean, in any order, at any memory."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sample_results import MPP, SIZE, Spec, grid_boxes
from slidelens.errors import ResultError
from slidelens.geometry import Mpp, Size
from slidelens.maps.blocks import BLOCK, BlockSums
from slidelens.maps.canvas import Canvas, window

CELL = 8  # level-0 px per cell in the tests against the oracle
FINE = 2  # level-0 px per oracle cell: every edge below lies on one
ROWS, COLUMNS = 9, 11


def probability(mpp: float, channels: tuple[str, ...] = ("a", "b")) -> Spec:
    return Spec("p", "probability", channels, mpp)


def dense(patches: list[tuple[list[int], np.ndarray, np.ndarray]], channels: int) -> np.ndarray:
    """Weighted mean per cell, added up on a grid that resolves every edge."""
    fine = (ROWS * CELL // FINE, COLUMNS * CELL // FINE)
    margin = 60
    total = np.zeros((channels + 1, fine[0] + 2 * margin, fine[1] + 2 * margin))
    for (x, y, w, h), values, weight in patches:
        up = (h // FINE // values.shape[1], w // FINE // values.shape[2])
        big = np.kron(np.concatenate([values * weight, weight[None]]), np.ones((1, *up)))
        top, left = y // FINE + margin, x // FINE + margin
        total[:, top : top + big.shape[1], left : left + big.shape[2]] += big
    total = total[:, margin:-margin, margin:-margin]
    step = CELL // FINE
    sums = total.reshape(channels + 1, ROWS, step, COLUMNS, step).sum((2, 4))
    with np.errstate(invalid="ignore"):
        return sums[:-1] / sums[-1]


def canvas_for_oracle(**more: float) -> Canvas:
    return Canvas.create(
        None, probability(CELL * 0.5), Size(COLUMNS * CELL, ROWS * CELL), Mpp(0.5, 0.5), **more
    )


@st.composite
def patches(draw: st.DrawFn) -> list[tuple[list[int], np.ndarray, np.ndarray]]:
    found = []
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    for _ in range(draw(st.integers(1, 6))):
        h, w = draw(st.integers(1, 5)), draw(st.integers(1, 5))
        up, across = draw(st.integers(1, 6)), draw(st.integers(1, 6))
        x = draw(st.integers(-10, COLUMNS * CELL // FINE)) * FINE
        y = draw(st.integers(-10, ROWS * CELL // FINE)) * FINE
        box = [x, y, w * across * FINE, h * up * FINE]
        found.append((box, rng.normal(size=(2, h, w)), rng.uniform(0.1, 1, (h, w))))
    return found


@given(patches())
@settings(max_examples=150)
def test_rasters_are_blended_as_the_dense_mean(some: list) -> None:
    canvas = canvas_for_oracle()
    for box, values, weight in some:
        canvas.add([box], values[None], weight)
    np.testing.assert_allclose(canvas.finish().read(), dense(some, 2), rtol=1e-5, atol=1e-6)


@given(patches(), st.booleans())
@settings(max_examples=150)
def test_values_of_boxes_are_blended_as_the_dense_mean(some: list, large: bool) -> None:
    grow = 4 if large else 1  # boxes over many cells are added one by one, others all at once
    one = [
        ([b[0], b[1], b[2] * grow, b[3] * grow], v[:, :1, :1], w[:1, :1])
        for b, v, w in some
        if max(b[2:]) * grow <= 60 * FINE
    ]
    canvas = canvas_for_oracle()
    if one:
        canvas.add(
            [box for box, _, _ in one],
            np.stack([v[:, 0, 0] for _, v, _ in one]),
            np.array([w[0, 0] for _, _, w in one]),
        )
    np.testing.assert_allclose(canvas.finish().read(), dense(one, 2), rtol=1e-5, atol=1e-6)


@given(patches(), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_the_order_of_adding_does_not_count(some: list, random) -> None:
    shuffled = list(some)
    random.shuffle(shuffled)
    maps = []
    for order in (some, shuffled):
        canvas = canvas_for_oracle()
        for box, values, weight in order:
            canvas.add([box], values[None], weight)
        maps.append(canvas.finish().read())
    np.testing.assert_allclose(maps[0], maps[1], rtol=3e-7, atol=1e-12)
    np.testing.assert_array_equal(np.isnan(maps[0]), np.isnan(maps[1]))


@given(st.floats(0.05, 3), st.floats(0.05, 3), st.integers(50, 5000), st.integers(50, 5000))
@settings(max_examples=60)
def test_tiles_of_one_cell_come_back_bit_for_bit(
    mpp_x: float, mpp_y: float, width: int, height: int
) -> None:
    mpp = Mpp(mpp_x, mpp_y)
    canvas = Canvas.create(None, probability(64.0), Size(width, height), mpp)
    rows, columns = canvas.shape
    sx, sy = 64.0 / mpp.x, 64.0 / mpp.y
    assert (columns - 1) * sx < width <= columns * sx * (1 + 1e-6)
    assert (rows - 1) * sy < height <= rows * sy * (1 + 1e-6)
    i, j = np.divmod(np.arange(rows * columns), columns)
    boxes = np.stack([j * sx, i * sy, np.full(i.shape, sx), np.full(i.shape, sy)], 1)
    values = np.random.default_rng(0).random((len(boxes), 2), np.float32)
    order = np.random.default_rng(1).permutation(len(boxes))
    canvas.add(boxes[order], values[order])
    np.testing.assert_array_equal(canvas.finish().read(), values.T.reshape(2, rows, columns))


def test_overlapping_tiles_average_by_area() -> None:
    canvas = Canvas.create(None, probability(10.0, ("a",)), Size(40, 10), Mpp(1, 1))
    canvas.add([[0, 0, 15, 10], [10, 0, 15, 10]], [[1.0], [4.0]])
    # Cell 1 holds 5 px of the first tile and 10 px of the second; cell 2 only 5 px of the second.
    np.testing.assert_allclose(canvas.finish().read()[0, 0], [1, (5 * 1 + 10 * 4) / 15, 4, np.nan])


def test_a_window_lets_the_middle_of_a_raster_count_most() -> None:
    weights = window(4, 6)
    assert weights.shape == (4, 6)
    assert (weights > 0).all()
    np.testing.assert_allclose(weights, weights[::-1, ::-1])
    canvas = Canvas.create(None, probability(1.0, ("a",)), Size(6, 4), Mpp(1, 1))
    canvas.add(
        [[0, 0, 6, 4], [0, 0, 6, 4]],
        np.stack([np.zeros((1, 4, 6)), np.ones((1, 4, 6))]),
        np.stack([weights, np.ones((4, 6))]),
    )
    np.testing.assert_allclose(canvas.finish().read()[0], 1 / (1 + weights), rtol=1e-6)


def test_nan_adds_nothing() -> None:
    canvas = Canvas.create(None, probability(1.0, ("a", "b")), Size(3, 1), Mpp(1, 1))
    canvas.add([[0, 0, 1, 1], [1, 0, 1, 1]], [[1, 2], [np.nan, 3]])
    raster = np.array([[[[5.0, 6.0, np.nan]], [[7.0, 8.0, 9.0]]]])
    canvas.add([[0, 0, 3, 1]], raster)
    expected = [[[3, 6, np.nan]], [[4.5, 8, np.nan]]]
    np.testing.assert_array_equal(canvas.finish().read(), np.array(expected, np.float32))


@pytest.mark.parametrize("slide_mpp", [0.25, 0.2425, 0.3, 0.4997])
def test_a_raster_of_other_cells_adds_nothing_where_it_is_nan(slide_mpp: float) -> None:
    rng = np.random.default_rng(0)
    for n in range(2, 40):
        canvas = Canvas.create(
            None, probability(5.0, ("a",)), Size(900, 900), Mpp(slide_mpp, slide_mpp)
        )
        raster = rng.uniform(0.25, 0.75, (1, 1, n, n))
        raster[rng.random(raster.shape) < 0.3] = np.nan
        raster[..., n // 2 :] = np.nan
        side = n * rng.choice([2.5, 3.3, 4, 5, 7]) / slide_mpp
        canvas.add([[side / n * 3, side / n, side, side]], raster)
        drawn = canvas.finish().read()
        some = drawn[~np.isnan(drawn)]
        assert some.size == 0 or (some.min() > 0.25 - 1e-4 and some.max() < 0.75 + 1e-4)


def test_labels_are_voted_on_and_ties_go_to_the_larger() -> None:
    canvas = Canvas.create(None, Spec("l", "labels", ("x", "y"), 1.0), Size(4, 1), Mpp(1, 1))
    boxes = [[0, 0, 2, 1], [1, 0, 2, 1], [1, 0, 2, 1], [2, 0, 1, 1]]
    canvas.add(boxes, [[1], [2], [0], [1]], [3, 1, 9, 1])
    labels = canvas.finish()
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels.read(), [[[1, 1, 2, 0]]])


@pytest.mark.parametrize("mebibytes", [0.001, 2.5])
def test_what_does_not_fit_in_memory_goes_to_disk_and_comes_back(
    tmp_path: Path, mebibytes: float
) -> None:
    rng = np.random.default_rng(0)
    size, mpp = Size(1300, 900), Mpp(1, 1)
    maps = []
    for buffer in (1000, mebibytes):
        rng = np.random.default_rng(0)
        canvas = Canvas.create(tmp_path, probability(1.0), size, mpp, buffer_mb=buffer)
        for _ in range(40):
            x, y = rng.integers(-50, 1300), rng.integers(-50, 900)
            canvas.add([[x, y, 200, 100]], rng.normal(size=(1, 2, 100, 200)))
        kept = len(canvas._sums._blocks)
        maps.append((canvas.finish(), kept))
    (full, _), (spilled, kept) = maps
    assert kept * BLOCK * BLOCK * 3 * 8 <= max(mebibytes * 2**20, BLOCK * BLOCK * 3 * 8)
    np.testing.assert_array_equal(full.read(), spilled.read())
    np.testing.assert_array_equal(full.levels[1], spilled.levels[1])
    assert len(list(tmp_path.iterdir())) == 1
    del canvas, maps, full, spilled
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_small_map_touches_no_disk(tmp_path: Path) -> None:
    canvas = Canvas.create(tmp_path / "missing", probability(32.0), SIZE, MPP)
    boxes = grid_boxes(canvas.shape, canvas.affine.sx)
    canvas.add(boxes, np.ones((len(boxes), 2)))
    assert (canvas.finish().read() == 1).all()


def test_a_full_disk_is_told_with_what_to_do(tmp_path: Path) -> None:
    canvas = Canvas.create(
        tmp_path / "missing", probability(1.0), Size(600, 600), Mpp(1, 1), buffer_mb=0.1
    )
    with pytest.raises(ResultError, match=r"missing: cannot write the map.*TMPDIR"):
        canvas.add([[0, 0, 600, 600]], np.zeros((1, 2, 600, 600)))


def test_peek_shows_the_map_while_another_thread_adds() -> None:
    canvas = Canvas.create(None, probability(1.0), Size(2000, 300), Mpp(1, 1), buffer_mb=4)
    seen = canvas.peek()
    assert np.isnan(seen.read()).all()
    wrong: list[float] = []

    def look() -> None:
        while not done.is_set():
            now = canvas.peek()
            for array in (now.read(), now.levels[1]):
                values = array[~np.isnan(array)]
                wrong.extend(values[np.abs(values - 3) > 1e-6])

    done = threading.Event()
    looker = threading.Thread(target=look)
    looker.start()
    for x in range(0, 2000, 50):
        canvas.add([[x, 0, 50, 300]], np.full((1, 2, 300, 50), 3.0))
    done.set()
    looker.join()
    assert wrong == []
    assert (seen.read() == 3).all()  # the earlier peek reads the newest values


def test_the_coarse_level_is_the_mean_of_the_fine_one() -> None:
    canvas = Canvas.create(None, probability(1.0), Size(2100, 700), Mpp(1, 1))
    values = np.random.default_rng(0).random((2, 700, 2100))
    canvas.add([[0, 0, 2100, 700]], values[None])
    fine, coarse = canvas.finish().levels
    assert fine.shape[1] % 4 == fine.shape[2] % 4 == 0
    assert coarse.shape == (2, fine.shape[1] // 4, fine.shape[2] // 4)
    expected = values[:, :700, :2100].reshape(2, 175, 4, 525, 4).mean((2, 4))
    np.testing.assert_allclose(coarse[:, :175, :525], expected, rtol=1e-5)


def test_fifty_thousand_tiles_are_assembled_in_a_moment() -> None:
    canvas = Canvas.create(None, probability(112.0), Size(100_000, 90_000), MPP)
    boxes = grid_boxes(canvas.shape, canvas.affine.sx)[:50_000]
    values = np.random.default_rng(0).random((len(boxes), 2), np.float32)
    begin = time.process_time()  # other programs take none of it
    for k in range(0, len(boxes), 32):
        canvas.add(boxes[k : k + 32], values[k : k + 32])
    canvas.finish().read()
    assert time.process_time() - begin < 2  # 0.1 s


@pytest.mark.parametrize(
    ("boxes", "values", "match"),
    [
        ([[0, 0, 1, 1]], [[1.0]], r"values \(1, 1\) for 1 boxes, expected \(1, 2\)"),
        ([[0, 0, 1, 1]], [[1.0, 2.0], [1.0, 2.0]], r"expected \(1, 2\)"),
        ([[0, 0, 1, 1]], [[[1.0]], [[2.0]]], r"expected \(1, 2\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(boxes: list, values: list, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        canvas_for_oracle().add(boxes, values)


def test_a_finished_canvas_and_a_senseless_map_are_refused() -> None:
    canvas = canvas_for_oracle()
    canvas.add(np.zeros((0, 4)), np.zeros((0, 2)))
    canvas.finish()
    with pytest.raises(ValueError, match="finished"):
        canvas.add([[0, 0, 1, 1]], [[1, 1]])
    with pytest.raises(ValueError, match="above 0"):
        Canvas.create(None, probability(0.0), SIZE, MPP)


@given(st.integers(1, 700), st.integers(1, 700), st.data())
@settings(max_examples=30)
def test_block_sums_equal_a_dense_array(height: int, width: int, data: st.DataObject) -> None:
    sums = BlockSums(2, height, width, None, 0.5)
    full = np.zeros((2, height, width))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    for _ in range(4):
        n = 50
        rows, columns = rng.integers(0, height, n), rng.integers(0, width, n)
        values = rng.integers(0, 9, (2, n)).astype(float)
        sums.add_cells(rows, columns, values)
        np.add.at(full, (slice(None), rows, columns), values)
        top, left = rng.integers(0, height), rng.integers(0, width)
        h, w = rng.integers(1, height - top + 1), rng.integers(1, width - left + 1)
        raster = rng.integers(0, 9, (2, h, w)).astype(float)
        sums.add_raster(int(top), int(left), raster)
        full[:, top : top + h, left : left + w] += raster
    np.testing.assert_array_equal(sums.read(slice(0, height), slice(0, width)), full)
    half = slice(height // 2, height), slice(width // 3, width)
    np.testing.assert_array_equal(sums.read(*half), full[:, half[0], half[1]])
