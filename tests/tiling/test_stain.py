from __future__ import annotations

import numpy as np
import pytest

from slidelens.errors import SlideError
from slidelens.slide.array import from_array
from slidelens.tiling.stain import (
    REFERENCE,
    StainNormalizer,
    Stains,
    estimate_stains,
    slide_stains,
)
from slidelens.tiling.tissue import TissueSettings, tissue_mask

OTHER = Stains.of([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]], [1.4, 0.8])


def stained(stains: Stains, seed: int = 0, shape: tuple[int, int] = (256, 256)) -> np.ndarray:
    """Mix random amounts of two stains, many pixels nearly of one alone."""
    amounts = np.random.default_rng(seed).beta(0.4, 0.8, (*shape, 2)) * stains.strengths
    return np.clip(256 * np.exp(-amounts @ stains.colours) - 0.5, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("stains", [REFERENCE, OTHER])
def test_the_stains_that_were_mixed_are_found(stains):
    found = estimate_stains(stained(stains))
    assert np.einsum("ij,ij->i", found.colours, stains.colours).min() > 0.995
    assert found.strengths == pytest.approx(stains.strengths, rel=0.12)


def test_one_tissue_in_two_stains_looks_alike_after_normalisation():
    ours, theirs = stained(REFERENCE, seed=3), stained(OTHER, seed=3)
    before = np.abs(ours.astype(int) - theirs).mean()
    normal = [StainNormalizer(estimate_stains(p))(p).astype(int) for p in (ours, theirs)]
    assert np.abs(normal[0] - normal[1]).mean() < before / 5


def test_normalising_to_the_own_stains_changes_rounding_alone_and_white_stays_white():
    pixels = stained(OTHER)
    same = StainNormalizer(OTHER, OTHER)(pixels)
    assert np.abs(same.astype(int) - pixels).max() <= 1
    white = np.full((4, 4, 3), 255, np.uint8)
    assert (StainNormalizer(OTHER)(white) == 255).all()


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.full((64, 64, 3), 250, np.uint8), "only 0 stained pixels"),
        (np.full((64, 64, 3), (150, 60, 160), np.uint8), "one colour"),
    ],
)
def test_what_has_no_two_stains_is_refused(pixels, reason):
    with pytest.raises(ValueError, match=reason):
        estimate_stains(pixels)


def test_a_slide_is_sampled_in_its_tissue_and_an_empty_one_is_named():
    pixels = np.full((1024, 1024, 3), 255, np.uint8)
    pixels[256:768, 256:768] = stained(OTHER, shape=(512, 512))
    slide = from_array(pixels, mpp=2.0)
    found = slide_stains(slide, tissue_mask(slide, TissueSettings(min_area=0)))
    assert np.einsum("ij,ij->i", found.colours, OTHER.colours).min() > 0.99

    empty = from_array(np.full((600, 600, 3), 255, np.uint8), mpp=2.0)
    with pytest.raises(
        SlideError, match=r"stains cannot be estimated.*without stain normalisation"
    ):
        slide_stains(empty, tissue_mask(empty, TissueSettings(method="whole")))
    with pytest.raises(SlideError, match="only 0 stained pixels"):
        slide_stains(empty, tissue_mask(empty, TissueSettings()))
