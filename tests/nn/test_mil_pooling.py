"""Every pooling: shapes, single tiles, order, gradients; and torchmil's networks as oracles."""

from __future__ import annotations

import pytest
import torch

from slidelens.families.mil_heads import HEAD_FIELDS, POOLINGS, attention_channels, build_network
from slidelens.nn.backbones import build_features
from slidelens.nn.mil import class_probabilities, slide_loss
from slidelens.nn.mil_pooling import AttentionPooling, ClamPooling, DualStreamPooling, margin_loss
from slidelens.nn.mil_transformer import NystromAttention, TransformerPooling
from slidelens.nn.orientation import orient

DIM = 12
SMALL = {"embed": 8, "hidden": 6, "heads": 2, "landmarks": 9, "top": 4}
ORDERED = {"transmil"}


def _network(pooling: str, classes: int = 2, **fields):
    torch.manual_seed(classes)
    own = HEAD_FIELDS[pooling]
    sizes = {k: SMALL.get(k, v) for k, v in own.items()} | fields
    return build_network(pooling, DIM, classes, sizes).double()


def _bag(tiles: int) -> torch.Tensor:
    return torch.randn(tiles, DIM, generator=torch.Generator().manual_seed(tiles)).double()


def _pool(network, vectors, **options):
    """Pool in double precision, which the network's own ``forward`` does not keep."""
    return network._pool(vectors, options.get("label"), options.get("smoothing", 0.0))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("tiles", [1, 2, 3, 40])
def test_shapes(pooling, classes, tiles):
    network, label = _network(pooling, classes).float().eval(), torch.tensor(1)
    vectors = _bag(tiles).half()
    output = network(bag=vectors, label=label, smoothing=0.1)
    assert class_probabilities(output.logits[None]).shape == (1, classes)
    assert class_probabilities(network.instances(vectors)).shape == (tiles, classes)
    assert output.loss.shape == ()
    assert output.loss.isfinite()
    assert network(bag=vectors).loss is None
    channels = attention_channels(pooling, "abc"[:classes])
    assert len(channels) == (0 if output.attention is None else len(output.attention))
    if output.attention is not None:
        assert output.attention.shape[1] == tiles
        assert output.attention.dtype == torch.float32
        total = output.attention.sum(1)
        torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("classes", [2, 3])
def test_a_tile_alone_is_a_bag_of_its_own(pooling, classes):
    network, vectors = _network(pooling, classes).eval(), _bag(7)
    alone = torch.stack([_pool(network, one[None]).logits for one in vectors])
    if pooling == "rnn":  # it has a tile classifier for that
        alone = network.head.tile(vectors)
    torch.testing.assert_close(network._instances(vectors), alone)


@pytest.mark.parametrize("pooling", [p for p in POOLINGS if p not in ORDERED])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_order_of_tiles_does_not_matter(pooling, classes):
    network, vectors = _network(pooling, classes).eval(), _bag(30)
    order = torch.randperm(30)
    label = torch.tensor(classes - 1)
    one, other = (_pool(network, v, label=label) for v in (vectors, vectors[order]))
    torch.testing.assert_close(one.logits, other.logits)
    torch.testing.assert_close(one.loss, other.loss)
    if one.attention is not None:
        torch.testing.assert_close(one.attention[:, order], other.attention)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("classes", [2, 3])
def test_gradients_reach_every_parameter(pooling, classes):
    network = _network(pooling, classes, **({"dropout": 0.0} if pooling == "abmil" else {}))
    for label in range(classes):
        _pool(network, _bag(30), label=torch.tensor(label), smoothing=0.1).loss.backward()
    unreached = [name for name, p in network.named_parameters() if not p.grad.any()]
    assert not unreached


@pytest.mark.parametrize("pooling", POOLINGS)
def test_autocast_leaves_the_pooling_in_single_precision(pooling):
    network, vectors = _network(pooling).float().eval(), _bag(20).bfloat16()
    plain = network(bag=vectors)
    with torch.autocast("cpu", torch.bfloat16):
        cast, alone = network(bag=vectors), network.instances(vectors)
    assert torch.equal(plain.logits, cast.logits)
    assert torch.equal(network.instances(vectors), alone)


@pytest.mark.parametrize(
    ("pooling", "rule"),
    [
        ("top1", lambda x, f: f(x).amax(0)),
        ("topk", lambda x, f: f(x).sort(0, descending=True).values[:4].mean(0)),
        ("mean", lambda x, f: f(x).mean(0)),
        ("max", lambda x, f: f(x.amax(0))),
    ],
)
@pytest.mark.parametrize("tiles", [2, 20])
def test_linear_poolings(pooling, rule, tiles):
    network, vectors = _network(pooling, 3), _bag(tiles)
    torch.testing.assert_close(_pool(network, vectors).logits, rule(vectors, network.head))


def test_margin_loss_is_zero_only_beyond_the_margin():
    logits, targets = torch.randn(50, 2).double(), torch.randint(0, 2, (50,))
    wrong = logits.gather(1, 1 - targets[:, None])[:, 0] - logits.gather(1, targets[:, None])[:, 0]
    expected = torch.log1p(torch.exp(1 + wrong)).mean()
    torch.testing.assert_close(margin_loss(logits, targets), expected)


def test_clam_clusters_the_ends_of_a_small_bag():
    """Fewer than twice ``top`` tiles: halves; a single tile: no cluster loss at all."""
    network = _network("clam-sb", top=8)
    head, label = network.head, torch.tensor(1)
    single = _pool(network, _bag(1), label=label)
    bag = slide_loss(single.logits[None], label[None])[0]
    torch.testing.assert_close(single.loss.float(), 0.7 * bag)
    vectors = _bag(5)
    head.eval()
    hidden = head.embed(vectors)
    order = head.attention(hidden)[0].argsort(descending=True)
    high, low = order[:2], order[-2:]
    truth = torch.tensor([1, 1, 0, 0])
    own = margin_loss(head.clusters[1](hidden[torch.cat((high, low))]), truth)
    other = margin_loss(head.clusters[0](hidden[high]), torch.zeros(2, dtype=torch.long))
    output = _pool(network, vectors, label=label)
    bag = slide_loss(output.logits[None], label[None])[0]
    expected = 0.7 * bag + 0.3 * (own + other) / 2
    torch.testing.assert_close(output.loss, expected)


def test_clam_with_tied_branches_is_one_branch():
    one = ClamPooling(DIM, 3, embed=8, hidden=6, dropout=0.0, multi=False, top=4).double()
    many = ClamPooling(DIM, 3, embed=8, hidden=6, dropout=0.0, multi=True, top=4).double()
    weights = one.state_dict()
    weights["attention.score.weight"] = weights["attention.score.weight"].repeat(3, 1)
    many.load_state_dict(weights)
    for label in range(3):
        a, b = (net(_bag(20), torch.tensor(label)) for net in (one, many))
        torch.testing.assert_close(a.logits, b.logits)
        torch.testing.assert_close(a.loss, b.loss)
        torch.testing.assert_close(a.attention.repeat(3, 1), b.attention)


class TestAgainstTorchmil:
    """The same weights in torchmil's networks give the same logits, attention and losses."""

    @staticmethod
    def attention_weights(pooling) -> dict[str, torch.Tensor]:
        content, gate = pooling.attention.content, pooling.attention.gate
        weights = {
            "pool.fc1.module.weight": content.weight,
            "pool.fc1.module.bias": content.bias,
            "pool.fc2.weight": pooling.attention.score.weight,
            "classifier.module.weight": pooling.classifier.weight,
            "classifier.module.bias": pooling.classifier.bias,
        }
        if gate is not None:
            weights |= {
                "pool.fc_gated.module.weight": gate.weight,
                "pool.fc_gated.module.bias": gate.bias,
            }
        return weights

    @pytest.mark.parametrize("gated", [False, True])
    def test_abmil(self, gated):
        from torchmil.models import ABMIL

        ours = AttentionPooling(DIM, 2, embed=8, hidden=6, gated=gated, dropout=0.0).double()
        theirs = ABMIL((8,), att_dim=6, gated=gated).double()
        theirs.load_state_dict(self.attention_weights(ours))
        vectors = _bag(25)
        logit, scores = theirs(ours.embed(vectors)[None], return_att=True)
        output = ours(vectors)
        torch.testing.assert_close(output.logits, logit)
        torch.testing.assert_close(output.attention, scores.softmax(1))

    def test_clam(self):
        """Not its cluster loss: torchmil 1.0.2 broadcasts n labels against n tiles to n x n."""
        from torchmil.models import CLAM_SB

        ours = ClamPooling(DIM, 2, embed=8, hidden=6, dropout=0.0, multi=False, top=8).double()
        theirs = CLAM_SB((8,), att_dim=6, gated=True, k_sample=8).double()
        theirs.load_state_dict(self.attention_weights(ours), strict=False)
        vectors = _bag(25)
        logit, scores = theirs(ours.embed(vectors)[None], return_att=True)
        output = ours(vectors)
        torch.testing.assert_close(output.logits, logit)
        torch.testing.assert_close(output.attention, scores.softmax(1))

    def test_dsmil(self):
        from torchmil.models import DSMIL

        ours = DualStreamPooling(DIM, 2, embed=0, hidden=6, dropout=0.0).double()
        theirs = DSMIL((DIM,), att_dim=6, nonlinear_q=True).double()
        names = {
            "q_nn": ours.query,
            "inst_classifier": ours.tile,
            "bag_classifier": ours.classifier,
        }
        theirs.load_state_dict(
            {f"{k}.{n}": p for k, module in names.items() for n, p in module.state_dict().items()}
        )
        vectors, truth = _bag(25), torch.tensor(1)
        logit, instances = theirs.predict(vectors[None], return_inst_pred=True)
        _, losses = theirs.compute_loss(truth[None], vectors[None])
        _, attention = theirs(vectors[None], return_att=True)
        output = ours(vectors, truth)
        torch.testing.assert_close(output.logits, logit)
        torch.testing.assert_close(output.attention, attention[..., 0])
        torch.testing.assert_close(ours.tile(vectors)[:, 0], instances[0])
        torch.testing.assert_close(2 * output.loss.float(), sum(losses.values()).float())

    def test_transmil(self):
        """50 tokens and 10 landmarks: no padding, the one case in which both do the same."""
        from torchmil.models import TransMIL

        torch.manual_seed(0)
        sizes = {"embed": 8, "heads": 2, "landmarks": 10, "dropout": 0.0}
        ours = TransformerPooling(DIM, 2, **sizes).double()
        theirs = TransMIL((8,), att_dim=8, n_heads=2, n_landmarks=10).double()
        weights = {"cls_token": ours.token[None, None], **_prefixed("norm", ours.norm)}
        weights |= _prefixed("classifier", ours.classifier)
        for name, conv in zip(("proj", "proj1", "proj2"), ours.position, strict=True):
            weights |= _prefixed(f"pos_layer.{name}", conv)
        for i, layer in enumerate(ours.layers):
            weights |= _prefixed(f"layers.{i}.norm1", layer.norm)
            weights[f"layers.{i}.att_module.qkv_nn.weight"] = layer.attention.qkv.weight
        unread = {k for k in theirs.state_dict() if "norm2" in k}  # of an MLP that is not there
        missing, unknown = theirs.load_state_dict(weights, strict=False)
        assert (set(missing), unknown) == (unread, [])
        vectors = _bag(49)
        logit, attention = theirs(ours.embed(vectors)[None], return_att=True)
        output = ours(vectors)
        torch.testing.assert_close(output.logits, logit)
        shares = attention / attention.sum(-1, keepdim=True)  # without that of the class token
        torch.testing.assert_close(output.attention, shares)


def _prefixed(prefix: str, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": value for name, value in module.state_dict().items()}


def test_nystrom_attention_nears_the_exact_one():
    torch.manual_seed(1)
    exact = NystromAttention(16, 2, landmarks=200).double()
    tokens = torch.randn(1, 200, 16).double() / 4
    expected, attention = exact(tokens)
    heads = [qkv.view(200, 2, 8).transpose(0, 1) for qkv in exact.qkv(tokens[0]).chunk(3, -1)]
    reference = torch.nn.functional.scaled_dot_product_attention(*heads)
    torch.testing.assert_close(expected[0], reference.transpose(0, 1).flatten(1))
    torch.testing.assert_close(attention.sum(1), torch.ones(1).double())
    errors = []
    for landmarks in (5, 50, 199):
        exact.landmarks = landmarks
        found, weights = exact(tokens)
        errors.append((found - expected).norm() / expected.norm())
        assert float(weights.detach().sum()) == pytest.approx(1, abs=0.1)
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.15


def test_heads_must_share_the_width():
    with pytest.raises(ValueError, match="width 10 does not divide into 4 heads"):
        NystromAttention(10, 4, landmarks=5)


@pytest.mark.parametrize("count", [4, 8])
def test_turned_tiles_have_the_same_averaged_vector(count):
    torch.manual_seed(0)
    network = build_network("abmil", build_features("squeezenet1_1"), 2, HEAD_FIELDS["abmil"])
    images = torch.randn(2, 3, 64, 64)
    plain = network(images, vectors=True)
    network.orientations = count
    averaged = network(images, vectors=True)
    assert not torch.allclose(plain, averaged, atol=1e-4)
    for number in range(count):
        turned = network(orient(images, number), vectors=True)
        torch.testing.assert_close(turned, averaged, atol=1e-5, rtol=1e-4)
