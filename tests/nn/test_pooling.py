"""Max pooling without a graph against PyTorch's."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from slidelens.nn.pooling import max_pool

KERNELS = ((2, 2), (3, 3), (3, 2), (5, 3))
STRIDES = ((1, 1), (2, 2), (3, 2))
PADDINGS = ((0, 0), (1, 1), (1, 0))
DILATIONS = ((1, 1), (2, 1))


def image(height, width, dtype=torch.float32):
    values = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height))
    values[0, 0, 2, 3], values[1, 1, 4, 1] = torch.nan, -torch.inf
    return values.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(9, 11), (16, 15), (32, 33)])
def test_values_are_those_of_pytorch(size, dtype):
    values = image(*size, dtype)
    for options in product(KERNELS, STRIDES, PADDINGS, DILATIONS):
        wanted = F.max_pool2d(values, *options)
        torch.testing.assert_close(
            max_pool(values, *options), wanted, rtol=0, atol=0, equal_nan=True
        )


def test_a_view_and_channels_last_are_pooled_alike():
    values, options = image(20, 21), ((3, 3), (2, 2), (1, 1), (1, 1))
    for one in (values[:, :, 3:17, 2:19], values.contiguous(memory_format=torch.channels_last)):
        wanted = F.max_pool2d(one.contiguous(), *options)
        torch.testing.assert_close(max_pool(one, *options), wanted, rtol=0, atol=0, equal_nan=True)


def test_where_a_gradient_is_asked_for_it_is_pytorchs():
    options = ((3, 3), (2, 2), (1, 1), (1, 1))
    gradients = []
    for pool in (max_pool, F.max_pool2d):
        values = torch.zeros(1, 1, 8, 8, requires_grad=True)  # ties, which one cell of each wins
        pool(values, *options).sum().backward()
        gradients.append(values.grad)
    assert gradients[0] is not None
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
