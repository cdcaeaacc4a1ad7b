"""A network in modules: where it is cut, what each learns from, and what never crosses."""

from __future__ import annotations

from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from slidelens.errors import ModelError
from slidelens.nn.backbones import build_features
from slidelens.nn.frozen import FrozenNorm, freeze_norms
from slidelens.nn.local import LocalNetwork
from slidelens.nn.local_cuts import balanced_cuts, blocks_of, cut_points, measure, module_shapes
from slidelens.nn.local_heads import AttentionHead, Reconstruction, patch_starts
from slidelens.nn.local_stream import fits_whole, read_slide
from slidelens.nn.pieces import whole_windows
from slidelens.nn.relay import Relay

NETWORKS = [("squeezenet1_1", 4), ("resnet18", 2)]


def network(backbone="squeezenet1_1", modules=4, classes=2, seed=0, **options):
    torch.manual_seed(seed)
    made = LocalNetwork(backbone, classes, modules, head_width=8, **options).double()
    for parameter in made.heads.parameters():  # random biases too, so that zeros hide nothing
        nn.init.normal_(parameter, std=0.3)
    return made


def image(height=96, width=128, seed=1):
    return torch.randn(1, 3, height, width, generator=torch.manual_seed(seed)).double()


def step(net, relay, backward=lambda loss: loss.backward()):
    losses = []
    for index in range(len(net.parts)):
        loss = net(relay, index)
        losses.append(loss.detach())
        backward(loss)
    return torch.stack(losses)


def with_gradients(module):
    return {n for n, p in module.named_parameters() if p.grad is not None and p.grad.any()}


# Where it is cut ----------------------------------------------------------------------------


def names_of_parts(net):
    names = {id(module): name for name, module in net.features.trunk.named_modules()}
    return [[names[id(layer)] for layer in part] for part in net.parts]


def test_resnet34_is_cut_as_in_the_paper():
    eight = names_of_parts(LocalNetwork("resnet34", 2, 8, patches=0, head_width=8))
    layers = {1: 3, 2: 4, 3: 6}
    expected = [[f"layer1.{i}"] for i in range(layers[1])]
    expected += [["layer2.0", "layer2.1"], ["layer2.2", "layer2.3"]]
    expected += [[f"layer3.{i}" for i in range(3)], [f"layer3.{i}" for i in range(3, 6)]]
    expected += [[f"layer4.{i}" for i in range(3)]]
    assert eight == expected
    four = names_of_parts(LocalNetwork("resnet34", 2, 4, patches=0, head_width=8))
    assert four == [eight[i] + eight[i + 1] for i in range(0, 8, 2)]


def test_shapes_and_patches_of_resnet34_are_the_papers():
    four, eight = (module_shapes("resnet34", k, 3) for k in (4, 8))
    assert [s.channels for s in four] == [64, 128, 256, 512]
    assert [s.stride for s in four] == [6, 12, 24, 48]
    assert [s.window for s in four] == [9, 9, 7, 5]
    assert [s.side for s in four[:-1]] == [128, 64, 32]
    assert [s.side for s in eight[:-1]] == [128, 128, 128, 64, 64, 32, 32]
    net = LocalNetwork("resnet34", 2, 8, stem_stride=3, head_width=8)
    assert [d.scale for d in net.decoders] == [1, 1, 1, 2, 1, 2, 1]
    assert net.stem[0].stride == (3, 3)
    sides = [d.side_on(1450 // d_stride, 1250 // d_stride) for d, d_stride in
             zip(net.decoders, (1, 1, 1, 2, 2, 4, 4), strict=True)]  # fmt: skip
    assert sides == [d.side for d in net.decoders]  # on the paper's smallest slide too


def test_windows_can_be_asked_to_be_larger():
    plain, larger = (module_shapes("squeezenet1_1", 4, 1, px) for px in (0, 112))
    assert [s.cell for s in plain] == [18, 36, 56, 40]
    assert [s.cell for s in larger] == [112, 112, 112, 112]
    odd = module_shapes("squeezenet1_1", 4, None, 50)
    assert [s.cell for s in odd] == [52, 72, 112, 80]  # whole cells; never smaller than without
    assert [s._replace(window=0) for s in plain] == [s._replace(window=0) for s in larger]


@pytest.mark.parametrize(("backbone", "modules"), NETWORKS)
def test_stem_and_modules_are_the_whole_trunk(backbone, modules):
    net = network(backbone, modules)
    x = image()
    with torch.no_grad():
        y = net.stem(x)
        for part, shape in zip(net.parts, net.shapes, strict=True):
            y = part(y)
            assert y.shape[1] == shape.channels
            assert abs(x.shape[2] / y.shape[2] - shape.stride) < shape.stride / 2
    torch.testing.assert_close(y, net.features.trunk(x), rtol=0, atol=0)
    owned = {id(p) for m in (net.stem, *net.parts) for p in m.parameters()}
    assert owned == {id(p) for p in net.features.parameters()}


def test_frozen_norms_compute_the_same_and_keep_nothing():
    torch.manual_seed(0)
    trunk = build_features("resnet18").trunk.eval().double()
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    x = image()
    with torch.no_grad():
        expected = trunk(x)
    keys = list(trunk.state_dict())
    freeze_norms(trunk)
    assert list(trunk.state_dict()) == keys
    assert not any(type(m) is nn.BatchNorm2d for m in trunk.modules())
    with torch.no_grad():
        torch.testing.assert_close(trunk(x), expected)
    kept = []
    value = torch.randn(1, 64, 8, 8, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (kept.append(t.numel()), t)[1], lambda t: t
    ):
        trunk.bn1(value).sum().backward()
    assert 0 < max(kept) <= 64
    scale = trunk.bn1.weight / (trunk.bn1.running_var + trunk.bn1.eps).sqrt()
    torch.testing.assert_close(value.grad, scale.view(1, -1, 1, 1).expand_as(value).detach())


@settings(max_examples=60)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(1, 9))
def test_balanced_cuts_have_the_smallest_largest_part(costs, parts):
    parts = min(parts, len(costs))
    lengths = balanced_cuts(costs, parts)
    assert len(lengths) == parts
    assert sum(lengths) == len(costs)
    assert min(lengths) > 0

    def sums(ends):
        return [sum(costs[a:b]) for a, b in zip((0, *ends), (*ends, len(costs)), strict=True)]

    ways = [sums(ends) for ends in combinations(range(1, len(costs)), parts - 1)]
    best = min((max(way), sum(s * s for s in way)) for way in ways)
    mine = sums([sum(lengths[:i]) for i in range(1, parts)])
    assert (max(mine), sum(s * s for s in mine)) == best


def test_automatic_cuts_are_balanced_by_what_is_kept():
    costs = [block.bytes for block in measure("resnet18").blocks]
    assert cut_points("resnet18", 4) == balanced_cuts(costs, 4) == [1, 1, 2, 4]


def test_more_modules_than_blocks_are_refused():
    with pytest.raises(ModelError, match="squeezenet1_1 has 8 blocks: it can be cut into 1 to 8"):
        LocalNetwork("squeezenet1_1", 2, 9)


def test_a_pooling_goes_with_the_block_before_it():
    trunk = build_features("squeezenet1_1").trunk
    stem, blocks = blocks_of(trunk)
    assert [type(m).__name__ for m in stem] == ["Conv2d", "ReLU", "MaxPool2d"]
    assert [len(b) for b in blocks] == [1, 2, 1, 2, 1, 1, 1, 1]


# What each learns from ----------------------------------------------------------------------


def test_one_module_is_plain_training():
    """K = 1: loss and gradients are those of the network as one, by autograd."""
    net = network("resnet18", 1, classes=3).eval()  # no dropout
    x, label = image(), torch.tensor([2])
    step(net, Relay(x, label))
    got = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    with torch.no_grad():
        y = net.stem(x)
    layers = [m for name, m in net.features.trunk.named_children() if name.startswith("layer")]
    head = net.heads[0]
    logits = head(nn.Sequential(*layers)(y))
    F.cross_entropy(logits, label).backward()
    expected = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("backbone", "modules"), NETWORKS)
def test_no_gradient_crosses_a_module(backbone, modules):
    net = network(backbone, modules)
    relay = Relay(image(), torch.tensor([1]))
    for index in range(modules):
        loss = net(relay, index)
        assert not relay.features.requires_grad
        loss.backward()
        own = {id(p) for group in net.own_parameters(index) for p in group}
        assert {id(p) for p in net.parameters() if p.grad is not None} == own
        net.zero_grad()


def test_a_module_learns_the_same_whatever_follows():
    """The gradients of the first module are those it has when it is alone in the world."""
    net = network(modules=3).eval()
    gradients = []
    for last in (1, 3):
        net.zero_grad()
        torch.manual_seed(0)
        relay = Relay(image(), torch.tensor([1]))
        for index in range(last):
            net(relay, index).backward()
        gradients.append([p.grad.clone() for group in net.own_parameters(0) for p in group])
    for alone, followed in zip(*gradients, strict=True):
        torch.testing.assert_close(alone, followed, rtol=0, atol=0)


@pytest.mark.parametrize(("backbone", "modules"), NETWORKS)
def test_every_parameter_that_learns_gets_a_gradient(backbone, modules):
    net = network(backbone, modules)
    for seed in range(2):  # a ReLU of a tiny head may be shut for one slide
        step(net, Relay(image(160, 272, seed), torch.tensor([seed % 2])))
    learning = {n for n, p in net.named_parameters() if p.requires_grad}
    assert learning - with_gradients(net) == set()
    frozen = [m for m in net.features.modules() if isinstance(m, FrozenNorm)]
    still = {id(p) for m in (net.stem, *frozen) for p in m.parameters()}
    assert still == {id(p) for p in net.parameters() if not p.requires_grad}


def test_a_modules_loss_is_its_classifiers_and_its_reconstructions():
    net = network(modules=2).eval()
    x, label = image(), torch.tensor([1])
    torch.manual_seed(3)
    loss = net(Relay(x, label, alpha=0.5), 0)
    with torch.no_grad():
        given_ = net.stem(x)
        made = net.parts[0](given_)
        torch.manual_seed(3)
        expected = F.cross_entropy(net.heads[0](made), label)
        expected += 0.5 * net.decoders[0](made, given_)
    torch.testing.assert_close(loss, expected)
    without = network(modules=2, patches=0).eval()
    assert len(without.decoders) == 0
    torch.testing.assert_close(
        without(Relay(x, label), 0), F.cross_entropy(without.heads[0](made), label)
    )


def test_the_backbone_stays_in_eval_mode_and_the_heads_do_not():
    net = network("efficientnet_b0", 2).train()
    assert not any(m.training for m in net.features.modules())
    assert net.heads.training
    assert not net.eval().heads.training


def test_a_step_streamed_is_a_step_whole():
    net = network(modules=3, patches=4).eval()
    results = []
    for tile in (0, 48):
        net.zero_grad()
        torch.manual_seed(1)
        losses = step(net, Relay(image(99, 118), torch.tensor([0]), tile=tile))
        results.append((losses, {n: p.grad for n, p in net.named_parameters() if p.requires_grad}))
    (whole, gradients), (streamed, others) = results
    torch.testing.assert_close(streamed, whole, rtol=1e-10, atol=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-8, atol=1e-10)


# Heads --------------------------------------------------------------------------------------


def head(window=3, classes=3, **options):
    torch.manual_seed(0)
    made = AttentionHead(4, classes, window=window, width=6, hidden=5, inner=7, **options)
    return made.double().eval()


def test_reading_is_consistent_with_the_logits():
    one, features = head(), torch.randn(2, 4, 7, 8).double()
    with torch.no_grad():
        reading = one.read(one.windows(features))
        torch.testing.assert_close(reading.logits, one(features))
    assert reading.attention.shape == (2, 3, 3)
    torch.testing.assert_close(reading.attention.sum((1, 2)), torch.ones(2).double())
    assert reading.instances.shape == (2, 3, 3, 3)


@pytest.mark.parametrize("additive", [False, True])
def test_heads_keep_their_digits_under_autocast(additive):
    one, features = head(mean=True, additive=additive).float(), torch.randn(1, 4, 9, 9)
    windows = one.windows(features)
    with torch.no_grad():
        exact = one.read(windows)
        with torch.autocast("cpu", torch.bfloat16):
            reading, logits = one.read(windows), one.score(windows.flatten(2))
    for got, wanted in zip((logits, *reading), (exact.logits, *exact), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-7)


def test_an_instance_is_a_slide_of_one_cell():
    """Where all attention is on one cell, the slide's logits are that cell's."""
    one, features = head(), torch.randn(1, 4, 6, 6).double()
    with torch.no_grad():
        nn.init.zeros_(one.norm.weight)
        nn.init.ones_(one.norm.bias)  # all cells alike
        reading = one.read(one.windows(features))
    for cell in reading.instances.flatten(2).unbind(2):
        torch.testing.assert_close(cell, reading.logits)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 2), (7, 3), (9, 10)])
def test_a_head_sees_the_last_row_and_column(height, width):
    one = head()
    nn.init.ones_(one.norm.bias)  # no cell behind a shut ReLU
    features = torch.randn(1, 4, height, width).double().requires_grad_()
    one(features)[0, 0].backward()
    assert features.grad.abs().sum(1).min() > 0


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize(("height", "width"), [(1, 7), (6, 9), (7, 9), (6, 10), (8, 11)])
def test_windows_are_those_of_the_padded_map(height, width, mean):
    one, features = head(mean=mean), torch.randn(2, 4, height, width).double()
    with torch.no_grad():
        whole = whole_windows(features, 3)
        expected = F.avg_pool2d(whole, 3) if mean else one.embed(whole)
        torch.testing.assert_close(one.windows(features), expected)


def test_a_mean_is_normalised_by_itself():
    """Brightness and contrast of a window's features change nothing of what is made of it."""
    one, features = head(mean=True), torch.randn(1, 4, 6, 6).double()
    with torch.no_grad():
        one.norm.eps = 0.0
        before = one.read(one.windows(features)).instances
        features[:, :, :3, :3] = 3 * features[:, :, :3, :3] + 2
        torch.testing.assert_close(one.read(one.windows(features)).instances, before)


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("mean", [False, True])
def test_glass_takes_no_part(mean, additive):
    one = head(mean=mean, additive=additive)
    features, tissue = torch.randn(2, 4, 7, 9).double(), torch.tensor([0, 2, 4, 7])
    with torch.no_grad():
        reading = one.read(one.windows(features), tissue)
        torch.testing.assert_close(reading.logits, one(features, tissue))
        other = features.clone()
        other[:, :, :3, 3:6] = 9  # window 1
        other[:, :, 3:6, 6:] = -5  # window 5
        torch.testing.assert_close(one(other, tissue), reading.logits)
        other[:, :, 6:, 3:6] = torch.randn(2, 4, 1, 3)  # window 7, past the map
        assert not torch.allclose(one(other, tissue), reading.logits)
    glass = [1, 3, 5, 6, 8]
    assert not reading.attention.flatten(1)[:, glass].any()
    torch.testing.assert_close(reading.attention.sum((1, 2)), torch.ones(2).double())
    assert reading.instances.flatten(2)[:, :, glass].isnan().all()
    assert reading.instances.flatten(2)[:, :, tissue].isfinite().all()


def test_additive_logits_are_those_of_the_cells_weighed_by_attention():
    one, features = head(mean=True, additive=True), torch.randn(2, 4, 6, 9).double()
    with torch.no_grad():
        reading = one.read(one.windows(features))
    weighed = (reading.instances * reading.attention[:, None]).sum((2, 3))
    torch.testing.assert_close(reading.logits, weighed)


def test_windows_of_tissue_are_those_that_touch_it():
    tissue = torch.zeros(6, 8, dtype=torch.bool)  # cells of 16 px
    tissue[1, 3] = tissue[5, 7] = True
    relay = Relay(torch.zeros(1, 3, 96, 128), tissue=tissue)
    found = relay.windows_of_tissue((0, 0), 20, (5, 7))
    assert found.tolist() == [2, 3, 9, 10, 4 * 7 + 5, 4 * 7 + 6]
    # Shifted by 4 px the first row of windows ends where the cell begins.
    assert relay.windows_of_tissue((4, 0), 12, (2, 6)).tolist() == [10, 11]
    assert relay.windows_of_tissue((0, 0), 16, (1, 8)) is None  # the map ends before the tissue
    assert Relay(torch.zeros(1, 3, 96, 128)).windows_of_tissue((0, 0), 20, (5, 7)) is None


@pytest.mark.parametrize("tile", [0, 48])
def test_what_lies_outside_of_the_tissue_changes_no_reading(tile):
    net = network(modules=2, patches=0, least_window=16).eval()
    tissue = torch.zeros(12, 60, dtype=torch.bool)
    tissue[:5, :6] = True
    x = image(96, 480)
    other = x.clone()
    other[..., 400:] = 3  # farther than any cell of a window with tissue sees
    whole, dirty = (net(Relay(v, tissue=tissue, tile=tile)) for v in (x, other))
    for one, two in zip(whole, dirty, strict=True):
        torch.testing.assert_close(one.logits, two.logits)
        assert 0 < int((one.attention > 0).sum()) < one.attention.numel()
    assert not torch.allclose(net(Relay(x))[-1].logits, net(Relay(other))[-1].logits)


def test_whole_windows_leave_a_map_that_fits_alone():
    features = torch.randn(1, 2, 6, 9)
    assert whole_windows(features, 3) is features
    grown = whole_windows(features[:, :, :4], 3)
    assert grown.shape == (1, 2, 6, 9)
    torch.testing.assert_close(grown[:, :, 4:], features[:, :, 3:4].expand(-1, -1, 2, -1))


# Reconstruction -----------------------------------------------------------------------------


@settings(max_examples=300)
@given(
    made=st.integers(1, 200), scale=st.sampled_from([1, 2, 4]), off=st.integers(-3, 3),
    side=st.integers(1, 128),
)  # fmt: skip
def test_patches_reach_every_cell_of_both_maps(made, scale, off, side):
    given_ = max(made * scale + off, 1)
    places = patch_starts(made, given_, side, scale)
    assert places.side <= max(made // 2, 1)
    assert len(places.made) == len(places.given)
    for starts, length, cells in (
        (places.made, places.side, made), (places.given, places.given_side, given_),
    ):  # fmt: skip
        assert length > 0
        assert {c for s in starts for c in range(s, s + length)} == set(range(cells))


def test_patches_lie_over_each_other():
    places = patch_starts(100, 200, 32, 2)
    assert (places.side, places.given_side) == (32, 64)
    assert list(places.given) == [2 * s for s in places.made] == list(range(0, 138, 2))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (5, 5), (40, 9)])
def test_small_maps_have_a_loss_and_a_gradient(height, width):
    torch.manual_seed(0)
    one = Reconstruction(4, 3, scale=2, side=128)
    made = torch.randn(1, 4, height, width, requires_grad=True)
    loss = one(made, torch.randn(1, 3, 2 * height - 1, 2 * width))
    assert loss > 0
    loss.backward()
    assert made.grad.any()
    assert all(p.grad.any() for p in one.decode[3].parameters())


def test_the_last_row_and_column_are_drawn():
    torch.manual_seed(0)
    one = Reconstruction(2, 2, scale=1, side=4)
    reached = torch.zeros(10, 12)
    for _ in range(60):
        made = torch.randn(1, 2, 10, 12, requires_grad=True)
        one(made, torch.randn(1, 2, 10, 12)).backward()
        reached += made.grad[0].abs().sum(0)
    assert reached.min() > 0


def test_a_patch_is_bounded_by_share_and_half_but_stays_useful():
    one = Reconstruction(2, 2, scale=1, side=128, patches=10, share=0.1)
    assert one.side_on(1450, 1250) == 128
    assert one.side_on(280, 280) == 28
    assert one.side_on(20, 20) == 8
    assert patch_starts(12, 12, one.side_on(12, 12), 1).side == 6


def test_a_decoder_can_learn_what_is_there():
    """A map from which the input can be told has a loss that falls; noise has not."""
    torch.manual_seed(0)
    source = torch.randn(1, 3, 24, 24)

    def learn(made):
        torch.manual_seed(1)
        one = Reconstruction(3, 3, scale=1, side=8)
        optimizer = torch.optim.Adam(one.parameters(), 1e-2)
        losses = []
        for _ in range(80):
            loss = one(made, source)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return sum(losses[-10:]) / 10

    assert learn(source) < 0.6 * learn(torch.randn(1, 3, 24, 24))


# Reading slides -----------------------------------------------------------------------------


@pytest.mark.parametrize(("backbone", "modules"), [*NETWORKS, ("squeezenet1_1", 1)])
@pytest.mark.parametrize("size", [(131, 117), (40, 200)])
@pytest.mark.parametrize("threads", [1, 2])
def test_streamed_is_whole(backbone, modules, size, threads, request):
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(threads)
    net = network(backbone, modules, classes=3).eval()
    x = image(*size)
    whole = net(Relay(x))
    streamed = net(Relay(x, tile=64))
    for one, other in zip(whole, streamed, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert not whole[0].logits.requires_grad


def test_streaming_tells_how_it_goes():
    net = network(modules=2).eval()
    shares = list(read_slide(net, Relay(image(400, 64), tile=64)))
    assert shares == sorted(shares)
    assert len(shares) > 3
    assert shares[-1] == 1


def test_a_painted_slide_of_bytes_streams_the_same():
    net = network(modules=2).eval()
    pixels = torch.randint(0, 256, (1, 3, 160, 192), dtype=torch.uint8)
    mask = torch.zeros(10, 12, dtype=torch.bool)
    mask[2:6, 3:9] = True
    whole, streamed = (net(Relay(pixels, mask=mask, tile=t))[-1].logits for t in (0, 48))
    torch.testing.assert_close(whole, streamed, rtol=1e-10, atol=1e-10)
    plain = net(Relay(pixels))[-1].logits
    assert not torch.allclose(plain, whole)


def test_a_network_that_sees_the_whole_slide_is_read_whole():
    net = network("mobilenet_v3_small", 2).eval()
    assert not net.streams
    whole, asked = (net(Relay(image(), tile=t))[-1].logits for t in (0, 32))
    torch.testing.assert_close(whole, asked, rtol=0, atol=0)
    loss = net(Relay(image(), torch.tensor([0]), tile=32), 0)
    assert loss.isfinite()


def test_what_whole_maps_take_is_told_before():
    """A slide fits if the estimate says so: it lies near what tensors really hold."""
    net, image = network(modules=2).float().eval(), Stripes(448, 384)
    relay = Relay(image, tile=64)
    needed = next(n for n in range(10**5, 10**8, 10**5) if fits_whole(net, relay, n))
    seen = []
    with _Sizes(seen):
        net(Relay(image))
    assert 2 * max(seen) * 4 < needed < 8 * max(seen) * 4
    # Four billion values in a map: 8 GB in bfloat16, but kernels count them in 32 bits.
    assert not fits_whole(net, Relay(Stripes(130_000, 130_000), tile=64), 10**15)


class Stripes:
    """A slide that is never whole."""

    def __init__(self, height, width):
        self.shape = (height, width, 3)

    def read(self, box):
        rows = np.arange(box.y, box.y + box.h) % 256
        return np.broadcast_to(rows[:, None, None], (int(box.h), int(box.w), 3)).astype(np.uint8)


def test_rows_are_dropped_when_passed(request):
    """No more than some rows of any map are held, however tall the slide."""
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(1)  # sizes are noted in one thread
    net = network(modules=2).eval()
    largest = []
    for height in (384, 768):
        seen = []
        with _Sizes(seen):
            net(Relay(Stripes(height, 64), tile=64))
        largest.append(max(seen))
    assert largest[1] == largest[0]


class _Sizes(TorchDispatchMode):
    """Notes the size of every map that an operation makes."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else [out]:
            if isinstance(one, torch.Tensor) and one.dim() == 4:
                self.seen.append(one.numel())
        return out
