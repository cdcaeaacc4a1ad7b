"""The magnifying network in a world that is a formula: any window of it at any size."""

from __future__ import annotations

import pytest
import torch

from slidelens.nn.backbones import build_features, freeze_norm_statistics
from slidelens.nn.judge import Judge, SmallFeatures, WindowClassifier, most_suspicious
from slidelens.nn.magnet import MagNet
from slidelens.nn.pixels import IMAGENET_MEAN, IMAGENET_STD, normalize
from slidelens.nn.sampling import window_grid
from slidelens.nn.zoom import FeatureAttention, early_part

BLOB = (0.45, -0.3)


def world(windows: torch.Tensor, size: int, margin: int = 0) -> torch.Tensor:
    """A bright blob on black; its position is known to no one but this function."""
    grown = windows.reshape(-1, 3).clone()
    side = size + 2 * margin
    grown[:, 0] *= side / size
    grid = window_grid(grown, side)
    away = (grid - torch.tensor(BLOB)).square().sum(-1)
    picture = torch.exp(-away / (2 * 0.25**2))
    return picture[:, None].expand(-1, 3, -1, -1).view(*windows.shape[:2], 3, side, side)


def overview(batch: int = 1, size: int = 24) -> torch.Tensor:
    return world(torch.tensor([1.0, 0, 0]).expand(batch, 1, 3), size)[:, 0]


def network(**options) -> MagNet:
    torch.manual_seed(3)
    given = {"patches": (2, 2), "glance": 24, "look": 20, "width": 8, "frozen": False} | options
    features = SmallFeatures(8)
    judge = Judge(features, features.dim, 1, 12, (8,))
    part = SmallFeatures(8)
    made = MagNet(judge, {1: WindowClassifier(part, part.dim, 1)}, **given)
    for layer in made.attention:
        for attention in layer.values():
            last = attention.third if options.get("sees") != "features" else attention.weigh
            torch.nn.init.normal_(last.weight, std=0.3)
    return made


def test_counts_and_shapes():
    made = network(patches=(2, 3))
    seen = made(overview(4), world)
    assert seen.logits.shape == seen.alone.shape == (4, 6, 1)
    assert [w.shape for w in seen.windows] == [(4, 2, 3), (4, 6, 3)]
    assert [s.shape for s in seen.scores] == [(4, 2, 24, 24), (4, 6, 24, 24)]
    for attention in seen.attention:
        torch.testing.assert_close(attention.sum((2, 3)), torch.ones(attention.shape[:2]))
    assert set(seen.auxiliary) == {1}
    assert seen.auxiliary[1].shape == (4, 1)
    assert seen.probed.shape == (4, 0, 1)


@pytest.mark.parametrize(("shared", "count"), [(False, 2 + 4), (True, 1 + 1)])
def test_attention_is_independent_for_each_patch_and_parent(shared, count):
    assert sum(len(layer) for layer in network(shared=shared).attention) == count


@pytest.mark.parametrize("sees", ["colours", "features"])
def test_under_autocast_places_keep_their_digits(sees):
    """Sparsemax sums over a whole map, which bfloat16 cannot."""
    made = network(sees=sees, glance=48, gain=(0.3,)).eval()
    with torch.inference_mode():
        full = made(overview(2, 48), world)
        with torch.autocast("cpu", torch.bfloat16):
            half = made(overview(2, 48), world)
    for attention, windows in zip(half.attention, half.windows, strict=True):
        assert attention.dtype == windows.dtype == torch.float32
        torch.testing.assert_close(attention.sum((2, 3)), torch.ones(attention.shape[:2]))
    torch.testing.assert_close(half.windows[0], full.windows[0], atol=0.02, rtol=0)


def test_windows_are_centred_in_their_parents_and_no_larger():
    seen = network().eval()(overview(), world)
    first, second = seen.windows
    for number in range(4):
        parent, child = first[0, number // 2], second[0, number]
        assert child[0] <= parent[0]
        assert ((child[1:] - parent[1:]).abs() <= parent[0]).all()


def test_looks_at_the_windows_it_says_and_at_nothing_else():
    asked = []

    def look(windows, size, margin):
        asked.append((windows, size, margin))
        return world(windows, size, margin)

    with torch.no_grad():
        seen = network(look=20).eval()(overview(2), look)
    assert [size for _, size, _ in asked] == [24, 20]
    assert all(torch.equal(w, s) for (w, _, _), s in zip(asked, seen.windows, strict=True))
    network().train()(overview(2), look)
    assert [margin for _, _, margin in asked] == [0, 0, 3, 3]
    assert not any(w.requires_grad for w, _, _ in asked)


def test_training_sees_what_inference_sees():
    made = network()
    trained = made.train()(overview(2), world)
    with torch.no_grad():
        inferred = made.eval()(overview(2), world)
    torch.testing.assert_close(trained.logits, inferred.logits, atol=2e-3, rtol=0)
    torch.testing.assert_close(trained.windows[-1], inferred.windows[-1], atol=2e-3, rtol=0)
    assert inferred.auxiliary == {}


def test_what_is_seen_at_the_end_moves_every_layer_s_windows():
    """Asked for bright pictures, both layers learn to find the blob they were never told of."""
    made = network(patches=(1, 1), gain=(0.05,))
    for layer in made.attention:
        for attention in layer.values():
            torch.nn.init.zeros_(attention.third.weight)
    optimizer = torch.optim.Adam(made.attention.parameters(), 3e-3)
    kept = {}
    made.judge.features.register_forward_pre_hook(lambda _, images: kept.update(last=images[0]))
    brightness = []
    for _ in range(15):
        seen = made(overview(), world)
        assert seen.windows[1].requires_grad
        brightness.append(kept["last"].mean())
        optimizer.zero_grad()
        (-brightness[-1]).backward()
        optimizer.step()
    scale, x, y = seen.windows[1][0, 0].tolist()
    assert brightness[0] < 0.15
    assert brightness[-1] > 0.9
    assert (x, y) == pytest.approx(BLOB, abs=0.1)
    assert scale < 0.2


def test_the_frozen_patch_is_its_parent():
    made = network(frozen=True)
    assert set(made.attention[1]) == {"0_1", "1_1"}
    seen = made(overview(), world)
    torch.testing.assert_close(seen.windows[1][:, 0], seen.windows[0][:, 0])
    torch.testing.assert_close(seen.windows[1][:, 2], seen.windows[0][:, 1])
    assert not seen.scores[1][:, [0, 2]].any()
    assert [made.is_frozen(layer, patch) for layer, patch in ((0, 0), (1, 0), (1, 1))] == [
        False,
        True,
        False,
    ]


class _Peaks(torch.nn.Module):
    """Attention to two places, the first a little more."""

    def forward(self, images):
        scores = torch.zeros(images.shape[0], *images.shape[2:])
        scores[:, 5, 5], scores[:, 5, 18] = 50.0, 48.0
        return scores


def test_inhibition_sends_the_next_patch_elsewhere():
    made = network(patches=(2,), inhibition=50.0, gain=(1.0,)).eval()
    made.attention[0].update({"0_0": _Peaks(), "0_1": _Peaks()})
    one, other = made(overview(), world).windows[0][0].tolist()
    assert one == pytest.approx([0.05, -13 / 24, -13 / 24])
    assert other == pytest.approx([0.05, 13 / 24, -13 / 24])
    made.inhibition = 0.0
    one, other = made(overview(), world).windows[0][0].tolist()
    assert one == other


def test_no_window_is_finer_than_the_slide():
    seen = network(gain=(100.0,)).eval()(overview(2), world, finest=torch.tensor([0.3, 0.0]))
    assert (seen.windows[-1][0, :, 0] >= 0.3 - 1e-6).all()
    assert (seen.windows[-1][1, :, 0] < 0.3).any()


def test_a_verdict_depends_on_no_later_window():
    judge = network().judge.eval()
    images = torch.rand(2, 5, 3, 20, 20)
    whole, alone = judge(images)
    torch.testing.assert_close(judge(images[:, :3])[0], whole[:, :3])
    torch.testing.assert_close(judge.alone(judge.features(images[:, 4])), alone[:, 4])


def test_probes_are_judged_alone():
    made = network().eval()
    probes = torch.tensor([[[0.2, 0.1, 0.1], [0.3, -0.4, 0.2], [0.1, *BLOB]]])
    seen = made(overview(), world, probes=probes)
    features = made.judge.features(world(probes, made.look)[0])
    torch.testing.assert_close(seen.probed[0], made.judge.alone(features))


def test_attention_keeps_to_what_the_grey_filter_left():
    made = network(patches=(1,), tissue=True, gain=(0.05,)).eval()
    for attention in made.attention[0].values():
        torch.nn.init.zeros_(attention.third.weight)
    pictures = torch.zeros(2, 3, 24, 24, dtype=torch.uint8)
    pictures[0, :, 2:8, 12:18] = 100
    seen = made(normalize(pictures, IMAGENET_MEAN, IMAGENET_STD), world)
    assert seen.attention[0][0, 0, 2:8, 12:18].sum().item() == pytest.approx(1)
    scale, x, y = seen.windows[0][0, 0].tolist()
    assert (x, y) == pytest.approx((0.25, -14 / 24))
    assert scale < 0.4
    assert seen.windows[0][1, 0].tolist() == pytest.approx([1, 0, 0], abs=2e-3)  # black all over


def test_blind_judges_the_probes_alone():
    made = network().train()
    probes = torch.tensor([[[0.2, 0.1, 0.1], [0.1, *BLOB]]])
    seen = made(overview(), world, probes=probes, until="probes")
    assert seen.windows == ()
    assert seen.logits.shape == (1, 0, 1)
    torch.testing.assert_close(
        seen.probed[0], made.judge.alone(made.judge.features(world(probes, made.look)[0]))
    )


def test_features_are_standard_over_the_windows_that_were_shown():
    torch.manual_seed(0)
    features = SmallFeatures(8)
    judge = Judge(features, features.dim, 1, 12, (8,)).eval()
    vectors = features(torch.rand(40, 3, 20, 20)).detach()
    assert torch.equal(judge.standard(vectors), vectors)
    judge.standardize(vectors)
    made = judge.standard(vectors)
    torch.testing.assert_close(made.mean(0), torch.zeros(features.dim), atol=1e-4, rtol=0)
    spread = vectors.std(0)
    torch.testing.assert_close(made.std(0), spread / (spread + 1e-3))
    again = Judge(SmallFeatures(8), features.dim, 1, 12, (8,)).eval()
    again.load_state_dict(judge.state_dict())
    assert torch.equal(again.standard(vectors), made)


def test_left_out_features_are_left_out_in_training_only():
    judge = Judge(SmallFeatures(8), 32, 1, 12, (8,), dropout=0.5)
    vectors = torch.rand(40, 32) + 1
    assert torch.equal(judge.eval().standard(vectors), vectors)
    torch.manual_seed(0)
    part = judge.train().standard(vectors)
    gone = part == 0
    assert 0.4 < gone.float().mean() < 0.6
    torch.testing.assert_close(part[~gone], 2 * vectors[~gone])


def test_what_is_known_is_judged_like_a_probe():
    made = network().eval()
    probes = torch.tensor([[[0.2, 0.1, 0.0], [0.3, -0.2, 0.4]]])
    known = made.judge.features(world(probes, 20)[0])[None]
    for until in ("probes", "windows", "verdict"):
        fresh = made(overview(), world, probes=probes, until=until).probed
        recalled = made(overview(), world, known=known, until=until).probed
        both = made(overview(), world, probes=probes, known=known, until=until).probed
        torch.testing.assert_close(fresh, recalled)
        torch.testing.assert_close(both, torch.cat((fresh, recalled), 1))


def test_the_verdict_begins_as_the_most_suspicious_window_so_far():
    torch.manual_seed(0)
    features = SmallFeatures(8)
    judge = Judge(features, features.dim, 2, 12, (8,), evidence=True).eval()
    verdicts, alone = judge(torch.rand(3, 5, 3, 20, 20))
    torch.testing.assert_close(verdicts[:, 0], alone[:, 0])
    for count in range(1, 6):
        now = (4 * alone[:, :count]).exp().mean(1).log() / 4
        torch.testing.assert_close(verdicts[:, count - 1], now)
    torch.testing.assert_close(most_suspicious(alone), verdicts)


def test_attention_gathers_by_layer():
    made = network(patches=(1, 1), gain=(0.001, 50.0)).eval()
    first, second = made(overview(2), world).attention
    assert (first > 0).all()
    assert ((second > 0).sum((-1, -2)) < 100).all()


def test_attention_reads_features_of_the_judges_own_network():
    made = network(sees="features", glance=32, gain=(0.02,))
    names = [name for name in made.state_dict() if "attention" in name]
    assert not [name for name in names if "trunk" in name]
    seen = made(overview(2, 32), world)
    assert [s.shape for s in seen.scores] == [(2, 2, 32, 32), (2, 4, 32, 32)]
    seen.logits.sum().backward()
    assert all(net.weigh.weight.grad.any() for layer in made.attention for net in layer.values())
    before = seen.scores[0].detach()
    with torch.no_grad():
        next(made.judge.features.parameters()).mul_(2)
    assert not torch.equal(made(overview(2, 32), world).scores[0], before)


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18", "googlenet"])
def test_the_early_part_of_a_network_has_a_stride_of_eight(name):
    trunk = build_features(name).trunk.eval()
    modules, dim = early_part(trunk)
    picture = torch.rand(1, 3, 128, 128)
    for module in modules:
        picture = module(picture)
    assert picture.shape[1] == dim
    assert 12 <= picture.shape[-1] <= 16
    assert {id(m) for m in modules} <= {id(m) for m in trunk.modules()}


def test_the_rim_of_a_map_of_features_stands_for_nothing():
    net = FeatureAttention(4).eval()
    torch.nn.init.normal_(net.weigh.weight)
    features = torch.rand(1, 4, 6, 6)
    other = features.clone()
    other[..., 0] = 9.0
    other[..., -1, :] = -9.0
    assert torch.equal(net(features, 24), net(other, 24))
    other[..., 2, 3] = 9.0
    assert not torch.equal(net(features, 24), net(other, 24))


def test_attention_standardizes_features_while_training_keeps_norms_frozen():
    net = FeatureAttention(4).train()
    freeze_norm_statistics(net)
    torch.nn.init.normal_(net.weigh.weight)
    torch.manual_seed(0)
    features = 100 + 7 * torch.randn(6, 4, 12, 12)
    for _ in range(60):
        net(features, 24)
    torch.testing.assert_close(net.mean, features.mean((0, 2, 3)), rtol=0.01, atol=0)
    torch.testing.assert_close(net.variance, features.var((0, 2, 3)), rtol=0.01, atol=0)
