"""Multi-stage segmentation on slides whose answer is known: maps, blending, lumps, methods."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from slidelens.engine.loader import SlideView
from slidelens.errors import ModelError, SlideError
from slidelens.families.base import Model, Patch, SlideScore
from slidelens.families.multistage import FAMILY, MultistageConfig
from slidelens.geometry import Box
from slidelens.slide.array import from_array
from slidelens.tiling.tissue import TissueSettings

TILE = 32


class Reader(torch.nn.Module):
    """A patch's vector is its mean colour (normalised); the segmentation gives back the first."""

    def __init__(self):
        super().__init__()
        self.maps = []

    def forward(self, inputs, part):
        if part == "segment":
            self.maps.append(inputs)
            return inputs[:, :1]
        vectors = inputs.mean((2, 3))
        return vectors[:, :1] if part == "classify" else vectors


def _model(**config):
    settings = MultistageConfig(
        tile=TILE, backbone="squeezenet1_1", reduce=4, **{"min_tissue": 0.0, **config}
    )
    names = ("normal", "tumour")
    return Model("m", "multistage", settings, names, Reader(), device=torch.device("cpu"))


def _view(pixels):
    slide = from_array(pixels, mpp=0.5)
    return SlideView(slide, tissue=TissueSettings(method="whole"), device=torch.device("cpu"))


def _pixels(rows=3, columns=4, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), np.uint8)
    return values.repeat(TILE, 0).repeat(TILE, 1)


def _run(model, view):
    with torch.inference_mode():
        probability, labels, score = FAMILY.infer(model, view)
    assert isinstance(probability, Patch)
    assert isinstance(score, SlideScore)
    return probability, labels, score


def _sigmoid(red):
    return 1 / (1 + np.exp(-(red / 255 - 0.485) / 0.229))


@pytest.mark.parametrize("method", ["multistage", "imagenet", "classifier", "segmentation"])
@pytest.mark.parametrize("lumps", ["together", "separate"])
def test_each_patch_gets_what_the_network_said_at_its_place(method, lumps):
    pixels = _pixels()
    found, labels, score = _run(_model(method=method, lumps=lumps, batch_size=5), _view(pixels))
    expected = _sigmoid(pixels[::TILE, ::TILE, 0].astype(float)).ravel()
    assert found.boxes.tolist() == [
        [32.0 * c, 32.0 * r, 32, 32] for r in range(3) for c in range(4)
    ]
    np.testing.assert_allclose(found.values[:, 1], expected, atol=1e-5)
    np.testing.assert_allclose(found.values.sum(1), 1, atol=1e-6)
    assert labels.map == "segmentation"
    assert labels.values[:, 0].tolist() == (expected >= 0.5).astype(float).tolist()
    assert score.probabilities[1] == pytest.approx(expected.max(), abs=1e-5)


@pytest.mark.parametrize("method", ["multistage", "classifier", "segmentation"])
@pytest.mark.parametrize("fine", [2, 4])
def test_fine_cells_blend_the_patches_over_them(method, fine):
    pixels = np.random.default_rng(1).integers(0, 256, (96, 128, 3), np.uint8)
    pixels = pixels[::4, ::4].repeat(4, 0).repeat(4, 1)
    found, _, _ = _run(_model(method=method, fine=fine), _view(pixels))
    step = TILE // fine
    assert (found.boxes[:, 2:] == step).all()
    assert len(np.unique(found.boxes, axis=0)) == len(found.boxes)
    weight = np.sin(np.pi * (np.arange(fine) + 0.5) / fine) ** 2
    rows, columns = (96 - TILE) // step + 1, (128 - TILE) // step + 1
    cells = found.boxes[:, :2] / step
    assert sorted(map(tuple, cells.tolist())) == sorted(
        (c, r) for r in range(96 // step) for c in range(128 // step)
    )
    for box, value in zip(found.boxes[::3], found.values[::3, 1], strict=True):
        c, r = (box[:2] / step).astype(int)
        total = share = 0.0
        for dy, dx in np.ndindex(fine, fine):
            y, x = r - dy, c - dx
            if 0 <= y < rows and 0 <= x < columns:
                patch = pixels[y * step : y * step + TILE, x * step : x * step + TILE, 0]
                total += weight[dy] * weight[dx] * _sigmoid(patch.mean())
                share += weight[dy] * weight[dx]
        assert value == pytest.approx(total / share, abs=2e-4)


def test_shifted_grids_are_segmented_apart():
    model = _model(fine=2)
    _run(model, _view(_pixels(4, 4)))
    filled = [int((m != 0).any(1).sum()) for m in model.module.maps]
    assert sorted(filled) == [9, 12, 12, 16]


def _two_lumps():
    """Tissue in two corners of a white slide, further apart than a lump bridges."""
    pixels = np.full((8 * TILE, 8 * TILE, 3), 255, np.uint8)
    pixels[: 2 * TILE, : 3 * TILE] = pixels[6 * TILE :, 7 * TILE :] = (180, 60, 120)
    slide = from_array(pixels, mpp=4.0)
    return SlideView(slide, tissue=TissueSettings(min_area=0, closing=0))


@pytest.mark.parametrize(("lumps", "sizes"), [("together", [7 + 1]), ("separate", [6, 2])])
def test_lumps_of_tissue_share_a_map_or_not(lumps, sizes):
    model = _model(lumps=lumps, min_tissue=0.8, mpp=4.0)
    found, _, _ = _run(model, _two_lumps())
    assert len(found.boxes) == 8
    assert [int((m != 0).any(1).sum()) for m in model.module.maps] == sizes


@pytest.mark.parametrize("fine", [2, 4])
def test_fine_cells_end_where_the_tissue_ends(fine):
    """A patch that is mostly tissue says nothing of the background under its corner."""
    view = _two_lumps()
    found, _, _ = _run(_model(fine=fine, min_tissue=0.8, mpp=4.0), view)
    share = view.tissue.fraction(found.boxes)
    assert share.min() >= 0.5
    assert len(found.boxes) == pytest.approx(8 * fine**2, rel=0.15)


def test_no_fine_cell_lies_beyond_the_slide_however_little_tissue_is_asked_for():
    model, view = _model(fine=4, min_tissue=0.0), _view(_pixels(2, 1)[:, :20])
    found, _, _ = _run(model, view)
    assert (found.boxes[:, 0] < 20).all()
    assert len(found.boxes) == 8 * 3


def test_a_slide_smaller_than_a_fine_cell_has_one():
    model, view = _model(fine=2, min_tissue=0.8), _view(_pixels(1, 1)[:10, :10])
    found, _, score = _run(model, view)
    assert found.boxes.tolist() == [[0, 0, 16, 16]]
    assert score.probabilities[1] == found.values[0, 1]


@pytest.mark.parametrize("method", ["multistage", "classifier", "segmentation"])
@pytest.mark.parametrize("lumps", ["together", "separate"])
@pytest.mark.parametrize("region", [None, Box(40, 20, 50, 70)])
def test_a_slides_score_is_the_same_however_fine_its_map_is(method, lumps, region):
    """The threshold is for scores of the plain grid, of which not all is on a fine one."""
    pixels = np.random.default_rng(3).integers(0, 256, (27, 37, 3), np.uint8).repeat(4, 0)
    pixels = pixels.repeat(4, 1)  # 108 x 148 px
    pixels[96:, 128:] = (255, 0, 0)  # the highest patch reaches beyond the slide
    scores = {}
    for fine in (1, 2, 4):
        slide = from_array(pixels, mpp=0.5)
        view = SlideView(slide, tissue=TissueSettings(method="whole"), region=region)
        found, _, score = _run(_model(method=method, lumps=lumps, fine=fine), view)
        scores[fine] = score.probabilities[1]
        if fine == 1:
            assert score.probabilities[1] == found.values[:, 1].max()
        else:
            assert (found.boxes[:, 2:] == TILE // fine).all()
            assert (found.boxes % (TILE // fine) == 0).all()
            assert len(np.unique(found.boxes, axis=0)) == len(found.boxes)
    assert scores[2] == pytest.approx(scores[1], abs=1e-6)
    assert scores[4] == pytest.approx(scores[1], abs=1e-6)


def test_tissue_that_only_shifted_patches_hold_is_scored_by_these():
    pixels = np.full((4 * TILE, 4 * TILE, 3), 255, np.uint8)
    pixels[16:48, 16:48] = (180, 60, 120)
    view = SlideView(from_array(pixels, mpp=4.0), tissue=TissueSettings(min_area=0, closing=0))
    with pytest.raises(SlideError, match="holds 80% tissue"):
        _run(_model(min_tissue=0.8, mpp=4.0), view)
    found, _, score = _run(_model(min_tissue=0.8, mpp=4.0, fine=2), view)
    assert len(found.boxes) == 4
    assert score.probabilities[1] == pytest.approx(found.values[:, 1].max())


def test_a_map_is_declared_as_it_is_drawn():
    probability, labels = FAMILY.maps(MultistageConfig(tile=256, mpp=0.5, fine=4), ("no", "yes"))
    assert (probability.channels, probability.mpp, probability.instances) == (
        ("no", "yes"),
        32,
        True,
    )
    assert probability.threshold == 0.5
    assert (labels.kind, labels.channels, labels.mpp) == ("labels", ("yes",), 32)


@pytest.mark.parametrize("method", ["multistage", "classifier", "imagenet", "segmentation"])
def test_built_networks_fit_infer(method):
    model = _model(method=method, width=4, depth=2)
    torch.manual_seed(0)
    model.module = FAMILY.build(model.config, 2).eval()
    found, _, score = _run(model, _view(_pixels()))
    assert np.isfinite(found.values).all()
    assert sum(score.probabilities) == pytest.approx(1)


def test_a_patch_alone_is_a_slide_too():
    model = _model()
    torch.manual_seed(0)
    model.module = FAMILY.build(model.config, 2).eval()
    found, _, _ = _run(model, _view(_pixels(1, 1)))
    assert len(found.boxes) == 1


def test_what_makes_no_model_is_refused():
    with pytest.raises(ModelError, match="two classes, negative first; the labels have 3"):
        FAMILY.build(MultistageConfig(), 3)
    with pytest.raises(ValidationError, match="cannot be shifted by 1/3"):
        MultistageConfig(tile=256, fine=3)
    with pytest.raises(ValidationError, match="cannot be reduced by 7"):
        MultistageConfig(tile=256, method="segmentation", reduce=7)


def test_a_slide_without_tissue_is_refused():
    white = from_array(np.full((96, 96, 3), 255, np.uint8), mpp=0.5)
    with pytest.raises(SlideError, match=r"no tile of 32 px at 0\.5 µm/px holds 80% tissue"):
        next(FAMILY.infer(_model(min_tissue=0.8), SlideView(white)))


def test_only_the_reduced_picture_is_read_for_segmentation():
    assert MultistageConfig(mpp=0.5).finest_mpp(1000) == 0.5
    assert MultistageConfig(mpp=0.5, method="segmentation", reduce=8).finest_mpp(1000) == 4
