"""Receptive fields and plans against published and counted figures."""

from __future__ import annotations

import pytest
import torch
import torchvision.models as tv
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from slidelens.errors import StreamingError
from slidelens.nn.receptive import ReceptiveField, Window
from slidelens.nn.streaming import StreamingTrunk


def resnet34(parts: int, block: int | None = None) -> nn.Module:
    return beginning(tv.resnet34(), parts, block)


def beginning(net: tv.ResNet, parts: int, block: int | None = None) -> nn.Module:
    net.eval()
    layers = [net.layer1, net.layer2, net.layer3, net.layer4][:parts]
    if block is not None:
        layers[-1] = layers[-1][: block + 1]
    return nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, *layers)


# Lost cells at the start and end of a tile, and stride: those of the published engine.
@pytest.mark.parametrize(
    ("module", "lost", "stride"),
    [
        (resnet34(2), (12, 11), 8),
        (resnet34(3), (18, 17), 16),
        (resnet34(4, 0), (11, 10), 32),
        (resnet34(4), (15, 14), 32),
    ],
)
def test_resnet34_equals_the_published_engine(
    module: nn.Module, lost: tuple[int, int], stride: int
) -> None:
    for field in StreamingTrunk(module).graph.field:
        assert (field.lost, field.stride) == (lost, stride)


def test_published_sizes_of_fields() -> None:
    assert StreamingTrunk(resnet34(4, 0)).graph.field[0].size == 643
    net = tv.resnet18().eval()
    module = nn.Sequential(
        net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3
    )
    field = StreamingTrunk(module).graph.field[0]
    assert (field.size, field.halo) == (211, (112, 96))


@given(
    window=st.builds(
        Window,
        kernel=st.integers(1, 5),
        stride=st.integers(1, 4),
        dilation=st.integers(1, 3),
        before=st.integers(0, 4),
        after=st.integers(0, 4),
        mode=st.sampled_from(["constant", "reflect", "replicate", "circular"]),
    ),
    n=st.integers(1, 40),
    have=st.integers(0, 40),
)
def test_ready_outputs_are_those_whose_inputs_are_there(window: Window, n: int, have: int) -> None:
    have = min(have, n)
    assume(window.mode != "reflect" or max(window.before, window.after) < n)
    assume(window.mode != "circular" or max(window.before, window.after) <= n)
    total = window.size(n)
    assume(total > 0)

    def inputs(o: int) -> set[int]:
        places = [o * window.stride - window.before + window.dilation * j
                  for j in range(window.kernel)]  # fmt: skip
        if window.mode == "constant":
            return {i for i in places if 0 <= i < n}
        return {window.source(i, n) for i in places}

    ready = window.ready(have, n)
    assert 0 <= ready <= total
    assert window.ready(n, n) == total
    for o in range(ready):
        assert max(inputs(o), default=0) < have
    for first in range(0, total, 3):
        low, high = window.reads(first, total, n)
        touched = set().union(*(inputs(o) for o in range(first, total)))
        assert 0 <= low < high <= n
        assert all(low <= i < high for i in touched)


@given(
    kernel=st.integers(1, 5), stride=st.integers(1, 4), padding=st.integers(0, 2),
    ceil=st.booleans(), n=st.integers(1, 40),
)  # fmt: skip
def test_sizes_are_those_of_pytorch(
    kernel: int, stride: int, padding: int, ceil: bool, n: int
) -> None:
    assume(padding <= kernel // 2)
    window = Window(kernel, stride, 1, padding, padding, ceil=ceil)
    try:
        size = F.max_pool2d(torch.zeros(1, 1, n, 9), (kernel, 1), (stride, 1), (padding, 0),
                            ceil_mode=ceil).shape[2]  # fmt: skip
    except RuntimeError:
        size = 0
    assert max(window.size(n), 0) == size


def test_field_by_probing() -> None:
    module = nn.Sequential(nn.Conv2d(1, 1, 5, 2, 1), nn.MaxPool2d(3, 3), nn.Conv2d(1, 1, 3)).eval()
    field = StreamingTrunk(module.double()).graph.field[0]
    image = torch.rand(1, 1, 90, 90, dtype=torch.float64, requires_grad=True)
    smooth = nn.Sequential(module[0], nn.AvgPool2d(3, 3), module[2])
    smooth(image)[0, 0, 2, 2].backward()
    rows = image.grad[0, 0].abs().sum(1).nonzero().flatten()
    assert (int(rows[0]), int(rows[-1])) == (
        2 * field.stride + field.first, 2 * field.stride + field.last,
    )  # fmt: skip


def test_branches_of_different_strides_are_refused() -> None:
    with pytest.raises(ValueError, match="strides"):
        ReceptiveField.union([ReceptiveField(stride=2), ReceptiveField(stride=4)])


# Plans -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tile", "gigabytes"), [(512, 4.3), (1024, 2.1), (2048, 1.0)])
def test_seams_of_resnet34_on_a_slide(tile: int, gigabytes: float) -> None:
    plan = StreamingTrunk(resnet34(4, 0), tile).plan(16384, 16384)
    assert plan.output == (512, 512, 512)
    assert plan.bytes_kept / 1e9 == pytest.approx(gigabytes, abs=0.05)
    assert plan.overhead == 1


def test_multiply_adds_are_those_that_run() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    module = beginning(tv.resnet18(), 2)
    for scheme, tile in (("seam", 96), ("halo", 192)):
        trunk, image = StreamingTrunk(module, tile, scheme=scheme), torch.zeros(1, 3, 352, 352)
        image[0, 0] = torch.arange(352.0)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            trunk(image)
        run = counter.get_total_flops() / 2
        plan = trunk.plan(352, 352)
        assert run == pytest.approx(plan.multiply_adds, rel=0.05)
        if scheme == "seam":
            assert run <= 1.03 * plan.multiply_adds_whole
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(image)
        assert counter.get_total_flops() / 2 == plan.multiply_adds_whole


def test_automatic_tile_fits_the_memory_given() -> None:
    module = resnet34(3)
    sides = []
    for memory in (600_000_000, 900_000_000, 1_800_000_000):
        plan = StreamingTrunk(module, memory=memory).plan(4096, 4096)
        assert plan.bytes <= memory
        sides.append(plan.tile[0])
    assert sides == sorted(set(sides))
    assert StreamingTrunk(module, memory=10**12).plan(4096, 4096).scheme == "whole"
    with pytest.raises(StreamingError, match="no tile fits into 1,000 bytes"):
        StreamingTrunk(module, memory=1000).plan(4096, 4096)
    assert StreamingTrunk(module).plan(512, 512).bytes > 0


def test_tile_and_scheme_fit_the_memory_given() -> None:
    """Seams cost memory and no work, halos work and no memory."""
    module, gigabyte = resnet34(4, 0), 10**9
    ample = StreamingTrunk(module, memory=5 * gigabyte).plan(16384, 16384)
    scarce = StreamingTrunk(module, memory=3 * gigabyte).plan(16384, 16384)
    assert (ample.scheme, scarce.scheme) == ("seam", "halo")
    assert ample.overhead == 1 < scarce.overhead < 3
    assert scarce.bytes_kept == 0
    assert scarce.bytes <= 3 * gigabyte < 4 * gigabyte < ample.bytes <= 5 * gigabyte
    with pytest.raises(StreamingError, match="no tile fits into 3,000,000,000 bytes"):
        StreamingTrunk(module, memory=3 * gigabyte, scheme="seam").plan(16384, 16384)
    # A tile that is given stays; the scheme follows the memory.
    for memory, scheme in ((None, "seam"), (5 * gigabyte, "seam"), (2 * gigabyte, "halo")):
        plan = StreamingTrunk(module, 1024, memory=memory).plan(16384, 16384)
        assert (plan.scheme, plan.tile) == (scheme, (1024, 1024))
    with pytest.raises(StreamingError, match=r"tile of 1024 x 1024 px fits .*\(halo, tile 1024\)"):
        StreamingTrunk(module, 1024, memory=gigabyte).plan(16384, 16384)
    with pytest.raises(StreamingError, match=r"\(seam, tile 256\)"):  # smaller than the halo
        StreamingTrunk(module, 256, memory=gigabyte).plan(16384, 16384)


def test_memory_that_is_left_keeps_graphs() -> None:
    """What is kept need not be computed again."""
    from torch.utils.flop_counter import FlopCounterMode

    module, image = beginning(tv.resnet18(), 2), torch.randn(1, 3, 256, 256)
    least = StreamingTrunk(module, 64).plan(256, 256)
    assert (least.graphs, least.tiles) == (1, 16)
    work = {}
    for graphs in (1, 5, 16):
        memory = least.bytes + (graphs - 1) * least.bytes_graph
        trunk = StreamingTrunk(module, 64, memory=memory)
        plan = trunk.plan(256, 256)
        assert (plan.graphs, plan.bytes) == (graphs, memory)
        with FlopCounterMode(display=False) as counter:
            trunk(image).sum().backward()
        work[graphs] = counter.get_total_flops()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(image)
    tile = counter.get_total_flops() / 16
    # The later tiles do the more work: the first ones wait for what lies below and to the right.
    assert 4 <= (work[1] - work[5]) / tile <= 6
    assert 13 <= (work[1] - work[16]) / tile <= 15
    assert StreamingTrunk(module, 64, memory=10**12).plan(256, 256).graphs == 16
    small = StreamingTrunk(module, 64, memory=10**12).plan(256, 256, training=False)
    assert small.work(training=False) == plan.multiply_adds


def test_automatic_tiles_are_of_one_size() -> None:
    """The last ones have their graphs kept: they are not to be remnants."""
    for memory in (40_000_000, 60_000_000):
        plan = StreamingTrunk(resnet34(2).eval(), memory=memory).plan(800, 512)
        rows, columns = (n / count for n, count in zip(plan.image, plan.grid, strict=True))
        assert plan.tiles > 1
        assert 0 <= plan.tile[0] - rows < 16
        assert 0 <= plan.tile[1] - columns < 16


def test_seams_kept_are_the_bytes_planned() -> None:
    module = resnet34(2).eval()
    trunk = StreamingTrunk(module, (64, 96))
    tape = trunk.tape(trunk.source(torch.randn(1, 3, 200, 300)), record=True, input_grad=False)
    tape.forward(trunk.tensors())
    assert tape.seams.bytes == trunk.plan(200, 300).bytes_kept
