"""Augmentation: a function of the key alone, and the identity at zero strength."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slidelens.nn.augment import TileAugment
from slidelens.nn.pixels import IMAGENET_MEAN, IMAGENET_STD, normalize


@pytest.fixture
def tiles():
    values = np.random.default_rng(0).integers(0, 256, (6, 3, 16, 16), np.uint8)
    return torch.from_numpy(values)


def _keys(n):
    return [(0, 3, i) for i in range(n)]


def test_a_tile_looks_the_same_in_any_batch(tiles):
    augment = TileAugment()
    together = augment(tiles, _keys(6))
    order = [4, 1, 5]
    apart = augment(tiles[order], [_keys(6)[i] for i in order])
    assert torch.equal(apart, together[order])


def test_memory_layout_does_not_matter(tiles):
    channels_last = tiles.contiguous(memory_format=torch.channels_last)
    assert torch.equal(TileAugment()(channels_last, _keys(6)), TileAugment()(tiles, _keys(6)))


def test_other_epochs_look_different(tiles):
    augment = TileAugment()
    first, second = (augment(tiles, [(0, epoch, i) for i in range(6)]) for epoch in (0, 1))
    assert all(not torch.allclose(a, b, atol=0.01) for a, b in zip(first, second, strict=True))


def test_zero_strength_changes_nothing(tiles):
    same = TileAugment(flips=False, stain=0, colour=0)(tiles, _keys(6))
    expected = tiles.float().clamp(min=0.5) / 255  # black has no finite optical density
    torch.testing.assert_close(same, expected, rtol=0, atol=1e-5)


def test_turns_are_the_eight_orientations_and_all_occur(tiles):
    tile = tiles[:1]
    turned = TileAugment(stain=0, colour=0)(tile.expand(64, -1, -1, -1), _keys(64))
    quarter = [torch.rot90(tile[0].float() / 255, k, (1, 2)) for k in range(4)]
    eight = torch.stack([*quarter, *(q.flip(2) for q in quarter)])
    distance = (turned[:, None] - eight[None]).abs().amax((2, 3, 4))
    assert (distance.amin(1) < 0.01).all()
    assert set(distance.argmin(1).tolist()) == set(range(8))


def test_stain_jitter_keeps_white_white_and_stays_in_range(tiles):
    white = torch.full((4, 3, 8, 8), 255, dtype=torch.uint8)
    out = TileAugment(stain=0.2, colour=0)(white, _keys(4))
    assert (out > 0.93).all()  # a shift of at most 0.02 in optical density per stain
    strong = TileAugment(stain=0.9, colour=0.9)(tiles, _keys(6))
    assert strong.min() >= 0
    assert strong.max() <= 1


def test_only_square_tiles_turn():
    with pytest.raises(ValueError, match="square"):
        TileAugment()(torch.zeros(1, 3, 8, 4, dtype=torch.uint8), [(0,)])


@pytest.mark.parametrize("last", [True, False], ids=["channels-last", "channels-first"])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.float64])
def test_normalize_is_the_plain_formula_bit_for_bit(kind, last):
    images = torch.randint(0, 256, (2, 3, 9, 13), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8) if kind == torch.uint8 else images.to(kind) / 255
    images = images.to(memory_format=torch.channels_last) if last else images
    before, full = images.clone(), 255.0 if kind == torch.uint8 else 1.0
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) * full for v in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.inference_mode():  # what is kept here must not spoil training after it
        normalize(images, IMAGENET_MEAN, IMAGENET_STD)
    made = normalize(images, IMAGENET_MEAN, IMAGENET_STD)
    assert torch.equal(made, (images.float() - mean) / std)
    assert torch.equal(images, before)
    assert made.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [1, 4])
def test_normalize_takes_any_number_of_channels(channels):
    images = torch.randint(0, 256, (2, channels, 5, 7), dtype=torch.uint8)
    made = normalize(images, (0.5,) * channels, (0.25,) * channels)
    assert torch.equal(made, (images.float() - 127.5) / 63.75)


def test_normalize_hands_gradients_on():
    images = torch.rand(1, 3, 4, 5, requires_grad=True)
    with torch.inference_mode():
        normalize(torch.rand(1, 3, 4, 5), IMAGENET_MEAN, IMAGENET_STD)
    normalize(images, IMAGENET_MEAN, IMAGENET_STD).sum().backward()
    expected = 1 / torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    torch.testing.assert_close(images.grad, expected.expand(1, 3, 4, 5))


def test_normalize_takes_bytes_and_fractions_alike(tiles):
    as_bytes = normalize(tiles, IMAGENET_MEAN, IMAGENET_STD)
    as_floats = normalize(tiles.float() / 255, IMAGENET_MEAN, IMAGENET_STD)
    torch.testing.assert_close(as_bytes, as_floats, rtol=0, atol=1e-5)
    expected = (tiles[2, 1, 3, 4].item() / 255 - 0.456) / 0.224
    assert as_bytes[2, 1, 3, 4].item() == pytest.approx(expected, abs=1e-5)
    assert as_bytes.is_contiguous(memory_format=torch.channels_last)
