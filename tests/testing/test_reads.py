"""Counting what is decoded of a slide."""

from __future__ import annotations

from pathlib import Path

import pytest

from slidelens.geometry import Box
from slidelens.slide.open import open_slide
from slidelens.testing.phantom import PhantomSpec, write_phantom
from slidelens.testing.reads import Reads


@pytest.mark.parametrize("backend", ["openslide", "tifffile"])
def test_tiles_count_whole_and_once(tmp_path: Path, backend: str):
    write_phantom(tmp_path / "a.tif", PhantomSpec(size=(1100, 900)))
    with open_slide(tmp_path / "a.tif", backend=backend) as slide:
        with Reads(slide) as reads:
            slide.read(Box(250, 10, 10, 10))  # over the edge of two tiles
            slide.read(Box(255, 20, 2, 2))
            assert reads.decoded() == reads.decoded(0) == 2 * 256 * 256
            slide.read(Box(0, 0, 1100, 900), 2.0)
            assert reads.decoded(1) == 2 * 256 * 256
            slide.read(Box(-500, -500, 100, 100))  # beside the slide
            assert reads.decoded() == 4 * 256 * 256
        slide.read(Box(600, 600, 10, 10))
        assert reads.decoded() == 4 * 256 * 256
