"""Pyramids for viewers: whole, lazy, small at the end."""

import numpy as np
import pytest

from slidelens import Box
from slidelens.geometry import Size
from slidelens.slide.array import ArrayReader, from_array
from slidelens.slide.base import Slide
from slidelens.slide.pyramid import COARSEST
from slidelens.slide.reader import Facts, Reader, levels_of


class Counting(Reader):
    """A slide of any size whose pixels are functions of position; counts what is read."""

    backend = "counting"

    def __init__(self, *sizes):
        self.facts = Facts(levels_of(list(sizes)))
        self.read_px = [0] * len(sizes)

    @classmethod
    def sniff(cls, path, head):
        return False

    def read(self, level, x, y, w, h):
        self.read_px[level] += w * h
        scale = self.facts.levels[0].size.width / self.facts.levels[level].size.width
        columns = (np.arange(x, x + w) + 0.5) * scale / self.facts.levels[0].size.width * 255
        return np.broadcast_to(columns.astype(np.uint8)[None, :, None], (h, w, 3)).copy()

    def close(self):
        pass


def slide_of(*sizes, path):
    reader = Counting(*sizes)
    return Slide(reader, path, mpp=None), reader


def test_making_one_reads_nothing_and_the_coarsest_costs_its_own_pixels(tmp_path):
    slide, reader = slide_of((40000, 30000), (10000, 7500), (2500, 1875), path=tmp_path / "big.svs")
    levels = slide.pyramid()
    assert reader.read_px == [0, 0, 0]
    assert [level.shape for level in levels] == [
        *((30000, 40000, 3), (7500, 10000, 3), (1875, 2500, 3), (938, 1250, 3))
    ]
    coarsest = np.asarray(levels[-1])
    assert coarsest.shape == (938, 1250, 3)
    assert reader.read_px[:2] == [0, 0]
    assert reader.read_px[2] < 1.1 * 2500 * 1875
    np.asarray(levels[-1])
    assert reader.read_px[2] < 1.1 * 2500 * 1875  # kept
    assert len(levels[-1]._tiles) == 20
    slide.close()
    assert len(levels[-1]._tiles) == 0


@pytest.mark.parametrize(
    ("sizes", "shapes"),
    [
        ([(2048, 100)], [(100, 2048)]),
        ([(2049, 100)], [(100, 2049), (50, 1025)]),
        ([(9000, 9000)], [(9000, 9000), (4500, 4500), (2250, 2250), (1125, 1125)]),
        ([(4000, 4000), (250, 250)], [(4000, 4000), (2000, 2000), (1000, 1000), (250, 250)]),
        ([(4000, 4000), (1000, 1000)], [(4000, 4000), (1000, 1000)]),
    ],
)
def test_missing_levels_are_filled_in(tmp_path, sizes, shapes):
    slide, _ = slide_of(*sizes, path=tmp_path / "x.svs")
    levels = slide.pyramid()
    assert [level.shape[:2] for level in levels] == shapes
    assert max(levels[-1].shape) <= COARSEST
    for level in levels:
        assert (level.dtype, level.ndim, level.chunks) == (np.uint8, 3, (256, 256, 3))


def test_a_synthesised_block_reads_only_its_part(tmp_path):
    slide, reader = slide_of((16384, 16384), path=tmp_path / "x.svs")
    level = slide.pyramid()[2]
    assert level.shape == (4096, 4096, 3)
    level[1024:1280, 512:768]
    assert reader.read_px[0] == 1024 * 1024


def test_levels_lie_exactly_on_each_other(tmp_path):
    """A gradient over the slide's width has the same value at the same fraction of every level."""
    slide, _ = slide_of((5001, 3333), path=tmp_path / "x.svs")
    levels = slide.pyramid()
    assert len(levels) == 3
    finest = levels[0][100:101].astype(float)[0, :, 0]
    for level in levels[1:]:
        width = level.shape[1]
        row = level[50, :, 0].astype(float)
        centres = (np.arange(width) + 0.5) / width * 5001 - 0.5
        expected = np.interp(centres, np.arange(5001), finest)
        assert np.abs(row - expected)[2:-2].max() <= 1.0


def test_averages_are_those_of_the_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (2500, 3000, 3)).astype(np.uint8)
    half = from_array(pixels).pyramid()[1]
    assert half.shape == (1250, 1500, 3)
    mean = pixels.reshape(1250, 2, 1500, 2, 3).mean((1, 3))
    np.testing.assert_array_equal(np.asarray(half), np.floor(mean + 0.5).astype(np.uint8))


@pytest.mark.parametrize(
    "key",
    [
        np.s_[5],
        np.s_[-1],
        np.s_[3:50],
        np.s_[:, 7],
        np.s_[10:400:3, 300:20:-2],
        np.s_[..., 0],
        np.s_[5, ..., 1:],
        np.s_[2:9, ..., ::-1],
        np.s_[:, :, 2],
        np.s_[100:50, 3:4],
        np.s_[2, 3, 1],
        np.s_[400:9999, -20:],
    ],
)
def test_indexing_is_numpys(key):
    pixels = np.random.default_rng(0).integers(0, 256, (500, 700, 3)).astype(np.uint8)
    level = from_array(pixels).pyramid()[0]
    np.testing.assert_array_equal(level[key], pixels[key])


def test_a_large_read_on_several_threads_is_whole():
    pixels = np.random.default_rng(0).integers(0, 256, (1700, 1900, 3)).astype(np.uint8)
    level = from_array(pixels).pyramid()[0]
    np.testing.assert_array_equal(level[13:1690, 7:1899], pixels[13:1690, 7:1899])
    np.testing.assert_array_equal(np.asarray(level, dtype=np.float32), pixels.astype(np.float32))
    with pytest.raises(IndexError, match="3 axes"):
        level[0, 0, 0, 0]
    with pytest.raises(ValueError, match="copy=False"):
        np.array(level, copy=False)


def test_thumbnail_has_the_slides_shape_and_colour():
    pixels = np.full((3001, 2000, 3), (10, 200, 90), np.uint8)
    slide = from_array(pixels)
    thumbnail = slide.thumbnail(300)
    assert thumbnail.shape == (300, 200, 3)
    assert (thumbnail == (10, 200, 90)).all()
    assert slide.thumbnail(9999).shape == (3001, 2000, 3)


def test_arrays_of_several_levels_are_a_slide():
    reader = ArrayReader(np.zeros((40, 60, 3), np.uint8), np.zeros((20, 30, 3), np.uint8))
    assert [level.size for level in reader.facts.levels] == [Size(60, 40), Size(30, 20)]
    assert from_array(np.zeros((40, 60, 3), np.uint8)).read(Box(0, 0, 60, 40)).shape == (40, 60, 3)
