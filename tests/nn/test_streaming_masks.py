"""What a mask of tissue lets streaming leave out, and what that does to the choice of scheme."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from slidelens.nn.streaming import StreamingTrunk


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 5, 3, 2, 1)).eval()


def _blob_mask(cells: int, share: float) -> Tensor:
    """Tissue in the middle: a square of this share of the image."""
    side = round(cells * share**0.5)
    mask = torch.zeros(cells, cells, dtype=torch.bool)
    start = (cells - side) // 2
    mask[start : start + side, start : start + side] = True
    return mask


@pytest.mark.parametrize("scheme", ["seam", "halo"])
def test_the_plan_knows_what_a_mask_leaves_out(scheme: Literal["seam", "halo"]) -> None:
    trunk = StreamingTrunk(two_layers(), 16, scheme=scheme)
    mask = _blob_mask(10, 0.1)
    image = torch.randint(0, 255, (1, 3, 160, 160), dtype=torch.uint8)
    plan = trunk.plan(160, 160, mask=mask)
    trunk(image, mask)
    assert trunk.report is not None
    assert plan.computed == plan.tiles - trunk.report.reused < plan.tiles
    assert trunk.plan(160, 160).computed == plan.tiles


def test_the_scheme_follows_the_mask() -> None:
    """Independent tiles win where nearly all is background, and for nothing else."""
    trunk = StreamingTrunk(two_layers(), 32)
    image = torch.randint(0, 255, (1, 3, 512, 512), dtype=torch.uint8)
    for share, scheme in ((0.005, "halo"), (0.9, "seam")):
        mask = _blob_mask(64, share)
        plan = trunk.plan(512, 512, mask=mask)
        assert plan.scheme == scheme
        other = StreamingTrunk(two_layers(), 32, scheme="seam" if scheme == "halo" else "halo")
        assert plan.work(training=True) < other.plan(512, 512, mask=mask).work(training=True)
        y = trunk(image, mask)
        torch.testing.assert_close(y, other(image, mask), rtol=1e-4, atol=1e-5)
    # A tile that is smaller than the halo leaves no choice.
    assert (
        StreamingTrunk(two_layers(), 4).plan(512, 512, mask=_blob_mask(64, 0.005)).scheme == "seam"
    )


@pytest.mark.parametrize("scheme", ["seam", "halo"])
def test_background_among_the_kept_graphs(scheme: Literal["seam", "halo"]) -> None:
    """White tiles are neither computed nor kept twice, and gradients stay those of one graph."""
    module, grads = two_layers().double(), []
    image = torch.randint(0, 255, (1, 3, 160, 160), dtype=torch.uint8)
    for memory in (None, 10**9):
        trunk = StreamingTrunk(module, 16, scheme=scheme, memory=memory)
        module.zero_grad()
        output = trunk(image, _blob_mask(10, 0.3))
        output.square().sum().backward()
        assert trunk.report is not None
        assert trunk.report.reused > 0
        grads.append([output.detach(), *(p.grad.clone() for p in module.parameters())])
    for value, reference in zip(*grads, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_background_keeps_its_gradient_in_half_precision(dtype: torch.dtype) -> None:
    """Over a thousand tiles of one colour, a sum in half precision would long have stopped."""
    module = two_layers()
    trunk = StreamingTrunk(module, 16, scheme="halo")
    image = torch.full((1, 3, 800, 800), 255, dtype=torch.uint8)
    image[:, :, :20, :20] = 0
    found = {}
    for enabled in (False, True):
        module.zero_grad()
        with torch.autocast("cpu", dtype, enabled=enabled):
            trunk(image).float().mean((2, 3)).sum().backward()
        assert trunk.report is not None
        assert trunk.report.idle > 1000
        found[enabled] = [p.grad.clone() for p in module.parameters()]
    for half, full in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(half, full, rtol=0.03, atol=1e-3 * float(full.abs().max()))
