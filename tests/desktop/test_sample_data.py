from pathlib import Path

import numpy as np
from napari.layers import Layer

from slidelens.desktop.sample_data import (
    SAMPLE_MODEL,
    SAMPLE_SLIDE,
    phantom,
    phantom_with_heatmap,
)
from slidelens.geometry import Box
from slidelens.slide.open import open_slide
from slidelens.testing.phantom import truth


def test_sample_heatmap_is_the_bundled_models_and_finds_the_tumour():
    layers = [Layer.create(*layer) for layer in phantom_with_heatmap()]
    named = {layer.name: layer for layer in layers}
    heatmap = named[f"{SAMPLE_MODEL}: probability"]
    values = np.asarray(heatmap.data[0])
    known = ~np.isnan(values)
    cell = float(heatmap.scale[0])
    tumor = truth(SAMPLE_SLIDE).mask(Box.of_size(SAMPLE_SLIDE.size), cell)
    rows, columns = (min(a, b) for a, b in zip(tumor.shape, values.shape, strict=True))
    inside = np.zeros(values.shape, bool)
    inside[:rows, :columns] = tumor[:rows, :columns]
    assert np.median(values[known & inside]) > 0.35
    assert np.median(values[known & ~inside]) < 0.1
    assert f"{SAMPLE_MODEL}: regions" in named


def test_the_sample_slide_is_a_file_that_stays_while_it_is_shown():
    for _ in range(2):
        ((levels, options, _),) = phantom()
        path = Path(options["metadata"]["slidelens"]["path"])
        assert path.is_file()
        stamp = path.stat().st_mtime_ns
    phantom()
    assert path.stat().st_mtime_ns == stamp, "a window may read it"
    assert levels[0].shape[:2] == SAMPLE_SLIDE.size[::-1]
    with open_slide(path) as slide:
        assert slide.mpp.x == SAMPLE_SLIDE.mpp
