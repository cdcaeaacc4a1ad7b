"""Top-1 MIL on slides whose answer is known: inference, and the two phases of training."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from slidelens.engine.loader import SlideView
from slidelens.errors import SlideError
from slidelens.families.base import Model, Patch, SlideScore
from slidelens.families.mil import FAMILY, MilConfig
from slidelens.families.mil_schedule import MilTraining
from slidelens.families.mil_train import MilTask
from slidelens.families.training import Sample, Stage, balanced_order
from slidelens.nn.mil import BagOutput, slide_loss, soft_maximum
from slidelens.slide.array import from_array
from slidelens.tiling.tissue import TissueSettings

TILE = 32
HEAD = Stage(epochs=1, lr=1e-3, head_lr=1e-3, trains="head")
ALL = Stage(epochs=1, lr=1e-3, head_lr=1e-3)


class MeanColour(torch.nn.Module):
    """Logit k of a tile is its k-th (normalised) colour channel's mean."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, images=None, *, vectors=False, bag=None, label=None, smoothing=0.0):
        if bag is not None:
            return BagOutput(bag.amax(0))
        self.seen.append(images.detach().clone())
        return images.mean((2, 3))[:, : self.outputs] * self.scale

    def features(self, images):
        return self(images)

    def instances(self, vectors):
        return vectors

    def essence(self, vectors, logits):
        return vectors


def _slide(seed, tiles=3):
    values = np.random.default_rng(seed).integers(0, 256, (tiles, tiles, 3), np.uint8)
    return values.repeat(TILE, 0).repeat(TILE, 1)


def _view(pixels):
    slide = from_array(pixels, mpp=0.5)
    return SlideView(slide, tissue=TissueSettings(method="whole"), device=torch.device("cpu"))


def _model(classes=2, module=None, **config):
    config = {"keep_features": module is not None, **config}
    settings = MilConfig(tile=TILE, backbone="squeezenet1_1", min_tissue=0, **config)
    names = tuple("abcd"[:classes])
    network = module or MeanColour(1 if classes == 2 else classes)
    return Model("m", "mil", settings, names, network, device=torch.device("cpu"))


@pytest.mark.parametrize("classes", [2, 3])
def test_slide_score_is_that_of_the_top_tile(classes):
    pixels, model = _slide(0), _model(classes, batch_size=4)
    with torch.inference_mode():
        *events, score = FAMILY.infer(model, _view(pixels))
    patches = [event for event in events if isinstance(event, Patch)]
    assert all(patch.map == "probability" for patch in patches)
    assert isinstance(score, SlideScore)
    boxes = np.concatenate([p.boxes for p in patches])
    values = np.concatenate([p.values for p in patches])
    assert boxes.tolist() == [[32.0 * c, 32.0 * r, 32, 32] for r in range(3) for c in range(3)]
    assert values.shape == (9, classes)
    np.testing.assert_allclose(values.sum(1), 1, atol=1e-6)
    colours = pixels[::TILE, ::TILE].reshape(9, 3) / 255
    logits = (colours - model.mean) / model.std
    if classes == 2:
        expected = 1 / (1 + np.exp(-logits[:, 0]))
        np.testing.assert_allclose(values[:, 1], expected, atol=1e-5)
        assert score.probabilities[1] == pytest.approx(values[:, 1].max())
    else:
        best = np.exp(logits.max(0))
        np.testing.assert_allclose(score.probabilities, best / best.sum(), atol=1e-5)


def test_on_several_cores_tiles_keep_their_order():
    def events(threads):
        torch.set_num_threads(threads)
        model = _model(batch_size=2, keep_features=False)
        *patches, score = FAMILY.infer(model, _view(_slide(0, tiles=6)))
        return [(p.boxes.tolist(), p.values.tolist()) for p in patches], score

    before = torch.get_num_threads()
    try:
        with torch.inference_mode():
            assert events(3) == events(1)
    finally:
        torch.set_num_threads(before)


def test_map_is_declared_as_it_is_drawn():
    (spec,) = FAMILY.maps(MilConfig(tile=256, overlap=56, mpp=0.25), ("no", "yes"))
    assert (spec.name, spec.kind, spec.channels) == ("probability", "probability", ("no", "yes"))
    assert spec.mpp == 50
    assert spec.instances


def test_built_network_fits_infer():
    config = MilConfig(backbone="squeezenet1_1", tile=TILE, min_tissue=0)
    model = _model(module=FAMILY.build(config, 2).eval())
    with torch.inference_mode():
        *_, score = FAMILY.infer(model, _view(_slide(1)))
    assert sum(score.probabilities) == pytest.approx(1)


def test_a_slide_without_tissue_is_refused():
    white = from_array(np.full((96, 96, 3), 255, np.uint8), mpp=0.5)
    config = MilConfig(tile=TILE, backbone="squeezenet1_1", min_tissue=0.5)
    model = Model("m", "mil", config, ("a", "b"), MeanColour(1))
    with pytest.raises(SlideError, match=r"at 0\.5 µm/px holds 50% tissue; .*--set min_tissue="):
        next(FAMILY.infer(model, SlideView(white)))


class Data:
    """Slides in memory, as the engine would give them."""

    def __init__(self, labels, tune=()):
        self.train = [Sample(f"s{i}", label) for i, label in enumerate(labels)]
        self.tune = [Sample(f"t{i}", label) for i, label in enumerate(tune)]
        samples = [*self.train, *self.tune]
        self.views = {s.slide_id: _view(_slide(i)) for i, s in enumerate(samples)}

    def view(self, slide_id):
        return self.views[slide_id]


def _task(model, data, **fields):
    values = MilTraining.presets["default"] | {"train_batch": 4, **fields}
    return MilTask(model, model.module, data, MilTraining.model_validate(values), seed=5)


def _run(task, epoch, stage):
    """Do an epoch; return its works, outcomes and what was backpropagated."""
    losses = []
    done = [(w, task.step(w, epoch, losses.append)) for w in task.epoch(epoch, stage)]
    return done, losses


def test_both_phases_see_the_same_augmented_tiles():
    model, data = _model(), Data([0, 1, 1, 0])
    done, _ = _run(_task(model, data), 3, ALL)
    assert Counter(work.phase for work, _ in done) == {"scan": 4, "train": 1}
    *scans, learnt = model.module.seen
    found = dict(zip("0123", scans, strict=True))
    top = {k: v[v.mean((2, 3))[:, 0].argmax()] for k, v in found.items()}
    expected = torch.stack([top[slide_id[1]] for slide_id in done[-1][0].slides])
    assert torch.equal(learnt, expected)
    raw = next(data.view("s0").batches(data.view("s0").grid(_grid()), 9)).images
    assert not torch.allclose(learnt[0], raw[0].float())


def _grid():
    from slidelens.families.mil import grid_spec

    return grid_spec(_model().config)


def test_augmentation_changes_with_the_epoch_and_not_with_the_run():
    def seen(epoch):
        model = _model()
        _run(_task(model, Data([0, 1])), epoch, ALL)
        return model.module.seen

    assert all(torch.equal(a, b) for a, b in zip(seen(0), seen(0), strict=True))
    assert not torch.equal(seen(0)[0], seen(1)[0])


@pytest.mark.parametrize("classes", [2, 3])
def test_learning_from_the_top_tiles_is_learning_from_the_maximum(classes):
    """The gradient through each output's top tile is that of the maximum over all tiles."""
    labels = [0, 1, 1, 0] if classes == 2 else [0, 1, 2, 2]
    model, data = _model(classes), Data(labels)
    done, (loss,) = _run(_task(model, data, train_batch=8), 0, ALL)
    (gradient,) = torch.autograd.grad(loss, model.module.scale)
    scale = torch.ones((), requires_grad=True)
    work, outcome = done[-1]
    scans = dict(zip((s.slide_id for s in data.train), model.module.seen, strict=False))
    outputs = model.module.outputs
    logits = torch.stack([scans[s].mean((2, 3))[:, :outputs].amax(0) for s in work.slides]) * scale
    losses = slide_loss(logits, torch.tensor(work.labels))
    (expected,) = torch.autograd.grad(losses.sum(), scale)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(torch.tensor(outcome.losses), losses.detach())


def test_state_resumes_between_the_phases():
    model, data = _model(), Data([0, 1, 1, 0])
    task = _task(model, data)
    _, (loss,) = _run(task, 2, ALL)
    other = _task(model, data)
    other.load_state(task.state())
    *_, last = other.epoch(2, ALL)
    losses = []
    other.step(last, 2, losses.append)
    assert torch.equal(losses[0], loss)


def test_length_counts_the_works_of_each_stage():
    for labels in ([0, 1], [0, 1, 1, 1, 0, 1, 1]):
        task = _task(_model(), Data(labels), train_batch=3, warm_steps=5)
        for stage in (HEAD, ALL):
            assert task.length(stage) == len(list(task.epoch(0, stage)))


def test_warm_up_starts_alike_and_learns_the_head_alone():
    config = MilConfig(tile=TILE, backbone="squeezenet1_1", min_tissue=0)
    model = _model(module=FAMILY.build(config, 2))
    MilTask.initialize(model, "none")
    assert not model.module.head.weight.any()
    data = Data([0, 1, 1, 0])
    task = _task(model, data, warm_steps=3)
    ((lr, parameters),) = task.groups(HEAD)
    assert lr == HEAD.head_lr
    assert {id(p) for p in parameters} == {id(p) for p in model.module.head.parameters()}
    done, losses = _run(task, 0, HEAD)
    assert [work.detail for work, _ in done[4:]] == pytest.approx([1, 10**0.5, 10])
    gradients = torch.autograd.grad(losses[0], model.module.head.parameters())
    assert gradients[0].any()
    assert all(p.grad is None for p in model.module.features.parameters())


def test_warm_up_makes_as_many_updates_whatever_makes_one(monkeypatch):
    """Two steps accumulated in each of two processes left a quarter of them."""
    data = Data([0, 1, 1])
    alone, shared = (_task(_model(), data, warm_steps=3, accumulate=n) for n in (1, 2))
    updates = [work for work in alone.epoch(0, HEAD) if work.phase == "train"]
    monkeypatch.setattr("slidelens.families.training.processes", lambda: 2)
    works = [work for work in shared.epoch(0, HEAD) if work.phase == "train"]
    assert len(works) == shared.length(HEAD) - 3 == 3 * 2 * 2
    for number, update in enumerate(updates):
        parts = works[4 * number : 4 * number + 4]
        assert {part.detail for part in parts} == {update.detail}
        assert [s for part in parts for s in part.slides] == list(update.slides)


def test_warm_up_resumed_without_its_vectors_makes_the_same():
    config = MilConfig(tile=TILE, backbone="resnet18", min_tissue=0)
    torch.manual_seed(0)
    model = _model(module=FAMILY.build(config, 2).eval())
    data = Data([0, 1])
    task, resumed = (_task(model, data, warm_steps=2) for _ in range(2))
    done, losses = _run(task, 0, HEAD)
    model.module.train()
    again = []
    resumed.step(done[-1][0], 0, again.append)
    assert torch.equal(again[0], losses[-1])
    norms = [m for m in model.module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(m.training for m in norms)


def test_soft_maximum_goes_from_mean_to_maximum():
    logits = torch.randn(50, 2, dtype=torch.float64)
    torch.testing.assert_close(soft_maximum(logits, 1e-6), logits.mean(0), atol=1e-4, rtol=0)
    torch.testing.assert_close(soft_maximum(logits, 1e4), logits.amax(0), atol=1e-3, rtol=0)


def test_balanced_order_repeats_the_rare_and_leaves_out_none():
    samples = [Sample(f"s{i}", int(i < 3)) for i in range(20)]
    order = balanced_order(samples, seed=1, epoch=4)
    assert Counter(samples[i].label for i in order) == {0: 17, 1: 17}
    assert set(order) == set(range(20))
    repeats = Counter(int(i) for i in order if i < 3)
    assert max(repeats.values()) - min(repeats.values()) <= 1
    assert np.array_equal(order, balanced_order(samples, 1, 4))
    assert not np.array_equal(order, balanced_order(samples, 1, 5))


def test_take_gives_the_tiles_asked_for():
    grid = _view(_slide(0)).grid(_grid())
    some = grid.take([5, 2])
    assert some.boxes.tolist() == grid.boxes[[5, 2]].tolist()
    assert some.index.tolist() == [[2, 1], [2, 0]]
    assert len(some) == 2
