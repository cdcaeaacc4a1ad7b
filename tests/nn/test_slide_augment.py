"""Augmented images are the same whichever way they are read, and what the names say."""

from __future__ import annotations

from math import pi

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slidelens.geometry import Box
from slidelens.nn.augment import TileAugment
from slidelens.nn.slide_augment import Colours, SlideAugment, Turned
from slidelens.nn.slide_resample import DEFORMED_PX, Deformed, Rotated
from slidelens.nn.source import DeviceImage

CELL = 8


class Picture:
    """An image in memory that refuses what lies outside of it."""

    def __init__(self, pixels):
        self.pixels, self.shape = pixels, pixels.shape

    def read(self, box):
        x, y, w, h = (int(v) for v in box)
        assert x >= 0
        assert y >= 0
        assert x + w <= self.shape[1]
        assert y + h <= self.shape[0]
        return self.pixels[y : y + h, x : x + w]


def picture(height=72, width=104, seed=0):
    return Picture(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def whole(image):
    return image.read(Box(0, 0, image.shape[1], image.shape[0]))


def some_mask(image, seed=0):
    shape = (image.shape[0] // CELL, image.shape[1] // CELL)
    return np.random.default_rng(seed).random(shape) < 0.5


@settings(max_examples=40)
@given(
    rotation=st.sampled_from(["none", "quarter", "free"]),
    elastic=st.sampled_from([0.0, 1.0, 7.0]),
    key=st.integers(0, 10_000),
    place=st.tuples(*[st.floats(0, 1)] * 4),
)
def test_any_piece_is_the_crop_of_the_whole(rotation, elastic, key, place):
    image = picture()
    made, _ = SlideAugment(rotation, elastic=elastic)(image, some_mask(image), (key,), 4096)
    height, width, _ = made.shape
    x, y = int(place[0] * (width - 1)), int(place[1] * (height - 1))
    w, h = 1 + int(place[2] * (width - x - 1)), 1 + int(place[3] * (height - y - 1))
    piece = made.read(Box(x, y, w, h))
    np.testing.assert_array_equal(piece, whole(made)[y : y + h, x : x + w])


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("quarters", range(4))
def test_turns_keep_every_pixel_and_take_the_mask_along(quarters, mirrored):
    image = picture()
    expected = np.rot90(image.pixels, quarters)
    expected = expected[:, ::-1] if mirrored else expected
    turned = Turned(image, quarters, mirrored)
    assert turned.shape == expected.shape
    np.testing.assert_array_equal(whole(turned), expected)


def test_the_mask_lies_where_its_tissue_lies():
    """Tissue is dark: where the augmented mask says background, no pixel is."""
    rng = np.random.default_rng(3)
    for key in range(20):
        mask = rng.random((9, 13)) < 0.3
        pixels = np.where(mask.repeat(CELL, 0).repeat(CELL, 1)[..., None], 0, 255)
        image = Picture(np.broadcast_to(pixels, (*pixels.shape[:2], 3)).astype(np.uint8))
        augment = SlideAugment("free", stain=0, colour=0, elastic=key % 3)
        made, turned = augment(image, mask, (key,), 4096)
        assert made.shape == (turned.shape[0] * CELL, turned.shape[1] * CELL, 3)
        background = ~turned.repeat(CELL, 0).repeat(CELL, 1)
        assert whole(made)[background].min(initial=255) == 255


def test_a_rotation_by_nothing_is_the_image():
    image = picture()
    np.testing.assert_array_equal(whole(Rotated(image, 0.0, CELL, 4096)), image.pixels)


def test_a_rotation_turns_against_the_clock_about_the_centre():
    pixels = np.full((80, 80, 3), 255, np.uint8)
    pixels[36:44, 60:68] = 0  # to the right of the centre
    rotated = whole(Rotated(Picture(pixels), pi / 4, CELL, 4096))
    rows, columns = np.nonzero(rotated[..., 0] < 128)
    centre = (np.array(rotated.shape[:2]) - 1) / 2
    away = np.array([rows.mean(), columns.mean()]) - centre
    np.testing.assert_allclose(away, [-24 * 0.5**0.5, 24 * 0.5**0.5], atol=0.3)
    assert rotated[0, 0].tolist() == [255, 255, 255]


def test_a_rotated_image_is_cut_to_the_limit():
    assert Rotated(picture(), 0.5, CELL, 50).shape == (48, 48, 3)


def test_a_deformation_by_nothing_is_the_image():
    image = picture()
    deformed = Deformed(image, 0.0, CELL, np.random.default_rng(0))
    np.testing.assert_array_equal(whole(deformed), image.pixels)


def test_a_deformation_moves_pixels_by_as_much_as_is_asked_and_smoothly():
    image = Picture(np.zeros((40 * DEFORMED_PX, 30 * DEFORMED_PX, 3), np.uint8))
    deformed = Deformed(image, 6.0, 50, np.random.default_rng(0))
    x, y = (np.arange(0, side, 25.0) for side in (image.shape[1], image.shape[0]))
    u, v = deformed.back(x[None], y[:, None])
    for moved in (u - x[None], v - y[:, None]):
        assert moved.std() == pytest.approx(6, rel=0.2)
        assert abs(moved.mean()) < 1
        # A sixth of the way from one point to the next: far less than a move, and no fold.
        assert np.abs(np.diff(moved, axis=0)).max() < 6
        assert np.abs(np.diff(moved, axis=1)).max() < 6
    assert np.corrcoef((u - x[None]).ravel(), (v - y[:, None]).ravel())[0, 1] == pytest.approx(
        0, abs=0.2
    )


def test_colours_are_those_of_tiles():
    """Tables of 4096 densities against the formula in floats: at most one step apart."""
    pixels = picture(40, 50).pixels
    for key in range(5):
        made = Colours.draw(0.2, 0.05, (key,))(pixels)
        images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        exact = TileAugment(False, 0.2, 0.05)(images, [(key,)])[0].permute(1, 2, 0) * 255
        assert np.abs(made - exact.numpy()).max() <= 1


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu])])
def test_a_device_makes_the_very_same_colours(device: str):
    image = picture(400, 300)
    made, _ = SlideAugment(stain=0.3, colour=0.1)(image, some_mask(image), (3,), 4096)
    assert isinstance(made, DeviceImage)
    box = Box(10, 20, 200, 270)
    there = made.read_onto(box, torch.device(device))
    assert there.device.type == device
    np.testing.assert_array_equal(there[0].permute(1, 2, 0).cpu().numpy(), made.read(box))


def test_the_same_key_is_the_same_picture_and_another_is_another():
    image, augment = picture(), SlideAugment("free")
    first, second, other = (
        augment(image, some_mask(image), key, 4096)[0] for key in ((1, 2), (1, 2), (1, 3))
    )
    np.testing.assert_array_equal(whole(first), whole(second))
    assert first.shape != other.shape or (whole(first) != whole(other)).any()


def test_nothing_asked_for_is_the_image_itself():
    image = picture()
    mask = some_mask(image)
    made, same = SlideAugment("none", flips=False, stain=0, colour=0)(image, mask, (1,), 4096)
    assert made is image
    assert same is mask
