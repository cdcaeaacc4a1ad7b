"""Whole slides end to end: what is seen of a slide, the network, maps, training."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from zlib import crc32

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from slidelens.engine.loader import SlideView
from slidelens.engine.package import load_model
from slidelens.engine.predict import Prediction, predict
from slidelens.engine.train import train
from slidelens.errors import ModelError, SlideError, SlideLensError, StreamingError
from slidelens.families.base import Model, Patch
from slidelens.families.slide_image import SlideImage, frame_tissue
from slidelens.families.streaming import FAMILY, StreamingConfig, frame_of
from slidelens.families.streaming_train import StreamingStage, StreamingTask, StreamingTraining
from slidelens.families.training import Sample
from slidelens.geometry import Box
from slidelens.nn.pixels import normalize
from slidelens.nn.receptive import ReceptiveField
from slidelens.nn.slide_classifier import SlideClassifier, Streaming, parts, split
from slidelens.slide.array import from_array
from slidelens.tiling.tissue import TissueSettings
from train_cohort import make_cohort

FIELD = (ReceptiveField(-3, 3, 4), ReceptiveField(-3, 3, 4))
PADDED = (0, 0)
SMALL = {"backbone": "squeezenet1_1", "layers": "features.4", "tile": 64, "saliency_mpp": 4.0}
ALL = StreamingStage(epochs=1, lr=1e-3, head_lr=1e-3)


def tissue(height=160, width=208, seed=0, box=(24, 152, 40, 184)):
    """Textured pink tissue on white glass."""
    image = np.full((height, width, 3), 255, np.uint8)
    top, bottom, left, right = box
    texture = np.random.default_rng(seed).integers(-40, 40, (bottom - top, right - left, 3))
    image[top:bottom, left:right] = (np.array((200, 100, 160)) + texture).clip(0, 255)
    return image


def view_of(pixels, mpp=1.0, region=None, method="auto"):
    slide = from_array(pixels, mpp=mpp)
    settings = TissueSettings(method=method, mpp=4.0, closing=0.0)
    return SlideView(slide, tissue=settings, region=region, device=torch.device("cpu"))


def model_of(classes=2, seed=0, **config):
    torch.manual_seed(seed)
    settings = StreamingConfig(**{**SMALL, **config})
    module = FAMILY.build(settings, classes).eval()
    names = tuple("abcd"[:classes])
    return Model("m", "streaming", settings, names, module, device=torch.device("cpu"))


def events(model, view):
    with torch.inference_mode():
        return list(FAMILY.infer(model, view))


def whole_image(image, blocks):
    """Return an image as the network sees it at once: uint8, painted, ``(1, 3, H, W)``."""
    height, width, _ = image.shape
    side = height // blocks.shape[0]
    mask = blocks.repeat(side, 0).repeat(side, 1)[..., None]
    pixels = np.where(mask, image.read(Box(0, 0, width, height)), 255).astype(np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def averaged(cells, side):
    """Return the mean of each cell's neighbourhood, the slow way."""
    height, width = cells.shape[2:]
    r = side // 2
    rows = [
        torch.stack(
            [
                cells[:, :, max(i - r, 0) : i + r + 1, max(j - r, 0) : j + r + 1].mean((2, 3))
                for j in range(width)
            ],
            -1,
        )
        for i in range(height)
    ]
    return torch.stack(rows, -2)


# What is seen of a slide -----------------------------------------------------------------------


def test_a_frame_holds_the_tissue_and_nothing_else():
    frame = frame_tissue(view_of(tissue()), 1.0, FIELD, PADDED, 4096)
    assert (frame.height, frame.width) == (128, 144)
    # Cells begin where the tissue does; pixels so that a cell is centred on its field.
    assert frame.cells[2:] == (40, 24)
    assert frame.place[2:] == (42, 26)
    assert frame.mask.shape == (32, 36)
    assert frame.mask.all()


def test_cells_are_centred_on_what_they_see():
    """Those pixels that a cell depends on lie around the middle of its box."""
    model = model_of()
    frame = frame_of(model, view_of(tissue()))
    y, x = 10, 14
    level0 = frame.cells.apply((x + 0.5, y + 0.5))
    column, row = frame.place.invert(level0)
    for weight in model.module.parameters():
        weight.data.abs_()  # no path is closed by a ReLU
    seen = torch.zeros(frame.height, frame.width)
    for _ in range(8):  # max pooling lets only one of its inputs through
        pixels = torch.rand(1, 3, frame.height, frame.width, requires_grad=True)
        features = model.module.features.trunk(pixels)
        (grad,) = torch.autograd.grad(features[0, :, y, x].sum(), pixels)
        seen += grad[0].abs().sum(0)
    rows, columns = (np.flatnonzero(seen.sum(axis)) for axis in (1, 0))
    for seen, centre in ((rows, row), (columns, column)):
        assert abs((seen[0] + seen[-1] + 1) / 2 - centre) <= 0.5


def test_a_region_sees_the_same_pixels_as_the_whole_slide():
    pixels = tissue()
    whole = frame_tissue(view_of(pixels, mpp=0.7), 1.0, FIELD, PADDED, 4096)
    part = frame_tissue(
        view_of(pixels, mpp=0.7, region=Box(70, 50, 80, 60)), 1.0, FIELD, PADDED, 4096
    )
    shift = (np.subtract(part.place[2:], whole.place[2:]) / whole.place[:2]).round(9)
    assert (shift % 4 == 0).all()
    x, y = shift.astype(int)
    read = [SlideImage(view_of(pixels, mpp=0.7).read, f) for f in (whole, part)]
    piece = read[1].read(Box(0, 0, part.width, part.height))
    again = read[0].read(Box(x, y, part.width, part.height))
    np.testing.assert_array_equal(piece, again)
    assert part.mask.sum() < whole.mask.sum()


def test_pixels_from_memory_are_those_of_the_slide():
    view = view_of(tissue(), mpp=0.7)
    image = SlideImage(view.read, frame_tissue(view, 1.0, FIELD, PADDED, 4096))
    box = Box(13, 7, 41, 30)
    before = image.read(box)
    image.load()
    np.testing.assert_array_equal(image.read(box), before)


def test_tissue_larger_than_the_limit_is_cut_around_its_middle(caplog):
    view = view_of(tissue())
    frame = frame_tissue(view, 1.0, FIELD, PADDED, 100)
    assert (frame.height, frame.width) == (100, 100)
    centre = frame.cells.apply((12.5, 12.5))
    assert np.abs(centre - ((40 + 184) / 2, (24 + 152) / 2)).max() <= 4
    assert f"{view.slide.id}: the tissue is larger than 100 px" in caplog.text
    assert "give the model a larger size" in caplog.text


def test_a_slide_without_tissue_is_refused():
    with pytest.raises(SlideError, match="no tissue"):
        frame_tissue(view_of(np.full((64, 64, 3), 255, np.uint8)), 1.0, FIELD, PADDED, 4096)


# The network -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "pooling", "context"), [(2, "max", 1), (3, "max", 3), (2, "mean", 1)]
)
def test_streamed_in_part_equals_the_plain_network(classes, pooling, context):
    torch.manual_seed(0)
    net = SlideClassifier("resnet18", classes, layers="layer2", pooling=pooling, context=context)
    net = net.double()
    trunk, head = net.features.trunk, net.head
    image = torch.randn(1, 3, 75, 90, dtype=torch.float64, requires_grad=True)
    cells = averaged(trunk(image), context)
    plain = head(cells.amax((2, 3)) if pooling == "max" else cells.mean((2, 3)))
    weights = [p for p in net.parameters() if p.requires_grad]
    expected = torch.autograd.grad(plain[0, -1], [image, *weights])
    streamed = net(image, None, Streaming("layer1", tile=32))
    torch.testing.assert_close(streamed, plain, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(streamed[0, -1], [image, *weights])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_cut_network_has_torchvisions_names_and_batch_norm_stays_frozen():
    net = SlideClassifier("resnet18", 2, layers="layer1.0").train()
    assert {k.split(".")[2] for k in net.state_dict() if "trunk" in k} == {"conv1", "bn1", "layer1"}
    assert net.features.dim == net.head.in_features == 64
    assert net.head.training
    assert not net.features.trunk.bn1.training
    first, rest = split(net.features.trunk, "maxpool")
    assert [name for name, _ in parts(first)] == ["conv1", "bn1", "relu", "maxpool"]
    assert [name for name, _ in parts(rest)] == ["layer1.0", "layer1"]


def test_what_cannot_be_cut_or_streamed_is_named():
    with pytest.raises(ModelError, match=r"no layer 'layer9'.*layer2\.0"):
        SlideClassifier("resnet18", 2, layers="layer9")
    with pytest.raises(StreamingError, match="avgpool"):
        SlideClassifier("mobilenet_v3_small", 2)
    with pytest.raises(ModelError, match=r"backbone mobilenet_v3_small: .*avgpool.*resnet18"):
        model_of(backbone="mobilenet_v3_small", layers="")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"streamed": "layer4.0"}, "no layer 'layer4.0' to cut at"),
        ({"scheme": "halo", "tile": "16"}, "s0: a tile of 16 x 16 px.*smallest tile that works"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_slides_are_learnt_from(tmp_path, config, message):
    cohort = make_cohort(tmp_path / "cohort")
    fields = {"layers": "features.4", **config}
    with pytest.raises(SlideLensError, match=message):
        list(
            train(
                "streaming", cohort / "slides", cohort / "labels.csv", tmp_path / "m", epochs=1,
                backbone="squeezenet1_1", weights="none", device="cpu", overrides=fields,
            )
        )  # fmt: skip
    assert not list((tmp_path / "m").rglob("epoch-*"))


# Inference -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "context"), [(2, 1), (2, 5), (3, 1)])
def test_score_and_evidence_are_those_of_the_plain_network(classes, context):
    pixels = tissue()
    pixels[24:40, 40:64] = 255  # a corner of glass
    model, view = model_of(classes, context=context), view_of(pixels)
    *patches, score = events(model, view)
    frame = frame_of(model, view)
    image = whole_image(SlideImage(view.read, frame), frame.blocks)
    net = model.module
    with torch.inference_mode():
        cells = net.features.trunk(normalize(image, model.mean, model.std))
        cells = averaged(cells, context)
        logits = net.head(cells.amax((2, 3)))[0]
        alone = net.head(cells[0, :, 5, 9])
    if classes == 2:
        assert score.probabilities[1] == pytest.approx(float(logits.sigmoid()), abs=1e-6)
    else:
        assert score.probabilities == pytest.approx(logits.softmax(0).tolist(), abs=1e-6)
    drawn = [p for p in patches if len(p.boxes)]
    assert [p.map for p in drawn] == ["probability"]
    values = drawn[0].values[0]
    assert (np.isnan(values) == ~frame.mask[: values.shape[1], : values.shape[2]]).all()
    assert not frame.mask[0, 0]
    expected = alone.softmax(0) if classes == 3 else torch.cat((-alone, alone)).div(2).softmax(0)
    np.testing.assert_allclose(values[:, 5, 9], expected.numpy(), atol=1e-6)
    assert view.done == view.steps == len(patches) - 1


def test_maps_are_declared_as_they_are_drawn():
    plain = FAMILY.maps(StreamingConfig(**SMALL), ("no", "yes"))
    assert [(m.name, m.kind, m.channels, m.mpp) for m in plain] == [
        ("probability", "probability", ("no", "yes"), 4.0)
    ]
    config = StreamingConfig(**SMALL, saliency="smoothgrad", saliency_class="no", mpp=0.5)
    probability, saliency = FAMILY.maps(config, ("no", "yes"))
    assert probability.mpp == 2.0
    assert (saliency.kind, saliency.channels, saliency.mpp) == ("saliency", ("no",), 4.0)
    with pytest.raises(ModelError, match=r"saliency_class 'maybe'.*no, yes"):
        FAMILY.maps(config.model_copy(update={"saliency_class": "maybe"}), ("no", "yes"))


def saliency_map(kind, tile, side=4, **config):
    """Run through the engine and return the map's cells."""
    model = model_of(saliency=kind, saliency_samples=3, tile=tile, saliency_mpp=side, **config)
    with from_array(tissue(), mpp=1.0) as slide:
        result = predict(slide, model, precision="fp32", tissue=TissueSettings(mpp=4.0, closing=0))
    return result.maps["saliency"].read()[0]


@pytest.mark.parametrize("side", [1, 3, 8])
def test_saliency_has_no_seams(side):
    """Tiles of 40 px and one tile: the same map, also where a cell lies in two rows of tiles."""
    pieces, whole = saliency_map("smoothgrad", 40, side), saliency_map("smoothgrad", 512, side)
    np.testing.assert_array_equal(np.isnan(pieces), np.isnan(whole))
    known = ~np.isnan(whole)
    assert whole[known].max() > 0
    np.testing.assert_allclose(
        pieces[known], whole[known], rtol=1e-3, atol=1e-4 * whole[known].max()
    )


def test_rows_of_saliency_beyond_the_slide_are_left_out():
    """An image is whole cells: its last tile may hold little more than what is behind the slide."""
    model = model_of(layers="features.5", saliency="gradient", saliency_mpp=8.0)
    slide = from_array(tissue(130, 158, box=(0, 130, 0, 158)), mpp=1.0)
    view = SlideView(slide, tissue=TissueSettings(method="whole"))
    assert frame_of(model, view).height == 144
    result = predict(slide, model, precision="fp32", tissue=TissueSettings(method="whole"))
    assert np.isfinite(result.maps["saliency"].read()).all()


def test_the_plain_gradient_is_autograds():
    model = model_of(saliency="gradient", saliency_mpp=1.0)
    view = view_of(tissue())
    drawn = [p for p in events(model, view) if isinstance(p, Patch) and p.map == "saliency"]
    rows = np.concatenate([p.values[0, 0] for p in reversed(drawn) if len(p.boxes)])
    frame = frame_of(model, view)
    image = whole_image(SlideImage(view.read, frame), frame.blocks)
    image = normalize(image, model.mean, model.std).requires_grad_()
    logit = model.module.head(model.module.features.trunk(image).amax((2, 3)))
    (grad,) = torch.autograd.grad(logit[0, 0], image)
    expected = grad[0].abs().mean(0).numpy()
    known = ~np.isnan(rows)
    np.testing.assert_array_equal(known, frame.blocks.repeat(4, 0).repeat(4, 1))
    np.testing.assert_allclose(rows[known], expected[known], atol=1e-4 * expected.max())


def test_quantities_and_classes_differ():
    first = saliency_map("gradient-x-input", 64, saliency_class="a")
    last = saliency_map("gradient-x-input", 64)
    known = ~np.isnan(last)
    # Of two classes one's gradient is the other's opposite.
    np.testing.assert_allclose(first[known], -last[known], rtol=1e-4, atol=1e-9)
    squared = saliency_map("smoothgrad-squared", 64)
    assert (squared[known] >= 0).all()
    assert not np.allclose(squared[known], saliency_map("smoothgrad", 64)[known])


def test_progress_cancel_and_modes():
    model = model_of(saliency="smoothgrad", saliency_samples=4, tile=40)
    with from_array(tissue(), mpp=1.0) as slide:
        run = Prediction(slide, model)
        steps = []
        for step in run:
            assert not torch.is_inference_mode_enabled()
            assert torch.is_grad_enabled()
            if step.stage == "infer":
                steps.append((step.done, step.total))
        done, total = zip(*steps, strict=True)
        assert len(set(total)) == 1
        assert all(a <= b for a, b in pairwise(done))
        assert done[-1] == total[-1]
        again = Prediction(slide, model)
        while next(again).done < 3:
            pass
        again.close()
        assert again.result is None
    assert all(p.grad is None for p in model.module.parameters())


def test_background_is_painted_unless_kept():
    pixels = tissue()
    pixels[24:64, 40:80] = 255  # a corner of glass
    clean, dirty = view_of(pixels), pixels.copy()
    dirty[30:50, 46:66] = (60, 0, 60)
    scores = {}
    for how in ("white", "kept"):
        with from_array(dirty, mpp=1.0) as slide:
            view = SlideView(slide, tissue=clean.tissue)
            scores[how] = events(model_of(background=how), view)[-1].probabilities
    assert scores["white"] == events(model_of(), clean)[-1].probabilities
    assert scores["kept"] != scores["white"]


# Training --------------------------------------------------------------------------------------


class Data:
    """Slides in memory, as the engine would give them."""

    def __init__(self, labels, tune=(0, 1)):
        self.train = [Sample(f"s{i}", label) for i, label in enumerate(labels)]
        self.tune = [Sample(f"t{i}", label) for i, label in enumerate(tune)]
        samples = [*self.train, *self.tune]
        self.views = {s.slide_id: view_of(tissue(seed=i)) for i, s in enumerate(samples)}

    def view(self, slide_id):
        return self.views[slide_id]


def task_of(model, data, preset="default", **fields):
    config = StreamingTraining.model_validate(StreamingTraining.presets[preset] | fields)
    task = StreamingTask(model, model.module, data, config, seed=5)
    task.stage = ALL
    return task


def test_a_step_gives_the_gradient_of_the_augmented_slide():
    model, data = model_of(), Data([0, 1])
    task = task_of(model, data)
    works = list(task.epoch(0, ALL))
    assert sorted(w.slides[0] for w in works) == ["s0", "s1"]
    assert task.length(ALL) == len(works)
    losses = []
    outcome = task.step(works[0], 0, lambda loss: losses.append(loss))
    losses[0].backward()
    assert outcome.losses[0] == pytest.approx(losses[0].item())
    found = {n: p.grad.clone() for n, p in model.module.named_parameters()}
    assert all(g.abs().sum() > 0 for g in found.values())
    # The same, whole: the augmented image through the plain network.
    slide = works[0].slides[0]
    key = (task.seed, 0, crc32(slide.encode()), works[0].detail)
    frame = frame_of(model, data.view(slide))
    image, blocks = task.augment(SlideImage(data.view(slide).read, frame), frame.blocks, key, 4096)
    model.module.zero_grad()
    cells = model.module.features.trunk(
        normalize(whole_image(image, blocks), model.mean, model.std)
    )
    logit = model.module.head(cells.amax((2, 3)))[0, 0]
    label = torch.tensor(float(works[0].labels[0]))
    nn.functional.binary_cross_entropy_with_logits(logit, label).backward()
    for name, parameter in model.module.named_parameters():
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-3 * scale)


def test_epochs_differ_and_a_slide_drawn_twice_is_seen_in_two_ways():
    task = task_of(model_of(), Data([0, 1, 1, 1]))
    first = list(task.epoch(0, ALL))
    assert len(first) == 6
    assert sorted(w.labels[0] for w in first) == [0, 0, 0, 1, 1, 1]
    assert [w.slides for w in first] != [w.slides for w in task.epoch(1, ALL)]
    twice = [w for w in first if w.slides == ("s0",)]
    assert len({w.detail for w in twice}) == 3
    values = {task.step(w, 0, lambda loss: None).losses for w in twice}
    assert len(values) == 3


def test_the_head_warms_up_on_one_vector_per_slide():
    model, data = model_of(), Data([0, 1, 1])
    task = task_of(model, data, warm_steps=3, accumulate=2)
    stage = task.stage = replace_stage(trains="head")
    works = list(task.epoch(4, stage))
    assert len(works) == task.length(stage) == 3 + 3 * 2
    assert [w.phase for w in works] == ["scan"] * 3 + ["train"] * 6
    update = [slide for w in works[3:5] for slide in w.slides]
    assert sorted(update) == ["s0", "s0", "s1", "s2"]  # the rare class twice
    with torch.inference_mode():
        task.step(works[0], 4, lambda loss: None)
    slide = works[0].slides[0]
    frame = frame_of(model, data.view(slide))
    image, blocks = task.augment(
        SlideImage(data.view(slide).read, frame),
        frame.blocks,
        (task.seed, 4, crc32(slide.encode()), 0),
        4096,
    )
    cells = model.module.features.trunk(
        normalize(whole_image(image, blocks), model.mean, model.std)
    )
    kept = task._vectors[slide, 4].float()  # in half precision
    torch.testing.assert_close(kept, cells.amax((2, 3), True).detach(), rtol=1e-3, atol=1e-3)
    losses = []
    outcome = task.step(works[3], 4, losses.append)  # scans what was not scanned, as on resuming
    losses[0].backward()
    assert sum(outcome.losses) == pytest.approx(losses[0].item(), rel=1e-5)
    assert model.module.head.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.module.features.parameters())


def test_several_processes_warm_the_head_up_by_as_many_updates(monkeypatch):
    monkeypatch.setattr("slidelens.families.training.processes", lambda: 2)
    task = task_of(model_of(), Data([0, 1, 1]), warm_steps=3, accumulate=2)
    stage = task.stage = replace_stage(trains="head")
    works = [w for w in task.epoch(4, stage) if w.phase == "train"]
    assert len(works) == task.length(stage) - 3 == 3 * 2 * 2
    for first in (0, 4, 8):  # two rounds of two works make an update
        update = [slide for w in works[first : first + 4] for slide in w.slides]
        assert sorted(update) == ["s0", "s0", "s1", "s2"]


def test_a_soft_maximum_of_cells_is_the_slides_score():
    model = model_of(pooling="lse", sharpness=3.0)
    cells = torch.randn(2, model.module.head.in_features, 3, 5)
    scores = model.module.score(model.module.pooled(cells))
    each = model.module.evidence(cells).flatten(2)
    expected = (3 * each).exp().mean(2).log() / 3
    torch.testing.assert_close(scores, expected)
    sharp = model_of(pooling="lse", sharpness=100.0).module
    sharp.head.load_state_dict(model.module.head.state_dict())
    torch.testing.assert_close(sharp.score(cells), each.amax(2), atol=0.05, rtol=0)


def test_tuning_slides_are_seen_as_they_are():
    model, data = model_of(), Data([0, 1])
    task = task_of(model, data)
    work = next(task.evaluation())
    with torch.inference_mode():
        outcome = task.step(work, 0, lambda loss: None)
    score = events(model, data.view("t0"))[-1]
    assert outcome.probabilities[0] == pytest.approx(score.probabilities, abs=1e-6)


def test_stages_freeze_the_first_layers():
    task = task_of(model_of(), Data([0, 1]))
    everything = dict(task.model.module.named_parameters())

    def learning(stage):
        return {id(p) for _, group in task.groups(stage) for p in group}

    assert learning(ALL) == {id(p) for p in everything.values()}
    top = learning(replace_stage(freeze="features.3"))
    assert {n for n, p in everything.items() if id(p) in top} == {
        n for n in everything if "features.4." in n or n.startswith("head")
    }
    head = learning(replace_stage(trains="head"))
    assert {n for n, p in everything.items() if id(p) in head} == {"head.weight", "head.bias"}


def replace_stage(**fields):
    return ALL.model_copy(update=fields)


def test_the_paper_is_a_schedule_for_a_resnet():
    first, second = StreamingTraining.model_validate(StreamingTraining.presets["paper"]).stages
    assert (first.epochs, first.lr, first.freeze, second.lr) == (25, 2e-4, "layer3", 6e-5)
    assert second.start == "centre"
    model = model_of(backbone="resnet18", layers="")
    groups = task_of(model, Data([0, 1]), preset="paper").groups(first)
    layer4 = set(model.module.features.trunk.layer4.parameters())
    assert set(groups[1][1]) == layer4


def test_colours_of_the_training_slides_become_the_normalization():
    model, data = model_of(), Data([0, 1])
    task = task_of(model, data, normalization="training")
    for sample in (*data.train, *data.tune):
        task.check(sample.slide_id)
    task.step(next(task.evaluation()), 0, lambda loss: None)
    np.testing.assert_allclose(np.array(model.mean) * 255, (200, 100, 160), atol=3)
    np.testing.assert_allclose(np.array(model.std) * 255, (22, 23, 23), atol=2)
    kept = model_of()
    other = task_of(kept, data)
    other.check("s0")
    other.step(next(other.evaluation()), 0, lambda loss: None)
    assert kept.mean == Model.__dataclass_fields__["mean"].default
    assert replace(kept).mean == kept.mean


def test_a_context_without_a_middle_is_refused():
    with pytest.raises(ValueError, match="context 4 must be odd"):
        StreamingConfig(context=4)


def test_a_stopped_training_resumes_to_the_same_weights(tmp_path):
    cohort = make_cohort(tmp_path / "cohort")

    def steps(out, **options):
        fields = {"accumulate": "2", "precision": "fp32", "normalization": "training"}
        fields |= {"layers": "features.2", "tile": "32", "rotation": "free"}
        folders = (cohort / "slides", cohort / "labels.csv", tmp_path / out)
        return train(
            "streaming", *folders, backbone="squeezenet1_1", weights="none", epochs=2, seed=1,
            device="cpu", overrides=fields, **options,
        )  # fmt: skip

    def weights(out):
        return load_file(tmp_path / out / "weights.safetensors")

    list(steps("whole"))
    stopped = steps("stopped")
    while next(stopped).doing != "tune":  # in the middle of the first epoch
        pass
    stopped.close()
    list(steps("stopped", resume=True))
    assert weights("whole").keys() == weights("stopped").keys()
    for name, value in weights("whole").items():
        assert torch.equal(value, weights("stopped")[name]), name
    assert load_model(tmp_path / "whole").mean == load_model(tmp_path / "stopped").mean


def test_a_frame_at_the_slides_border_ends_there_and_has_three_cells():
    pixels = tissue(158, 207, box=(0, 158, 0, 207))
    frame = frame_tissue(view_of(pixels, method="whole"), 1.0, FIELD, PADDED, 4096)
    assert (frame.height, frame.width) == (160, 208)
    assert frame.cells[2:] == (0, 0)
    assert frame.mask.all()
    frame = frame_tissue(
        view_of(tissue(4, 7, box=(0, 4, 0, 7)), method="whole"), 1.0, FIELD, PADDED, 4096
    )
    assert (frame.height, frame.width) == (12, 12)
    assert frame.mask.tolist() == [[False] * 3, [True, True, False], [False] * 3]


@pytest.mark.parametrize("backbone", ["squeezenet1_1", "inception_v3", "resnet18"])
def test_all_of_the_tissue_is_in_the_map_of_a_network_without_padding(backbone):
    """Cells that such a network leaves out lie behind the tissue."""
    model = model_of(backbone=backbone, layers="", tile=512)
    height, width = 560, 720
    view = view_of(tissue(height, width, box=(60, height, 80, width - 30)), method="auto")
    drawn = [p for p in events(model, view)[:-1] if len(p.boxes)]
    x, y, w, h = drawn[0].boxes[0]
    stride = frame_of(model, view).cells.sx
    assert 60 - stride < y <= 60
    assert height <= y + h < height + stride
    assert 80 - stride < x <= 80
    assert width - 30 <= x + w < width - 30 + stride


@pytest.mark.parametrize("size", [(40, 60), (33, 500)])
def test_small_slides_have_room_for_a_network_without_padding(size):
    model = model_of(backbone="inception_v3", layers="Mixed_6a", tile=512)
    view = view_of(tissue(*size, box=(0, size[0], 0, size[1])), method="whole")
    *_, last = events(model, view)
    assert sum(last.probabilities) == pytest.approx(1)
