"""Augmentation of patches: by the key alone, cropped, with contrast and sharpness as said."""

from __future__ import annotations

import numpy as np
import torch

from slidelens.nn.augment import TileAugment
from slidelens.nn.patch_augment import PatchAugment

KEYS = [(0, 3, i) for i in range(6)]
PLAIN = TileAugment(flips=False, stain=0.0, colour=0.0)


def _tiles():
    return torch.from_numpy(np.random.default_rng(0).integers(1, 256, (6, 3, 16, 16), np.uint8))


def test_a_patch_looks_the_same_in_any_batch():
    augment = PatchAugment(contrast=0.2, sharpness=0.2)
    together = augment(_tiles(), KEYS)
    apart = augment(_tiles()[[4, 1]], [KEYS[4], KEYS[1]])
    assert together.shape == (6, 3, 14, 14)
    torch.testing.assert_close(apart, together[[4, 1]])


def test_zero_strength_changes_nothing():
    same = PatchAugment(PLAIN, crop=1.0)(_tiles(), KEYS)
    torch.testing.assert_close(same, _tiles() / 255, atol=1e-5, rtol=0)


def test_a_crop_is_a_part_of_its_patch_and_moves():
    cropped = PatchAugment(PLAIN, crop=0.5)(_tiles(), KEYS)
    whole = _tiles() / 255
    corners = set()
    for one, full in zip(cropped, whole, strict=True):
        windows = full.unfold(1, 8, 1).unfold(2, 8, 1)
        apart = (windows - one[:, None, None]).abs().amax((0, 3, 4))
        assert apart.min() < 1e-5
        corners.add(int(apart.argmin()))
    assert len(corners) > 3


def test_contrast_keeps_the_mean_and_scales_the_spread():
    grey = (_tiles() // 4) + 96  # far from black and white: nothing is clipped
    changed = PatchAugment(PLAIN, crop=1.0, contrast=0.25)(grey, KEYS)
    plain = grey / 255
    torch.testing.assert_close(changed.mean((2, 3)), plain.mean((2, 3)), atol=1e-5, rtol=0)
    factor = changed.std((2, 3)) / plain.std((2, 3))
    torch.testing.assert_close(factor[:, 0], factor[:, 2], atol=1e-3, rtol=0)
    assert factor.min() >= 0.75
    assert factor.max() <= 1.25
    assert factor[:, 0].std() > 0.05


def test_sharpness_leaves_flat_areas_alone():
    flat = torch.full((6, 3, 16, 16), 120, dtype=torch.uint8)
    flat[:, :, :, 8:] = 60
    changed = PatchAugment(PLAIN, crop=1.0, sharpness=0.25)(flat, KEYS)
    torch.testing.assert_close(changed[..., :6], (flat / 255)[..., :6], atol=1e-5, rtol=0)
    edge = (changed[:, 0, 4, 7] - changed[:, 0, 4, 8]) / (60 / 255)
    assert edge.min() < 0.98
    assert edge.max() > 1.02
