"""Streaming on a CUDA device: as exact as on the CPU, and the image never lies there whole."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.nn.streaming_oracle import (
    EXAMPLES,
    SIZES,
    TOLERANCE,
    errors,
    gradients,
    image_of,
    networks,
    settle,
)
from tests.nn.test_streaming_networks import NETWORKS, resnet
from torch import nn
from torchvision.models import resnet18

from slidelens.errors import StreamingError
from slidelens.nn.noise import PositionNoise
from slidelens.nn.pixels import IMAGENET_MEAN, IMAGENET_STD, normalize
from slidelens.nn.smoothgrad import smoothgrad
from slidelens.nn.streaming import StreamingTrunk
from slidelens.nn.windows import Rect

pytestmark = pytest.mark.gpu


@settings(EXAMPLES, max_examples=60)
@given(
    module=networks(),
    size=SIZES,
    cut=st.tuples(st.floats(0.1, 1.0), st.floats(0.1, 1.0)),
    scheme=st.sampled_from(["seam", "halo"]),
    nhwc=st.booleans(),
)
def test_any_network_any_size_any_tile(
    module: nn.Module, size: tuple[int, int], cut: tuple[float, float], scheme: str, nhwc: bool
) -> None:
    image = image_of(size, 1, nhwc=nhwc).cuda().requires_grad_()
    module.cuda()
    try:
        expected = gradients_on_gpu(module, module, image)
    except RuntimeError:
        assume(False)  # PyTorch itself refuses: too small for the network
    tile = tuple(max(2, round(n * share)) for n, share in zip(size, cut, strict=True))
    trunk = StreamingTrunk(module, tile, scheme=scheme)
    try:
        trunk.plan(*size)
    except StreamingError:
        assume(False)  # smaller than the halo
    found = errors(gradients_on_gpu(trunk, module, image), expected)
    assert max(found.values()) <= TOLERANCE, found


def gradients_on_gpu(call, module, image):
    """Run forward and backward; the gradient of the output is drawn on the CPU, as elsewhere."""

    def weigh(leaf):
        output = call(leaf)
        return OnCpu.apply(output)

    return gradients(weigh, module, image)


class OnCpu(torch.autograd.Function):
    """The identity from the GPU to the CPU."""

    @staticmethod
    def forward(ctx, value):
        ctx.device = value.device
        return value.cpu()

    @staticmethod
    def backward(ctx, grad):
        return grad.to(ctx.device)


@pytest.mark.parametrize("name", NETWORKS)
def test_well_known_networks_at_full_width(name: str) -> None:
    make, size, tile = NETWORKS[name]
    module = settle(make().eval()).cuda()
    image = torch.randn(1, 3, *size, dtype=torch.float64, device="cuda").requires_grad_()
    trunk = StreamingTrunk(module, tile)
    expected = gradients_on_gpu(module, module, image)
    found = errors(gradients_on_gpu(trunk, module, image), expected)
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_no_further_from_the_truth_than_unstreamed(dtype: torch.dtype) -> None:
    exact = settle(resnet(resnet18).eval())
    image = torch.randn(1, 3, 325, 261, dtype=torch.float64)
    reference = exact.cuda()(image.cuda())
    module = copy.deepcopy(exact).float()
    trunk = StreamingTrunk(module, 128)
    with torch.no_grad(), torch.autocast("cuda", dtype):
        whole = (module(image.float().cuda()).double() - reference).abs()
        streamed = (trunk(image.float().cuda()).double() - reference).abs()
    assert whole.mean() > 0
    assert streamed.mean() <= 2 * whole.mean()
    assert streamed.max() <= 2 * whole.max()


def test_an_image_on_the_cpu_never_lies_on_the_gpu_whole() -> None:
    module = resnet(resnet18).eval().cuda()
    image = torch.randint(0, 256, (1, 3, 4096, 4096), dtype=torch.uint8)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    trunk = StreamingTrunk(module, 512)
    trunk(image).amax((2, 3)).sum().backward()
    taken = torch.cuda.max_memory_allocated() - before
    whole = 4 * image.numel()  # the image in float32, nothing else
    assert taken < 4 * whole
    assert taken <= 1.5 * trunk.plan(4096, 4096).bytes
    with torch.no_grad():
        found = trunk(image[..., :1024, :1024])
        expected = module(normalize(image[..., :1024, :1024].cuda(), IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(found, expected, atol=0.02 * float(expected.abs().max()), rtol=0)


def test_auto_plans_with_the_memory_of_the_gpu() -> None:
    module = resnet(resnet18).eval().cuda()
    free, _ = torch.cuda.mem_get_info()
    plan = StreamingTrunk(module, "auto").plan(16384, 16384)
    assert plan.bytes <= free
    assert StreamingTrunk(module, "auto", memory=2 * 10**9).plan(16384, 16384).bytes <= 2 * 10**9


def test_glass_is_computed_once() -> None:
    module = resnet(resnet18)[:6].eval().cuda()
    image = torch.full((1, 3, 4096, 4096), 255, dtype=torch.uint8)
    image[..., 100:900, 200:1000] = torch.randint(0, 256, (3, 800, 800), dtype=torch.uint8)
    trunk = StreamingTrunk(module, 512)
    with torch.no_grad():
        found = trunk(image)
        expected = module(normalize(image.cuda(), IMAGENET_MEAN, IMAGENET_STD))
    assert trunk.report is not None
    assert trunk.report.skipped > 0.3
    torch.testing.assert_close(found, expected, atol=0.02 * float(expected.abs().max()), rtol=0)


class Head(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, 2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(features.amax((2, 3)))


def test_smoothgrad_is_that_of_the_cpu() -> None:
    trunk = settle(
        nn.Sequential(nn.Conv2d(3, 6, 5, 2, 2), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.SiLU())
    )
    head = settle(Head(8), 1)
    image = torch.randn(1, 3, 83, 101, dtype=torch.float64)
    expected = smoothgrad(StreamingTrunk(trunk, 32), head, image, 1, samples=3)
    on_gpu = smoothgrad(StreamingTrunk(trunk.cuda(), 32), head.cuda(), image, 1, samples=3)
    torch.testing.assert_close(on_gpu.cpu(), expected, atol=1e-10, rtol=1e-8)


def test_noise_is_the_same_on_the_gpu() -> None:
    rect, noise = Rect(5, 300, 70, 900), PositionNoise(0.1, 1, 4)
    on_cpu = noise(rect, torch.empty(1, 3, 0, 0))
    on_gpu = noise(rect, torch.empty(1, 3, 0, 0, device="cuda"))
    assert torch.equal(on_cpu, on_gpu.cpu())
