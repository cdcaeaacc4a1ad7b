"""Locally supervised learning on slides: what is drawn where, how it is trained and resumed."""

from __future__ import annotations

import threading
from zlib import crc32

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from slidelens.engine.loader import SlideView
from slidelens.engine.package import load_model
from slidelens.engine.predict import Prediction, predict
from slidelens.engine.train import train
from slidelens.engine.training.plan import plan_training
from slidelens.errors import ModelError, SlideError
from slidelens.families.base import Model, Patch
from slidelens.families.local import FAMILY, LocalConfig, frame_of, read_at_once, relay_of
from slidelens.families.local_train import LocalStage, LocalTask, LocalTraining
from slidelens.families.slide_image import SlideImage
from slidelens.families.training import Sample, Work
from slidelens.geometry import Box
from slidelens.slide.array import from_array
from slidelens.steps import finish
from slidelens.tiling.tissue import TissueSettings
from train_cohort import make_cohort

SMALL = {"backbone": "squeezenet1_1", "modules": 3, "mpp": 1.0, "head_width": 4, "tile": 96}
ALL = LocalStage(epochs=1, lr=1e-3, head_lr=1e-3)
WARM = ALL.model_copy(update={"trains": "head"})


def tissue(height=260, width=330, seed=0, box=(40, 230, 60, 300)):
    """Textured pink tissue on white glass."""
    image = np.full((height, width, 3), 255, np.uint8)
    top, bottom, left, right = box
    texture = np.random.default_rng(seed).integers(-40, 40, (bottom - top, right - left, 3))
    image[top:bottom, left:right] = (np.array((200, 100, 160)) + texture).clip(0, 255)
    return image


def view_of(pixels, mpp=1.0, region=None):
    settings = TissueSettings(mpp=4.0, closing=0.0)
    slide = from_array(pixels, mpp=mpp)
    return SlideView(slide, tissue=settings, region=region, device=torch.device("cpu"))


def model_of(classes=2, seed=0, **config):
    torch.manual_seed(seed)
    settings = LocalConfig(**{**SMALL, **config})
    module = FAMILY.build(settings, classes).eval()
    for parameter in module.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    names = tuple("abcd"[:classes])
    return Model("m", "local", settings, names, module, device=torch.device("cpu"))


def events(model, view):
    with torch.inference_mode():
        return list(FAMILY.infer(model, view))


# Running ------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
def test_score_and_maps_are_those_of_the_network(classes):
    model, view = model_of(classes), view_of(tissue())
    *patches, score = events(model, view)
    drawn = {patch.map: patch for patch in patches if len(patch.boxes)}
    frame = frame_of(model, view)
    image = SlideImage(view.read, frame)
    with torch.inference_mode():
        readings = model.module(relay_of(model, image, frame.blocks))
    expected = readings[-1].logits.softmax(1)[0].numpy()
    np.testing.assert_allclose(score.probabilities, expected, atol=1e-5)
    assert sum(score.probabilities) == pytest.approx(1, abs=1e-5)
    names = [spec.name for spec in FAMILY.maps(model.config, model.classes)]
    assert names == ["probability", "attention", "attention-1", "attention-2"]
    assert set(drawn) == set(names)
    for name, reading in zip(("attention-1", "attention-2", "attention"), readings, strict=True):
        values = drawn[name].values[0, 0]
        known = np.isfinite(values)
        assert known.any()
        np.testing.assert_allclose(values[known], reading.attention[0].numpy()[known], atol=1e-5)
    values = drawn["probability"].values[0]
    known = np.isfinite(values[0])
    np.testing.assert_allclose(values.sum(0)[known], 1, atol=1e-5)


def test_a_slide_that_is_read_at_once_reads_the_same():
    """What a GPU with memory for it does; here on the CPU."""
    model, view = model_of(tile=32), view_of(tissue(700, 330, box=(40, 660, 60, 300)))
    image = SlideImage(view.read, frame_of(model, view))
    with torch.inference_mode():
        steps = read_at_once(model, image, torch.device("cpu"))
        shares, readings = [], []
        while not readings:
            try:
                shares.append(next(steps))
            except StopIteration as stop:
                readings = stop.value
        relay = relay_of(model, image, image.frame.blocks)
        relay.tile = 96
        streamed = model.module(relay)
    for one, other in zip(readings, streamed, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert len(shares) >= 2 + model.config.modules


def test_an_image_that_threads_read_is_the_image():
    model, view = model_of(), view_of(tissue(1400, 330, box=(40, 1360, 60, 300)))
    image = SlideImage(view.read, frame_of(model, view))
    height, width, _ = image.shape
    assert height > 1024  # several pieces, of which the last is smaller
    pixels = finish(image.onto(torch.device("cpu")))
    whole = image.read(Box(0, 0, width, height))
    assert pixels.shape == (1, 3, height, width)
    np.testing.assert_array_equal(pixels[0].permute(1, 2, 0).numpy(), whole)


def test_reading_by_threads_can_be_stopped_and_fails_as_the_slide_does():
    def broken(box, mpp):
        if box.y > 600:
            raise SlideError("this part cannot be decoded")
        return view.read(box, mpp)

    model, view = model_of(), view_of(tissue(1400, 330, box=(40, 1360, 60, 300)))
    frame = frame_of(model, view)
    steps = SlideImage(view.read, frame).onto(torch.device("cpu"))
    next(steps)
    steps.close()
    with pytest.raises(SlideError, match="cannot be decoded"):
        finish(SlideImage(broken, frame).onto(torch.device("cpu")))
    assert not [t for t in threading.enumerate() if t.name.startswith("slidelens-read_")]


def test_maps_are_declared_as_they_are_drawn():
    model, view = model_of(), view_of(tissue(), mpp=0.8)
    specs = {spec.name: spec for spec in FAMILY.maps(model.config, model.classes)}
    for patch in events(model, view)[:-1]:
        if not len(patch.boxes):
            continue
        spec = specs[patch.map]
        channels, rows, columns = patch.values.shape[1:]
        assert channels == len(spec.channels)
        _, _, w, h = patch.boxes[0]
        assert w * 0.8 / columns == pytest.approx(spec.mpp)
        assert h * 0.8 / rows == pytest.approx(spec.mpp)
    assert [s.kind for s in specs.values()] == ["probability", *["attention"] * 3]


def test_windows_lie_over_what_they_see():
    """A change of the pixels in the middle of a window changes that window the most."""
    model = model_of(background="kept", modules=2)
    network = model.module
    view = view_of(tissue(400, 480, box=(0, 400, 0, 480)))
    frame = frame_of(model, view)
    image = torch.from_numpy(SlideImage(view.read, frame).read(
        Box(0, 0, frame.width, frame.height))).permute(2, 0, 1)[None]  # fmt: skip
    patches = {p.map: p for p in events(model, view)[:-1] if len(p.boxes)}
    for index, name in enumerate(("attention-1", "attention")):
        box, shape = patches[name].boxes[0], network.shapes[index]
        row, column = 2, 3
        side = shape.cell
        # The window's middle, from level-0 px back to px of the image.
        middle = frame.place.invert(
            [box[0] + (column + 0.5) * side, box[1] + (row + 0.5) * side]
        ).astype(int)
        changed = image.clone()
        changed[:, :, middle[1] - 4 : middle[1] + 4, middle[0] - 4 : middle[0] + 4] = 0
        with torch.no_grad():
            before, after = (_windows(network, x, index) for x in (image, changed))
        change = (before - after).abs().sum(1)[0]
        assert np.unravel_index(int(change.argmax()), change.shape) == (row, column)


def _windows(network, pixels, index):
    from slidelens.nn.relay import Relay

    features = network.stem_features(Relay(pixels))
    for part in network.parts[: index + 1]:
        features = part(features)
    return network.heads[index].windows(features)


def test_only_tissue_is_drawn_and_background_is_painted():
    pixels = np.minimum(tissue(box=(30, 100, 30, 100)), tissue(box=(160, 230, 230, 300)))
    model = model_of()
    drawn = {p.map: p for p in events(model, view_of(pixels))[:-1] if len(p.boxes)}
    known = np.isfinite(drawn["attention-1"].values[0, 0])
    assert known[0, 0]
    assert known[-1, -1]
    assert not known[0, -1]
    assert not known[-1, 0]
    dirty = pixels.copy()
    dirty[60:64, 250:254] = 90  # a speck that is no tissue
    scores = [events(model, view_of(p))[-1].probabilities for p in (pixels, dirty)]
    assert scores[0] == scores[1]


def test_attention_is_drawn_wherever_a_head_looked():
    """A window that takes part has tissue in the block around it, if not in itself."""
    pixels = np.minimum(tissue(box=(30, 75, 34, 90)), tissue(box=(150, 205, 230, 283)))
    drawn = {p.map: p for p in events(model_of(), view_of(pixels))[:-1] if len(p.boxes)}
    attention = [p.values for name, p in drawn.items() if name.startswith("attention")]
    assert [np.nansum(a) for a in attention] == pytest.approx([1, 1, 1], abs=1e-5)
    known = [np.isfinite(drawn[name].values[0, 0]) for name in ("probability", "attention")]
    np.testing.assert_array_equal(*known)


def test_a_result_has_layers_tiles_and_attention(tmp_path):
    slide = from_array(tissue(512, 512, box=(20, 500, 16, 490)), mpp=0.5)
    result = predict(slide, model_of(mpp=0.5), out=tmp_path, device="cpu", precision="fp32")
    kinds = {name: found.kind for name, found in result.maps.items()}
    attention = dict.fromkeys(("attention", "attention-1", "attention-2"), "attention")
    assert kinds == {"probability": "probability", **attention, "tissue": "labels"}
    assert len(result.tiles) >= 4
    np.testing.assert_allclose(result.tiles.probabilities.sum(1), 1, atol=1e-5)
    assert (result.tiles.attention > 0).all()
    header = next(iter((tmp_path / "m").glob("*/tiles.csv"))).read_text().splitlines()[0]
    assert header == "minx,miny,width,height,prob_a,prob_b,attention"


def test_progress_counts_rows_and_can_be_cancelled():
    slide = from_array(tissue(700, 120, box=(20, 680, 20, 100)), mpp=1.0)
    run = Prediction(slide, model_of(), device="cpu", precision="fp32")
    steps = [step for step in run if step.stage == "infer"]
    assert [s.done for s in steps] == sorted(s.done for s in steps)
    assert steps[-1].done == steps[-1].total > 600
    assert len({s.done for s in steps}) > 3
    cancelled = Prediction(slide, model_of(), device="cpu", precision="fp32")
    while next(cancelled).stage != "infer":
        pass
    cancelled.close()
    assert cancelled.result is None
    assert torch.is_grad_enabled()


def test_a_tiny_slide_has_maps_and_a_score():
    model = model_of()
    *patches, score = events(model, view_of(tissue(24, 30, box=(4, 20, 4, 26))))
    assert np.isfinite(score.probabilities).all()
    assert any(np.isfinite(p.values).any() for p in patches)


def test_a_slide_without_tissue_is_refused():
    with pytest.raises(SlideError, match="no tissue was found to look at"):
        events(model_of(), view_of(np.full((64, 64, 3), 255, np.uint8)))


def test_resnets_have_the_papers_stride_unless_told():
    assert LocalConfig(backbone="resnet18", modules=1).first_stride == 3
    assert LocalConfig(backbone="resnet18", modules=1, stem_stride=2).first_stride == 2
    assert LocalConfig(backbone="squeezenet1_1", modules=1).first_stride is None


def test_configurations_that_make_no_model_are_refused(tmp_path):
    cohort = make_cohort(tmp_path)
    wanted = {
        "modules": (9, "squeezenet1_1 has 8 blocks"),
        "patches": (1, "0 or at least 2"),
        "head_width": (1, "0 or at least 2"),
    }
    for name, (value, message) in wanted.items():
        with pytest.raises(ModelError, match=message):
            plan_training(
                "local", cohort / "slides", cohort / "labels.csv", tmp_path / "m",
                backbone="squeezenet1_1", weights="none", config={name: value},
            )  # fmt: skip


# Training -----------------------------------------------------------------------------------


class Data:
    """Slides in memory, as the engine would give them."""

    def __init__(self, labels):
        self.train = [Sample(f"s{i}", label) for i, label in enumerate(labels)]
        self.tune = [Sample("t0", 0)]
        self.views = {s.slide_id: view_of(tissue(seed=i)) for i, s in enumerate(self.train)}
        self.views["t0"] = view_of(tissue(seed=9))

    def view(self, slide_id):
        return self.views[slide_id]


def task_of(model, data=None, **fields):
    values = LocalTraining.presets["default"] | {"stages": (ALL,), **fields}
    training = LocalTraining.model_validate(values).suited(model.config)
    return LocalTask(model, model.module, data or Data([0, 1]), training, seed=5)


def test_a_step_gives_each_modules_gradient_of_the_augmented_slide():
    model = model_of()
    task = task_of(model)
    work = next(task.epoch(2, ALL))
    losses = []
    torch.manual_seed(0)
    outcome = task.step(work, 2, lambda loss: (losses.append(loss.detach()), loss.backward()))
    got = [p.grad.clone() for p in model.module.parameters() if p.grad is not None]
    assert len(losses) == 3
    model.module.zero_grad()
    slide = work.slides[0]
    image = task._images[slide]
    key = (5, 2, crc32(slide.encode()), work.detail)
    turned, blocks = task.augment(image, image.frame.blocks, key, model.config.size)
    relay = relay_of(model, turned, blocks, work.labels[0])
    relay.smoothing = task.config.smoothing
    torch.manual_seed(0)
    for index in range(3):
        model.module(relay, index).backward()
    expected = [p.grad for p in model.module.parameters() if p.grad is not None]
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert relay.smoothing == 0.1
    logits = relay.logits.log_softmax(1)[0]  # the last module has only its classifier's loss
    label = logits[work.labels[0]]
    assert float(losses[-1]) == pytest.approx(float(-0.9 * label - 0.1 * logits.mean()), abs=1e-5)
    assert outcome.losses[0] == pytest.approx(float(-label))  # as it is told, it is not smoothed


def test_tuning_slides_are_seen_as_they_are_and_scored_as_predicted():
    model = model_of(3)
    data = Data([0, 1, 2])
    task = task_of(model, data)
    (work,) = task.evaluation()
    with torch.inference_mode():
        outcome = task.step(work, 0, None)
    score = events(model, data.view("t0"))[-1]
    np.testing.assert_allclose(outcome.probabilities[0], score.probabilities, atol=1e-5)
    assert outcome.losses[0] == pytest.approx(-np.log(score.probabilities[0]), abs=1e-5)


def test_groups_leave_the_stem_and_frozen_norms_alone():
    model = model_of(backbone="resnet18", modules=2)
    task, network = task_of(model), model.module
    (head_lr, heads), (lr, modules) = task.groups(ALL.model_copy(update={"lr": 2e-5}))
    assert (head_lr, lr) == (1e-3, 2e-5)
    names = {id(p): n for n, p in network.named_parameters()}
    assert {names[id(p)].split(".")[0] for p in heads} == {"heads", "decoders"}
    learning = {names[id(p)] for p in modules}
    assert all(n.startswith("features.trunk.layer") for n in learning)
    assert not any(".bn" in n or "downsample.1" in n for n in learning)
    ((_, alone),) = task.groups(ALL.model_copy(update={"trains": "head"}))
    assert {names[id(p)].split(".")[0] for p in alone} == {"heads"}
    convolving = task_of(model_of(backbone="resnet18", modules=2, windows="convolution"))
    ((_, both),) = convolving.groups(ALL.model_copy(update={"trains": "head"}))
    assert len(both) == len(heads)


def test_a_warm_up_moves_the_heads_alone_and_learns_what_the_network_would():
    model, data = model_of(), Data([0, 1])
    task = task_of(model, data, stages=(WARM,), warm_passes=3, stain=0.5)
    works = list(task.epoch(4, WARM))
    assert [w.phase for w in works] == ["scan"] * 2 + ["train"] * 6
    assert len(works) == task.length(WARM)
    assert [w.slides for w in works[2:]] != [w.slides for w in task.epoch(5, WARM)][2:]
    for work in works[:2]:
        assert task.step(work, 4, None).losses == ()
    model.module.eval()  # no dropout
    losses = []
    outcome = task.step(works[2], 4, lambda loss: (losses.append(loss.detach()), loss.backward()))
    learnt = {n for n, p in model.module.named_parameters() if p.grad is not None}
    assert {n.split(".")[0] for n in learnt} == {"heads"}
    got = {n: p.grad.clone() for n, p in model.module.named_parameters() if n in learnt}
    model.module.zero_grad()
    image = task._images[works[2].slides[0]]  # as it is
    relay = relay_of(model, image, image.frame.blocks, works[2].labels[0])
    relay.smoothing = task.config.smoothing
    for index in range(3):
        model.module(relay, index).backward()
    for name, gradient in got.items():
        expected = model.module.get_parameter(name).grad
        torch.testing.assert_close(gradient, expected, rtol=0.02, atol=2e-3)  # kept as fp16
    assert outcome.losses[0] == pytest.approx(
        float(F.cross_entropy(relay.logits, relay.label)), abs=0.01
    )


def test_a_resumed_warm_up_sees_what_the_stopped_one_saw():
    model, data = model_of(), Data([0, 1])
    one, other = (task_of(model, data, stages=(WARM,)) for _ in range(2))
    work = [w for w in one.epoch(0, WARM) if w.phase == "train"][-1]
    for scan in (w for w in one.epoch(0, WARM) if w.phase == "scan"):
        one.step(scan, 0, None)
    model.module.eval()
    said = [t.step(work, 0, lambda loss: None).losses for t in (one, other)]
    assert said[0] == said[1]


def test_greedy_training_is_one_module_after_the_other():
    model = model_of()
    task = task_of(model, greedy=True)
    assert [s.module for s in task.config.stages] == [1, 2, 3]
    names = {id(p): n for n, p in model.module.named_parameters()}
    seen = []
    for number, stage in enumerate(task.config.stages):
        task.stage = stage
        learning = {id(p) for _, group in task.groups(stage) for p in group}
        for parameter in model.module.parameters():
            parameter.requires_grad_(id(parameter) in learning)
        work = next(task.epoch(number, stage))
        losses = []
        task.step(work, number, lambda loss, kept=losses: (kept.append(loss), loss.backward()))
        assert len(losses) == 1
        touched = {n for n, p in model.module.named_parameters() if p.grad is not None}
        assert touched == {names[i] for i in learning}
        assert not touched & set(seen)
        seen += touched
        model.module.zero_grad()
        (tuned,) = task.evaluation()
        with torch.inference_mode():
            loss = task.step(tuned, number, None).losses[0]
            frame = frame_of(model, task.data.view("t0"))
            relay = relay_of(model, SlideImage(task.data.view("t0").read, frame), frame.blocks)
            logits = model.module(relay)[number].logits
        assert loss == pytest.approx(float(-logits.log_softmax(1)[0, 0]), abs=1e-4)


def test_a_stage_for_a_module_that_is_not_there_is_refused():
    with pytest.raises(ModelError, match="module 4 is to learn, but the model has 3"):
        task_of(model_of(), stages=(LocalStage(epochs=1, lr=1, head_lr=1, module=4),))


def test_the_paper_is_a_preset():
    paper = LocalTraining.model_validate(LocalTraining.presets["paper"])
    assert [(s.lr, s.head_lr) for s in paper.stages] == [(1e-5, 2e-5), (1e-6, 2e-6)]
    assert (paper.optimizer, paper.weight_decay, paper.accumulate) == ("adamw", 1e-6, 8)
    assert paper.alpha == 1
    config = LocalConfig()
    assert (config.backbone, config.modules, config.mpp) == ("resnet34", 4, 2.0)
    assert (config.first_stride, config.patches) == (3, 10)


def test_epochs_differ_and_are_the_same_again():
    task = task_of(model_of(), Data([0, 1, 1, 1]))
    one, two = list(task.epoch(0, ALL)), list(task.epoch(1, ALL))
    assert one != two
    assert one == list(task.epoch(0, ALL))
    assert len(one) == task.length(ALL) == 6
    assert all(isinstance(w, Work) and w.phase == "train" for w in one)
    assert len({(w.slides, w.detail) for w in one}) == 6


def _train(cohort, out, steps=None, **overrides):
    config = {**SMALL, "mpp": 0.5, "modules": 2}
    run = train(
        "local", cohort / "slides", cohort / "labels.csv", out, weights="none", seed=1, epochs=2,
        config=config, overrides={"precision": "fp32", "accumulate": "2", **overrides},
        device="cpu", resume=True,
    )  # fmt: skip
    for number, _ in enumerate(run):
        if number == steps:
            run.close()
            return None
    return load_file(out / "weights.safetensors")


def test_a_stopped_training_resumes_to_the_same_weights(tmp_path):
    cohort = make_cohort(tmp_path)
    whole = _train(cohort, tmp_path / "whole")
    out = tmp_path / "stopped"
    assert _train(cohort, out, steps=12) is None
    assert not (out / "model.json").exists()
    resumed = _train(cohort, out)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_trained_greedily_and_streamed_it_is_a_model(tmp_path):
    cohort = make_cohort(tmp_path)
    _train(cohort, tmp_path / "m", greedy="true", train_tile="64")
    model = load_model(tmp_path / "m", "cpu")
    assert model.card["training"]["greedy"] is True
    assert len(model.card["training"]["stages"]) == 2
    assert isinstance(events(model, view_of(tissue()))[0], Patch)
