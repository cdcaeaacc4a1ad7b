"""Configuration and inference of every pooling; training on bags against plain autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from slidelens.engine import loader
from slidelens.engine.fields import validated
from slidelens.engine.loader import SlideView
from slidelens.errors import ModelError
from slidelens.families import mil
from slidelens.families.base import Bag, Model, Patch, SlideScore
from slidelens.families.mil import FAMILY, MilConfig, backbone_sha256, grid_spec
from slidelens.families.mil_heads import HEAD_FIELDS, POOLINGS
from slidelens.families.mil_schedule import MilTraining
from slidelens.families.mil_train import MilTask
from slidelens.families.training import Sample, Stage
from slidelens.nn.mil import class_probabilities, slide_loss
from slidelens.nn.pixels import normalize
from slidelens.slide.array import from_array
from slidelens.tiling.tissue import TissueSettings

TILE = 32
ALL = Stage(epochs=1, lr=1e-3, head_lr=1e-3)
HEAD = Stage(epochs=1, lr=1e-3, head_lr=1e-3, trains="head")
SMALL = {"embed": 8, "hidden": 6, "heads": 2, "landmarks": 5, "top": 2, "dropout": 0.0}


def _config(pooling, **fields) -> MilConfig:
    own = {k: SMALL[k] for k in HEAD_FIELDS[pooling]}
    common = {"tile": TILE, "backbone": "squeezenet1_1", "min_tissue": 0, "pooling": pooling}
    return MilConfig(**common | own | fields)


def _model(pooling, classes=2, **fields) -> Model[MilConfig]:
    torch.manual_seed(3)
    config = _config(pooling, **fields)
    module = FAMILY.build(config, classes).eval()
    return Model("m", "mil", config, tuple("abcd"[:classes]), module, device=torch.device("cpu"))


def _view(seed, tiles=3):
    values = np.random.default_rng(seed).integers(0, 256, (tiles, tiles, 3), np.uint8)
    slide = from_array(values.repeat(TILE, 0).repeat(TILE, 1), mpp=0.5)
    return SlideView(slide, tissue=TissueSettings(method="whole"), device=torch.device("cpu"))


def test_each_pooling_has_its_papers_sizes():
    for pooling, own in HEAD_FIELDS.items():
        dumped = MilConfig(pooling=pooling).model_dump()
        assert {k: dumped[k] for k in own} == dict(own)
        unused = {k for fields in HEAD_FIELDS.values() for k in fields} - set(own)
        assert all(dumped[k] is None for k in unused)
        assert MilConfig.model_validate(dumped).model_dump() == dumped
    assert MilConfig(pooling="clam-sb", embed=0, top=3).model_dump()["top"] == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 4}, "pooling top1 has no heads: it has no fields of its own"),
        ({"pooling": "abmil", "top": 4}, "has no top: its own fields are embed, hidden, dropout"),
        ({"pooling": "transmil", "embed": 100}, "embed 100 does not divide into 8 heads"),
        ({"pooling": "transmil", "embed": 0}, "needs embed"),
        ({"pooling": "median"}, "pooling"),
    ],
)
def test_fields_of_another_pooling_are_refused(fields, message):
    with pytest.raises(ModelError, match=message):
        validated(MilConfig, fields)


def test_fine_tuning_with_another_pooling_starts_from_its_own_sizes():
    base = MilConfig(pooling="abmil", embed=100, tile=64).model_dump()
    same = MilConfig.fine_tuned(base, {"pooling": "abmil", "hidden": 7})
    assert (same["embed"], same["hidden"], same["tile"]) == (100, 7, 64)
    other = MilConfig(**MilConfig.fine_tuned(base, {"pooling": "clam-sb"}))
    assert (other.embed, other.hidden, other.top, other.tile) == (512, 256, 8, 64)
    assert MilConfig(**MilConfig.fine_tuned(base, {"pooling": "mean"})).embed is None


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("classes", [2, 3])
def test_inference_draws_what_it_declares(pooling, classes):
    model = _model(pooling, classes, batch_size=4)
    specs = {spec.name: spec for spec in FAMILY.maps(model.config, model.classes)}
    view = _view(0)
    with torch.inference_mode():
        *events, score = FAMILY.infer(model, view)
        tiles = next(view.batches(view.grid(grid_spec(model.config)), 9))
        vectors = model.module(normalize(tiles.images, model.mean, model.std), vectors=True)
        output = model.module(bag=vectors)
        alone = class_probabilities(model.module.instances(vectors))
    patches = [event for event in events if isinstance(event, Patch)]
    drawn = {
        name: np.concatenate([p.values for p in patches if p.map == name])
        for name in dict.fromkeys(p.map for p in patches)
    }
    assert list(drawn) == list(specs)
    assert all(drawn[n].shape == (9, len(spec.channels)) for n, spec in specs.items())
    assert specs["probability"].instances
    np.testing.assert_allclose(drawn["probability"], alone.numpy(), atol=1e-5)
    if output.attention is not None:
        assert specs["attention"].kind == "attention"
        np.testing.assert_allclose(drawn["attention"], output.attention.T.numpy(), atol=1e-5)
    assert isinstance(score, SlideScore)
    expected = class_probabilities(output.logits[None])[0]
    assert score.probabilities == pytest.approx(expected.tolist(), abs=1e-5)
    bags = [event for event in events if isinstance(event, Bag)]
    np.testing.assert_allclose(
        np.concatenate([bag.vectors for bag in bags]), vectors.numpy(), rtol=2e-3, atol=1e-6
    )
    assert bags[0].facts["backbone_sha256"] == backbone_sha256(model.module)
    assert bags[0].facts["stain_normalization"] == "none"


def test_a_backbone_is_summed_once_until_its_weights_change(monkeypatch):
    summed = []
    monkeypatch.setattr(
        mil, "backbone_sha256", lambda network: summed.append(network) or backbone_sha256(network)
    )

    def fact(model):
        with torch.inference_mode():
            events = FAMILY.infer(model, _view(0))
            return next(e for e in events if isinstance(e, Bag)).facts["backbone_sha256"]

    model = _model("mean", keep_features=True)
    for _ in range(2):
        assert fact(model) == backbone_sha256(model.module)
    assert len(summed) == 1
    with torch.no_grad():
        next(model.module.features.parameters()).mul_(0.5)
    for _ in range(2):
        assert fact(model) == backbone_sha256(model.module)
    assert len(summed) == 2


def test_features_need_not_be_kept():
    with torch.inference_mode():
        events = list(FAMILY.infer(_model("mean", keep_features=False), _view(0)))
    assert not any(isinstance(event, Bag) for event in events)


def test_a_model_without_backbone_says_so():
    model = _model("abmil", bag_dim=20)
    assert model.module.features is None
    with pytest.raises(ModelError, match="feature vectors made elsewhere"):
        next(FAMILY.infer(model, _view(0)))


class Data:
    """Slides in memory; bags are encoded anew each time."""

    def __init__(self, labels, tune=()):
        self.train = [Sample(f"s{i}", label) for i, label in enumerate(labels)]
        self.tune = [Sample(f"t{i}", label) for i, label in enumerate(tune)]
        self.views = {s.slide_id: _view(i) for i, s in enumerate([*self.train, *self.tune])}
        self.encoded, self.weights = [], []

    def view(self, slide_id):
        return self.views[slide_id]

    def bag(self, slide_id, spec, encoder):
        view = self.views[slide_id]
        self.encoded.append((slide_id, encoder.facts["augmented"]))
        self.weights.append(encoder.facts["weights"])
        batches = list(view.batches(view.grid(spec), encoder.batch_size))
        vectors = torch.cat([encoder.encode(batch.images) for batch in batches])
        return Bag(np.concatenate([b.boxes for b in batches]), vectors.numpy())


def _suited(config, **given) -> MilTraining:
    preset = MilTraining.preset("default", config, given)
    return MilTraining.model_validate({**preset, **given}).suited(config)


def _task(model, data, **fields) -> MilTask:
    training = _suited(model.config, **{"train_batch": 2, **fields})
    return MilTask(model, model.module, data, training, seed=5)


def _gradients(module):
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("pooling", [p for p in POOLINGS if p not in ("top1", "topk")])
def test_end_to_end_gradients_are_those_of_the_whole_graph(pooling):
    """Encoding twice, in batches, gives what backpropagation through all tiles at once gives."""
    model = _model(pooling, 3, batch_size=4)
    task = _task(model, Data([0, 1, 2]), features="end-to-end", flips=False, stain=0, colour=0)
    task.stage = ALL
    model.module.train()
    work = next(iter(task.epoch(0, ALL)))
    outcome = task.step(work, 0, lambda loss: loss.backward())
    found = _gradients(model.module)
    model.module.zero_grad()
    expected = []
    for slide_id, label in zip(work.slides, work.labels, strict=True):
        view = task.data.view(slide_id)
        (tiles,) = view.batches(view.grid(grid_spec(model.config)), 9)
        images = normalize(tiles.images.float() / 255, model.mean, model.std)
        output = model.module(
            bag=model.module(images, vectors=True), label=torch.tensor(label), smoothing=0.0
        )
        output.loss.backward()
        expected.append(output.loss.item())
    assert outcome.losses == pytest.approx(expected, rel=1e-4)
    reference = _gradients(model.module)
    assert found.keys() == reference.keys()
    for name, gradient in reference.items():
        scale = float(gradient.abs().max()) + 1e-12
        torch.testing.assert_close(found[name] / scale, gradient / scale, atol=2e-3, rtol=0)


@pytest.mark.parametrize("suits", [2, 3, 100])
def test_a_device_that_takes_other_batches_gives_the_same_gradients(monkeypatch, suits):
    found = []
    for limit in (suits, 4):
        monkeypatch.setattr(loader, "suited_batch", lambda *_, most=limit: most)
        task = _task(_model("abmil", batch_size=4), Data([0, 1]), features="end-to-end")
        task.stage = ALL
        task.step(next(iter(task.epoch(0, ALL))), 0, lambda loss: loss.backward())
        found.append(_gradients(task.model.module))
    for name, gradient in found[1].items():
        scale = float(gradient.abs().max()) + 1e-12
        torch.testing.assert_close(found[0][name] / scale, gradient / scale, atol=2e-3, rtol=0)


def _learn_a_little(module):
    with torch.no_grad():
        for parameter in module.features.parameters():
            parameter.add_(0.01)


def test_a_head_stage_encodes_with_the_backbone_as_it_is():
    """Slides are checked before a checkpoint is restored, and a stage before may train all."""
    model, data = _model("abmil"), Data([0, 1], tune=[1])
    task = _task(model, data, features="end-to-end", stages=[HEAD, ALL, HEAD])
    task.check("s0")
    start = backbone_sha256(model.module)
    assert set(data.weights) == {start}
    _learn_a_little(model.module)  # what is restored
    task.load_state({})
    for stage in task.config.stages:
        task.stage, data.weights = stage, []
        for work in task.epoch(0, stage):
            task.step(work, 0, lambda loss: loss.backward())
        with torch.inference_mode():
            for work in task.evaluation():
                task.step(work, 0, lambda loss: None)
        now = backbone_sha256(model.module)
        assert set(data.weights) == (set() if stage == ALL else {now})
        if stage == ALL:
            _learn_a_little(model.module)
    assert now != start


def test_a_training_resumed_at_its_end_scores_with_the_restored_backbone():
    model, data = _model("abmil"), Data([0, 1], tune=[1])
    task = _task(model, data, features="end-to-end", stages=[HEAD])
    task.check("s0")
    _learn_a_little(model.module)
    task.load_state({})
    (tune,) = task.evaluation()
    task.step(tune, 0, lambda loss: None)
    assert data.weights[-1] == backbone_sha256(model.module)


def test_a_frozen_backbone_does_not_read_tuning_slides_again():
    model, data = _model("abmil"), Data([0, 1], tune=[1])
    task = _task(model, data, features="end-to-end", stages=[HEAD])
    (tune,) = task.evaluation()
    expected = task.step(tune, 0, lambda loss: None)
    assert data.encoded == [("t0", [])]
    with torch.inference_mode():
        *_, score = FAMILY.infer(model, data.view("t0"))
    assert score.probabilities == pytest.approx(expected.probabilities[0], abs=1e-4)


def test_only_tiles_with_a_gradient_are_encoded_again(monkeypatch):
    model = _model("rnn", top=2)
    task = _task(model, Data([0, 1]), features="end-to-end")
    task.stage = ALL
    seen = []
    forward = model.module.features.forward
    monkeypatch.setattr(
        model.module.features, "forward", lambda images: (seen.append(images), forward(images))[1]
    )
    task.step(next(iter(task.epoch(0, ALL))), 0, lambda loss: loss.backward())
    first, again = seen[:2]
    assert (len(first), len(again)) == (9, 2)
    assert all(any(torch.equal(tile, other) for other in first) for tile in again)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_cached_features_leave_the_backbone_alone(pooling):
    model, data = _model(pooling), Data([0, 1, 1], tune=[0])
    task = _task(model, data, features="cached")
    ((lr, parameters),) = task.groups(ALL)
    assert lr == ALL.head_lr
    assert {id(p) for p in parameters} == {id(p) for p in model.module.head.parameters()}
    for slide_id in ("s0", "s1", "s2", "t0"):
        task.check(slide_id)
    task.stage = ALL
    works = list(task.epoch(0, ALL))
    assert len(works) == task.length(ALL)
    assert sum(len(work.slides) for work in works) == 4  # the rare class is repeated
    for work in works:
        outcome = task.step(work, 0, lambda loss: loss.backward())
        assert len(outcome.losses) == len(work.slides)
    assert not any(n.startswith("features.") for n in _gradients(model.module))
    (tune,) = task.evaluation()
    (probabilities,) = task.step(tune, 0, lambda loss: loss.backward()).probabilities
    with torch.inference_mode():
        *_, score = FAMILY.infer(model, data.view("t0"))
    assert score.probabilities == pytest.approx(probabilities, abs=1e-4)
    assert task.state() == {}


def test_copies_are_augmented_and_drawn_anew_each_epoch():
    model, data = _model("abmil"), Data([0, 1], tune=[1])
    task = _task(model, data, copies=3, stain=0.3)
    for slide_id in ("s0", "s1", "t0"):
        task.check(slide_id)
    copies = [facts[0] if facts else 0 for _, facts in data.encoded]
    assert copies == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert data.encoded[1][1] == [1, True, 0.3, 0.05]
    data.encoded = []
    for epoch in range(20):
        for work in task.epoch(epoch, HEAD):
            task.step(work, epoch, lambda loss: None)
    drawn = [facts[0] if facts else 0 for slide, facts in data.encoded if slide == "s0"]
    assert set(drawn) == {0, 1, 2, 3}


@pytest.mark.parametrize("features", ["cached", "end-to-end"])
def test_a_rare_slide_is_seen_in_several_ways_within_an_epoch(features):
    """Drawn as often as the common class, it was seen the same way each time."""
    copies = 3 if features == "cached" else 0
    task = _task(_model("mean"), Data([0] * 12 + [1]), features=features, copies=copies)
    task.stage = ALL
    losses = []
    for work in task.epoch(0, ALL):
        found = task.step(work, 0, lambda loss: loss.backward()).losses
        losses += [x for s, x in zip(work.slides, found, strict=True) if s == "s12"]
    assert len(losses) == 12
    assert len(set(losses)) == (copies + 1 if copies else 12)


def test_presets_depend_on_what_learns():
    def training(given, pooling="top1", name="default"):
        config = MilConfig(pooling=pooling)
        preset = MilTraining.preset(name, config, given)
        return preset and MilTraining.model_validate({**preset, **given}).suited(config)

    assert training({}).features == training({}, "topk").features == "end-to-end"
    assert training({}).stages == MilTraining.presets["default"]["stages"]
    assert training({}, "abmil").features == "cached"
    (stage,) = training({}, "abmil").stages
    (linear,) = training({"features": "cached"}).stages
    assert stage.trains == linear.trains == "head"
    assert stage.head_lr < linear.head_lr
    assert training({"bags": "d"}).features == "cached"
    whole = training({"features": "end-to-end"}, "abmil")
    assert [s.trains for s in whole.stages] == ["head", "all"]
    assert training({}, "abmil", "paper") is None
    with pytest.raises(ValidationError, match="no tile to train end to end"):
        MilTraining(stages=(HEAD,), bags="d", features="end-to-end")
    with pytest.raises(ValidationError, match="cannot be augmented"):
        MilTraining(stages=(HEAD,), bags="d", copies=2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stain": 0.3, "flips": True}, r"flips, stain: cached .* \(--copies 4\)"),
        ({"colour": 0.1, "bags": "d"}, "bags cannot be augmented: leave colour out"),
    ],
)
def test_augmentation_of_vectors_that_are_made_once_is_refused(given, message):
    with pytest.raises(ModelError, match=message):
        _suited(MilConfig(pooling="abmil"), **given)


def test_a_training_states_the_augmentation_that_it_does():
    config = MilConfig(pooling="abmil")

    def stated(**given):
        made = _suited(config, **given)
        return made.flips, made.stain, made.colour

    none = (False, 0.0, 0.0)
    assert stated() == stated(flips=False, stain=0.0) == stated(bags="d") == none
    again = _suited(config).model_dump()  # as its file says
    assert stated(**again) == none
    assert stated(copies=1) == stated(features="end-to-end") == (True, 0.2, 0.05)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_model_inherits_backbone_and_a_head_of_its_kind(pooling):
    base, model = _model(pooling), _model(pooling)
    for p in base.module.parameters():
        torch.nn.init.normal_(p)
    MilTask.inherit(model, base)
    for mine, theirs in zip(model.module.parameters(), base.module.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    other = _model("mean" if pooling != "mean" else "abmil")
    fresh = {k: v.clone() for k, v in other.module.head.state_dict().items()}
    MilTask.inherit(other, base)
    assert backbone_sha256(other.module) == backbone_sha256(base.module)
    if pooling in ("top1", "topk", "max"):
        expected = base.module.head.state_dict()
    elif pooling == "mean":
        expected = fresh
    else:  # a linear head of its own starts at zero
        expected = {k: torch.zeros_like(v) for k, v in fresh.items()}
    assert all(torch.equal(v, expected[k]) for k, v in other.module.head.state_dict().items())
    with pytest.raises(RuntimeError, match="no backbone"):
        MilTask.inherit(model, _model(pooling, bag_dim=8))


def test_top_k_learns_from_the_mean_of_its_top_tiles():
    model = _model("topk", 3, top=4)
    for p in model.module.head.parameters():
        torch.nn.init.normal_(p)
    data = Data([0, 1, 2])
    task = _task(model, data, flips=False, stain=0, colour=0, train_batch=3)
    losses = []
    done = [(w, task.step(w, 0, losses.append)) for w in task.epoch(0, ALL)]
    (loss,) = losses
    (gradient,) = torch.autograd.grad(loss, model.module.head.weight)
    work, _ = done[-1]
    total = 0
    for slide_id, label in zip(work.slides, work.labels, strict=True):
        view = data.view(slide_id)
        (tiles,) = view.batches(view.grid(grid_spec(model.config)), 9)
        images = normalize(tiles.images.float() / 255, model.mean, model.std)
        pooled = model.module(images).topk(4, 0).values.mean(0)
        total = total + slide_loss(pooled[None], torch.tensor([label]))[0]
    (expected,) = torch.autograd.grad(total, model.module.head.weight)
    torch.testing.assert_close(loss, total, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(gradient, expected, rtol=1e-2, atol=1e-3)
