"""Positions are exact and averages are right, whatever the resolution."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slidelens import Box, MissingMppError, SlideError
from slidelens.slide.array import from_array


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


# Level sizes give downsamples of 1.9965 x 2.0 and 4.01, and the pixels are not square.
LEVELS = (noise(573, 418, 1), noise(287, 209, 2), noise(143, 104, 3))
SLIDE = from_array(*LEVELS, mpp=(0.2527, 0.2513))
SQUARE = from_array(LEVELS[0], mpp=0.25)


PAD = 700  # what the tests below reach for beyond the edges


def integral(array):
    wide = np.pad(array.astype(np.float64), ((PAD, PAD), (PAD, PAD), (0, 0)), constant_values=255)
    total = np.zeros((wide.shape[0] + 1, wide.shape[1] + 1, 3))
    total[1:, 1:] = wide.cumsum(0).cumsum(1)
    return total


TOTAL = integral(LEVELS[0])


def exact_average(x, y, step_x, step_y, n_x, n_y):
    """Area averages of the finest level in float64, by its integral, white outside."""

    def at(values, edges, axis):
        low = np.floor(edges).astype(int)
        part = (edges - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        return values.take(low, axis) * (1 - part) + values.take(low + 1, axis) * part

    rows = np.diff(at(TOTAL, y + PAD + np.arange(n_y + 1) * step_y, 0), axis=0)
    cells = np.diff(at(rows, x + PAD + np.arange(n_x + 1) * step_x, 1), axis=1)
    return cells / (step_x * step_y)


@given(
    x=st.floats(-150, 600),
    y=st.floats(-150, 450),
    mpp=st.one_of(st.floats(0.05, 6), st.sampled_from([0.2527, 0.25, 0.5, 1.0, 1.0108, 2.0])),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    offset=st.tuples(st.integers(0, 30), st.integers(0, 30)),
)
@settings(max_examples=200)
def test_a_box_is_the_crop_of_a_bigger_read(x, y, mpp, size, offset):
    step_x, step_y = mpp / SLIDE.mpp.x, mpp / SLIDE.mpp.y
    (w, h), (i, j) = size, offset
    big = SLIDE.read(Box(x, y, (w + i) * step_x, (h + j) * step_y), mpp)
    small = SLIDE.read(Box(x + i * step_x, y + j * step_y, w * step_x, h * step_y), mpp)
    assert big.shape == (h + j, w + i, 3)
    np.testing.assert_array_equal(big[j:, i:], small)


@given(x=st.floats(-80, 600), y=st.floats(-80, 450), mpp=st.floats(0.25, 3), n=st.integers(1, 30))
@settings(max_examples=150)
def test_shrinking_averages_over_area_also_at_borders(x, y, mpp, n):
    step = mpp / 0.25
    read = SQUARE.read(Box(x, y, n * step, n * step), mpp).astype(float)
    # Positions are exact to 2**-16 px, which moves a small pixel's average by less than 0.01.
    want = exact_average(x, y, step, step, n, n)
    assert np.abs(read - want).max() <= 0.51


@pytest.mark.parametrize("factor", [2, 4, 8, 16])
def test_whole_blocks_take_the_short_way_to_the_same_bits(factor, monkeypatch):
    box = Box(-4 * factor, 0, 16 * factor, 16 * factor)  # over the border too
    short = SQUARE.read(box, 0.25 * factor)
    monkeypatch.setattr("slidelens.slide.resample._power_of_two", lambda *_: 0)
    np.testing.assert_array_equal(short, SQUARE.read(box, 0.25 * factor))
    want = exact_average(-4 * factor, 0, factor, factor, 16, 16)
    np.testing.assert_array_equal(short, np.floor(want + 0.5).astype(np.uint8))


def test_level_zero_pixels_come_unchanged_and_white_outside():
    read = SLIDE.read(Box(-3, -2, 10, 10))
    assert (read[:2] == 255).all()
    assert (read[:, :3] == 255).all()
    np.testing.assert_array_equal(read[2:, 3:], LEVELS[0][:8, :7])
    assert (SLIDE.read(Box(5000, 5000, 7, 7)) == 255).all()
    assert (SLIDE.read(Box(5000, 5000, 70, 70), 0.4) == 255).all()


def test_a_matching_level_is_read_without_resampling():
    mpp = 0.25
    slide = from_array(LEVELS[0][:416, :572], noise(286, 208, 5), mpp=mpp)
    read = slide.read(Box(10, 20, 100, 60), 0.5)
    np.testing.assert_array_equal(read, noise(286, 208, 5)[10:40, 5:55])


def test_enlarging_interpolates_between_centres():
    ramp = np.repeat(np.arange(0, 200, 10, dtype=np.uint8)[None, :, None], 3, axis=2)
    slide = from_array(np.repeat(ramp, 20, axis=0), mpp=1.0)
    read = slide.read(Box(0, 0, 20, 20), 0.5)
    assert read.shape == (40, 40, 3)
    # Output centres lie at 0.25 and 0.75 of a source pixel: a quarter step from its centre.
    np.testing.assert_array_equal(read[10, 2:6, 0], [8, 13, 18, 23])
    np.testing.assert_array_equal(read[10, 0], read[10, 1] - 3)  # the border pixel goes on: 0, 3


@pytest.mark.parametrize("across", [False, True])
def test_one_side_is_averaged_where_the_other_is_enlarged(across):
    """Of pixels that are oblong; lines one pixel wide would be lost or doubled otherwise."""
    lines = np.zeros((40, 400, 3), np.uint8)
    lines[:, ::4] = 255
    pixels, mpp = (lines.swapaxes(0, 1).copy(), (1.0, 0.25)) if across else (lines, (0.25, 1.0))
    slide = from_array(pixels, mpp=mpp)
    read = slide.read(Box.of_size(slide.size), 0.9).astype(int)
    read = read.swapaxes(0, 1) if across else read
    upto = np.concatenate([[0], lines[0, :, 0].cumsum(dtype=float)])
    exact = np.diff(np.interp(np.arange(112) * 3.6, np.arange(401), upto)) / 3.6
    assert np.abs(read[:40, :, 0] - exact).max() <= 0.51


def test_flat_colour_stays_flat_at_any_resolution():
    slide = from_array(np.full((301, 403, 3), 255, np.uint8), mpp=0.2527)
    for mpp in (0.1, 0.2527, 0.3, 0.5, 0.7071, 1.3, 5.0):
        assert (slide.read(Box(-13.3, 7.7, 321.1, 222.2), mpp) == 255).all()


def test_a_big_read_goes_in_bands_of_the_same_pixels(monkeypatch):
    whole = SLIDE.read(Box(0, 0, 573, 418), 0.3)
    monkeypatch.setattr("slidelens.slide.resample._BAND_BYTES", 20_000)
    np.testing.assert_array_equal(SLIDE.read(Box(0, 0, 573, 418), 0.3), whole)


def test_output_size_is_the_rounded_extent():
    read = SLIDE.read(Box(0, 0, 100, 100), 0.5)
    assert read.shape == (round(100 * 0.2513 / 0.5), round(100 * 0.2527 / 0.5), 3)
    assert SLIDE.read(Box(0, 0, 0.01, 0.01), 0.5).shape == (1, 1, 3)


def test_a_box_may_be_a_tuple_or_a_row_of_an_array():
    wanted = SLIDE.read(Box(3, 5, 40, 30), 0.5)
    for box in ((3, 5, 40, 30), np.array([[3.0, 5.0, 40.0, 30.0]])[0]):
        np.testing.assert_array_equal(SLIDE.read(box, 0.5), wanted)


@pytest.mark.parametrize("mpp", [None, 0.5])
@pytest.mark.parametrize(
    "box",
    [
        *(Box(0, 0, 0, 5), Box(0, 0, 5, -1), Box(0, 0, float("nan"), 1)),
        *(Box(float("nan"), 0, 5, 5), Box(0, 0, float("inf"), 5), Box(0, float("-inf"), 5, 5)),
    ],
)
def test_an_empty_or_endless_box_is_refused(box, mpp):
    with pytest.raises(ValueError, match="wider and higher than 0"):
        SLIDE.read(box, mpp)


def test_levels_boxes_and_sizes_that_there_are_not_are_refused():
    for level in (-1, len(SLIDE.levels)):
        with pytest.raises(ValueError, match=rf"no level {level}: .* has levels 0 to \d"):
            SLIDE.read_level(level, 0, 0, 4, 4)
    with pytest.raises(ValueError, match="higher than 0 px, not 4 x 0"):
        SLIDE.read_level(0, 0, 0, 4, 0)
    with pytest.raises(ValueError, match="max_size must be at least 1 px, not 0"):
        SLIDE.thumbnail(0)


@pytest.mark.parametrize("mpp", [0, -1, float("nan"), float("inf"), "a", [1, 2, 3], {}, [1, None]])
def test_an_impossible_resolution_is_refused(mpp):
    with pytest.raises(ValueError, match="above 0"):
        SLIDE.read(Box(0, 0, 5, 5), mpp)


def test_without_mpp_only_level_zero_pixels_can_be_read():
    slide = from_array(LEVELS[0], name="folder/no-mpp.svs")
    assert slide.read(Box(0, 0, 4, 4)).shape == (4, 4, 3)
    with pytest.raises(MissingMppError, match=r"no-mpp\.svs.*--mpp X.*CSV.*from-objective"):
        slide.read(Box(0, 0, 4, 4), 0.5)


def test_many_threads_read_the_same_as_one():
    boxes = [Box(x, y, 90.5, 60.25) for x in range(0, 500, 40) for y in range(0, 400, 40)]
    alone = [SLIDE.read(box, 0.61) for box in boxes]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda box: SLIDE.read(box, 0.61), boxes))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_closed_slide_says_so():
    slide = from_array(LEVELS[0])
    with slide:
        pass
    with pytest.raises(SlideError, match="closed"):
        slide.read(Box(0, 0, 1, 1))
    slide.close()


def test_an_array_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"uint8 arrays of shape \(H, W, 3\)"):
        from_array(np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="float32"):
        from_array(np.zeros((4, 4, 3), np.float32))
