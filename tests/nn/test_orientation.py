"""The eight orientations, of images and of points on them."""

import numpy as np
import pytest
import torch

from slidelens.nn.orientation import orient, orient_points, restore, restore_points


def test_the_eight_orientations_differ_and_the_first_is_the_image():
    image = torch.arange(6.0).view(1, 1, 2, 3)
    seen = {(o.shape, tuple(o.flatten().tolist())) for o in (orient(image, n) for n in range(8))}
    assert len(seen) == 8
    assert torch.equal(orient(image, 0), image)


@pytest.mark.parametrize("n", range(8))
def test_an_orientation_is_undone(n):
    image, points = torch.rand(2, 3, 5, 4), np.random.default_rng(n).normal(size=(6, 2))
    assert torch.equal(restore(orient(image, n), n), image)
    assert np.array_equal(restore_points(orient_points(points, n), n), points)


@pytest.mark.parametrize("n", range(8))
def test_points_move_as_the_image_does(n):
    y, x = 0, 3
    image = torch.zeros(5, 5)
    image[y, x] = 1
    ((to_x, to_y),) = orient_points(np.array([[x - 2, y - 2]]), n) + 2
    assert orient(image, n)[to_y, to_x] == 1
