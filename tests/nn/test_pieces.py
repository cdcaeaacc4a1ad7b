"""Means of windows and patches of a map: values and gradients are those of plain autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from slidelens.nn.pieces import cut_patches, whole_windows, window_means

FORMATS = (torch.contiguous_format, torch.channels_last)


def image(height, width, order, batch=2):
    torch.manual_seed(0)
    values = torch.randn(batch, 3, height, width, dtype=torch.float64)
    return values.contiguous(memory_format=order).requires_grad_()


def gradient(made, source):
    """Return the gradient of some weighted sum."""
    torch.manual_seed(1)
    return torch.autograd.grad((made * torch.randn_like(made)).sum(), source)[0]


@pytest.mark.parametrize("order", FORMATS)
@pytest.mark.parametrize("size", [(9, 12), (10, 14), (11, 12), (2, 7), (2, 2)])
def test_means_are_those_of_windows_whose_border_is_repeated(size, order):
    features = image(*size, order)
    found, plain = window_means(features, 3), F.avg_pool2d(whole_windows(features, 3), 3)
    torch.testing.assert_close(found, plain)
    got = gradient(found, features)
    torch.testing.assert_close(got, gradient(plain, features))
    assert got.is_contiguous(memory_format=order)


@pytest.mark.parametrize("order", FORMATS)
def test_patches_may_lie_over_each_other(order):
    features, ys, xs = image(9, 12, order), [0, 3, 4, 3], [1, 2, 7, 2]
    found = cut_patches(features, ys, xs, 4, 5)
    plain = torch.cat([features[:, :, y : y + 4, x : x + 5] for y, x in zip(ys, xs, strict=True)])
    torch.testing.assert_close(found, plain, rtol=0, atol=0)
    got = gradient(found, features)
    torch.testing.assert_close(got, gradient(plain, features))
    assert got.is_contiguous(memory_format=order)


def test_one_gradient_of_the_map_is_made_for_all_patches():
    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        made = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.shape == features.shape:
                self.made += func is torch.ops.aten.empty.memory_format
            return out

    features = image(64, 64, torch.channels_last)
    patches = cut_patches(features, [*range(10)], [*range(10)], 8, 8).sum()
    with Sizes() as sizes:
        patches.backward()
    assert sizes.made == 1
