"""A slide, or a region, on which there is nothing to see is refused by every bundled model."""

from __future__ import annotations

import numpy as np
import pytest

from slidelens.engine.loader import SlideView
from slidelens.engine.package import load_model
from slidelens.engine.predict import predict
from slidelens.engine.training.start import task_of
from slidelens.errors import SlideError
from slidelens.families.base import Bag
from slidelens.families.training import Sample
from slidelens.geometry import Box
from slidelens.slide.array import from_array
from slidelens.tiling.annotations import Annotations

BY_TILES = {"demo-mil", "demo-abmil", "demo-multistage"}
BUNDLED = sorted({*BY_TILES, "demo-local", "demo-magnet", "demo-streaming"})
GLASS, TISSUE = (242, 240, 245), (200, 90, 160)


def _slide(tissue: bool):
    pixels = np.full((1024, 1024, 3), GLASS, np.uint8)
    if tissue:
        pixels[64:448, 64:448] = TISSUE
    return from_array(pixels, mpp=1.0)


def _said(name):
    return "no tile of .* holds .* tissue" if name in BY_TILES else "no tissue was found to look at"


class _Data:
    """Slides in memory, as the engine would give them."""

    def __init__(self):
        self.train = [Sample("glass", 0), Sample("tissue", 0)]
        self.tune = []
        self.views = {s.slide_id: SlideView(_slide(s.slide_id == "tissue")) for s in self.train}

    def view(self, slide_id):
        return self.views[slide_id]

    def annotations(self, _):
        return Annotations()

    def bag(self, slide_id, spec, _):
        grid = self.view(slide_id).grid(spec)
        return Bag(grid.boxes, np.zeros((len(grid), 1), np.float32))


@pytest.mark.parametrize("name", BUNDLED)
def test_no_score_is_given_where_there_is_nothing_to_see(name):
    with pytest.raises(SlideError, match=_said(name)) as whole:
        predict(_slide(tissue=False), name, device="cpu")
    with pytest.raises(SlideError, match=_said(name)) as part:
        predict(_slide(tissue=True), name, device="cpu", region=Box(512, 512, 500, 500))
    assert "a larger --region" in str(whole.value)
    assert str(whole.value) == str(part.value)


@pytest.mark.parametrize("name", BUNDLED)
def test_training_refuses_a_slide_without_tissue_before_the_first_step(name):
    model, data = load_model(name, "cpu"), _Data()
    kind = task_of(model.family)
    training = kind.training.model_validate(kind.training.presets["default"])
    task = kind(model, model.module, data, training.suited(model.config), seed=0)
    task.check("tissue")
    with pytest.raises(SlideError, match=_said(name)):
        task.check("glass")
