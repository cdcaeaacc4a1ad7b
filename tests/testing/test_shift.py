from __future__ import annotations

import numpy as np
import pytest

from slidelens.geometry import Box
from slidelens.slide.array import from_array
from slidelens.slide.open import open_slide
from slidelens.testing.shift import StainShift


def test_a_name_gives_its_shift():
    assert StainShift.of("a") == StainShift.of("a")
    assert StainShift.of("a") != StainShift.of("b")
    shift = StainShift.of("a", strength=2)
    assert all(np.exp(-0.8) <= gain <= np.exp(0.8) for gain in shift.gain)
    assert all(abs(offset) <= 0.1 for offset in shift.offset)


def test_no_shift_changes_nothing():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)
    np.testing.assert_array_equal(StainShift.of("a", 0)(pixels), pixels)


def test_densities_are_scaled_and_shifted():
    pixels = np.full((1, 1, 3), 128, np.uint8)
    out = StainShift((2.0, 1.0, 0.5), (0.0, 0.1, 0.0))(pixels)[0, 0] / 255
    density = -np.log(128 / 255)
    expected = [2 * density, density + 0.1, density / 2]
    np.testing.assert_allclose(-np.log(out), expected, atol=0.01)


def test_a_slide_is_written_with_its_resolution(tmp_path):
    pixels = np.full((600, 700, 3), (200, 120, 180), np.uint8)
    shift = StainShift.of("x")
    shift.write(from_array(pixels, mpp=0.25), tmp_path / "x.tif")
    with open_slide(tmp_path / "x.tif") as slide:
        assert tuple(slide.size) == (700, 600)
        assert slide.mpp.x == pytest.approx(0.25)
        found = slide.read(Box(100, 100, 50, 50)).mean((0, 1))
    np.testing.assert_allclose(found, shift(pixels[:1, :1])[0, 0], atol=2)
