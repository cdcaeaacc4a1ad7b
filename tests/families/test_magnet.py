"""MagNet on slides whose every pixel is known: what it reads, what it says, how it learns."""

from __future__ import annotations

import time
from concurrent.futures import wait
from threading import Lock
from zlib import crc32

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from slidelens.engine.loader import SlideView
from slidelens.engine.predict import predict
from slidelens.engine.train import _fabric
from slidelens.engine.training.plan import plan_training
from slidelens.errors import ModelError, SlideError
from slidelens.families.base import Model, SlideScore, Trajectory
from slidelens.families.magnet import FAMILY, MagNetConfig
from slidelens.families.magnet_eye import Eye, Overview, restore_windows
from slidelens.families.magnet_schedule import MagNetTraining
from slidelens.families.magnet_sight import Sight, draw_probes
from slidelens.families.magnet_train import MagNetTask
from slidelens.families.training import Sample, Stage
from slidelens.geometry import Box
from slidelens.nn.magnet import Seen
from slidelens.nn.orientation import orient
from slidelens.slide.array import from_array
from slidelens.tiling.tissue import TissueSettings
from train_cohort import make_cohort

SMALL = {
    "backbone": "small",
    "auxiliary": "small",
    "auxiliary_layers": (1,),
    "patches": (2, 2),
    "glance": 24,
    "look": 32,
    "width": 8,
    "state": 8,
    "mpp": 0.5,
    "map_mpp": 2.0,
}


def pixels(seed: int = 0, width: int = 192, height: int = 128) -> np.ndarray:
    """Colourful blocks of 8 px: nothing in them is grey."""
    values = np.random.default_rng(seed).integers(0, 90, (height // 8, width // 8, 3), np.uint8)
    values[..., 0] += 160
    return values.repeat(8, 0).repeat(8, 1)


def view_of(array: np.ndarray, mpp: float | tuple[float, float] = 0.5, **options) -> SlideView:
    slide = from_array(array, mpp=mpp, name=f"s{array[0, 0, 0]}")
    return SlideView(slide, tissue=TissueSettings(method="whole"), **options)


def model_of(classes: int = 2, spread: bool = True, **config) -> Model[MagNetConfig]:
    settings = MagNetConfig(**{**SMALL, **config})
    torch.manual_seed(2)
    module = FAMILY.build(settings, classes)
    if spread:  # attention that looks somewhere
        for layer in module.attention:
            for attention in layer.values():
                torch.nn.init.normal_(attention.third.weight, std=0.5)
    return Model(
        "m", "magnet", settings, tuple("abc"[:classes]), module, device=torch.device("cpu")
    )


@pytest.fixture
def run():
    """Run a model as the engine does."""

    def infer(model, view):
        model.module.eval()
        with torch.inference_mode():
            return list(FAMILY.infer(model, view))

    return infer


# What is read.


def test_a_window_is_a_place_on_the_slide():
    eye = Eye(view_of(pixels()))
    assert eye.side_um == 96
    assert eye.box((1.0, 0.0, 0.0)) == Box(0, -32, 192, 192)  # the square around the slide
    assert eye.box((0.25, 0.5, -0.5)) == Box(120, -8, 48, 48)
    assert eye.mpp((0.25, 0.5, -0.5), 12) == 2.0
    assert eye.finest(24, 0.5) == 0.125
    assert eye.finest(1024, 0.5) == 1.0


def test_windows_are_the_slides_own_pixels():
    array = pixels()
    eye = Eye(view_of(array))
    window = (0.25, 0.0, 0.0)  # 48 px of level 0
    assert np.array_equal(eye.read(window, 48), array[40:88, 72:120])
    half = array[40:88, 72:120].reshape(24, 2, 24, 2, 3).mean((1, 3))
    assert np.abs(eye.read(window, 24) - half).max() <= 0.5


def test_beyond_the_slide_and_beyond_the_region_is_white():
    array = pixels()
    whole = Eye(view_of(array)).read((1.0, 0.0, 0.0), 192)
    assert (whole[:32] == 255).all()
    assert np.array_equal(whole[32:160], array)
    part = Eye(view_of(array, region=Box(64, 32, 64, 64)))
    assert part.box((1.0, 0.0, 0.0)) == Box(64, 32, 64, 64)
    beyond = part.read((1.0, 1.0, 0.0), 64)
    assert np.array_equal(beyond[:, :32], array[32:96, 96:128])
    assert (beyond[:, 32:] == 255).all()


def test_oblong_pixels_are_square_in_the_picture():
    array = pixels(width=128, height=128)
    eye = Eye(view_of(array, mpp=(0.5, 0.25)))
    assert eye.side_um == 64
    assert eye.box((0.5, 0.0, 0.0)) == Box(32, 0, 64, 128)
    assert eye.read((0.5, 0.0, 0.0), 32).shape == (32, 32, 3)


def test_a_copy_in_memory_is_looked_at_like_the_slide():
    array = pixels()
    copy = Overview(array, (96.0, 64.0), array[:24, :24])
    one, other = Eye(copy), Eye(view_of(array))
    assert one.detail == other.detail == 0.5
    for window in ((1.0, 0.0, 0.0), (0.3, 0.4, -0.2)):
        assert np.array_equal(one.read(window, 40), other.read(window, 40))


@pytest.mark.parametrize("way", range(8))
def test_windows_of_an_oriented_slide_are_oriented_windows(way):
    array = pixels(width=128, height=128)
    eye = Eye(view_of(array))
    turned = orient(torch.from_numpy(array).permute(2, 0, 1), way)
    (window,) = restore_windows(np.array([[0.25, 0.5, -0.25]]), way).tolist()
    x, y, side = 80, 32, 32  # its box on the turned slide
    seen = orient(torch.from_numpy(eye.read(window, side)).permute(2, 0, 1), way)
    assert torch.equal(seen, turned[:, y : y + side, x : x + side])


# What it says.


@pytest.mark.parametrize("classes", [2, 3])
def test_events_tell_where_it_looked_and_what_it_made_of_it(run, classes):
    model, view = model_of(classes), view_of(pixels())
    *patches, trajectory, score = run(model, view)
    assert isinstance(trajectory, Trajectory)
    assert isinstance(score, SlideScore)
    assert sum(score.probabilities) == pytest.approx(1, abs=1e-5)
    assert [w.layer for w in trajectory.windows] == [0, 1, 2, 2, 1, 2, 2]
    assert [w.parent for w in trajectory.windows] == [None, 0, 1, 1, 0, 4, 4]
    assert trajectory.classes == model.classes
    assert trajectory.last[-1].probabilities == pytest.approx(score.probabilities)
    assert [w.probabilities is None for w in trajectory.windows] == [True, True] + [False] * 5
    assert trajectory.windows[4].probabilities == trajectory.windows[3].probabilities
    assert (view.steps, view.done) == (7, 7)
    assert {p.map for p in patches} == {s.name for s in FAMILY.maps(model.config, model.classes)}


def test_windows_are_where_the_network_chose_them(run):
    model, view = model_of(), view_of(pixels())
    *_, trajectory, _ = run(model, view)
    seen: list[Seen] = []
    model.module.register_forward_hook(lambda _m, _i, out: seen.append(out))
    run(model, view)
    eye = Eye(view)
    boxes = [w.box for w in trajectory.windows if w.layer == 2]
    expected = [eye.box(w) for w in seen[0].windows[1][0].tolist()]
    np.testing.assert_allclose(boxes, expected, rtol=1e-5)
    assert all(
        w.mpp == pytest.approx(w.box.w * 0.5 / (32 if w.layer == 2 else 24))
        for w in trajectory.windows
    )
    frozen, parent = trajectory.windows[2].box, trajectory.windows[1].box
    np.testing.assert_allclose(frozen, parent, rtol=1e-5)


def test_the_finer_window_is_on_top_in_the_map(run):
    model, view = model_of(patches=(1, 2)), view_of(pixels(width=256, height=256))
    *patches, _, _ = run(model, view)
    attention, large, small = patches
    assert attention.map == "attention"
    assert attention.values.sum() == pytest.approx(1, abs=1e-4)
    x, y, w, h = small.boxes[0]
    assert w < large.boxes[0][2]
    assert not np.isnan(small.values).any()
    raster = large.values[0, 1]
    step = large.boxes[0][2] / len(raster)
    columns = large.boxes[0][0] + (np.arange(len(raster)) + 0.5) * step
    rows = large.boxes[0][1] + (np.arange(len(raster)) + 0.5) * step
    inside = (np.abs(columns - x - w / 2) < w / 2) & (np.abs(rows - y - h / 2) < h / 2)[:, None]
    assert inside.any()
    assert np.array_equal(np.isnan(raster), inside)
    assert len(np.unique(raster[~inside])) == 1


def test_a_window_that_saw_nothing_but_padding_is_not_drawn():
    """An oblong slide lies in a square, most of which is padding."""
    model = model_of(patches=(1,), look=32, least=0.05, reach=(1e-6,), gain=(1e4,))
    (attention,) = (part for layer in model.module.attention for part in layer.values())
    slide = from_array(pixels(width=640, height=64), mpp=0.5)
    for sign in (1, -1):  # black padding, then what is not black, is what it likes best
        torch.nn.init.constant_(attention.first.parts[0].weight, 1.0)
        torch.nn.init.constant_(attention.second.parts[0].weight, 1.0)
        torch.nn.init.zeros_(attention.third.weight)
        with torch.no_grad():
            attention.third.weight[0, 0, 3, 3] = -sign
        result = predict(slide, model, device="cpu", precision="fp32")
        (window,) = result.trajectory.last
        outside = not 0 <= window.box.y + window.box.h / 2 < 64
        known = np.isfinite(result.maps["probability"].read())
        assert known.any() == (not outside)
        assert outside == (sign == 1)


REGION = Box(52, 28, 90, 61)  # its borders cut cells of both maps


def test_maps_end_with_the_region(run):
    """The square around a region, and windows at its rim, reach over pixels that it never saw."""
    model, view = model_of(), view_of(pixels(), region=REGION)
    *patches, trajectory, _ = run(model, view)
    assert any(w.box != w.box.intersect(REGION) for w in trajectory.last)
    (square,) = (w.box for w in trajectory.windows if w.layer == 0)
    assert square.h > REGION.h
    for patch in patches:
        (box,) = patch.boxes
        part = Box(*box)
        np.testing.assert_allclose(part, part.intersect(REGION), atol=1e-6)
    attention = [p for p in patches if p.map == "attention"]
    assert sum(Box(*p.boxes[0]).area for p in attention) == pytest.approx(REGION.area)
    seen: list[Seen] = []
    model.module.register_forward_hook(lambda _m, _i, out: seen.append(out))
    run(model, view)
    heat = seen[0].attention[0][0].mean(0).numpy()
    step = square.w / len(heat)
    for patch in attention:  # each cell has the value of the place
        x, y, w, h = patch.boxes[0]
        rows, columns = patch.values.shape[2:]
        column = ((x + (np.arange(columns) + 0.5) * w / columns - square.x) / step).astype(int)
        row = ((y + (np.arange(rows) + 0.5) * h / rows - square.y) / step).astype(int)
        assert np.array_equal(patch.values[0, 0], heat[np.ix_(row, column)])


@pytest.mark.parametrize("name", ["attention", "probability"])
def test_nothing_is_drawn_or_outlined_beyond_the_region(name):
    slide, whole = from_array(pixels(), mpp=0.5), TissueSettings(method="whole")
    result = predict(slide, model_of(), region=REGION, tissue=whole, device="cpu")
    known = np.isfinite(result.maps[name].read()[-1])
    cell = SMALL["map_mpp"] / 0.5
    rows, columns = (np.flatnonzero(known.any(axis)) * cell for axis in (1, 0))
    assert rows.min() > REGION.y - cell
    assert rows.max() < REGION.bottom
    assert columns.min() > REGION.x - cell
    assert columns.max() < REGION.right
    if name == "attention":  # all of the region, but no more
        assert known.sum() == len(rows) * len(columns)
    for region in result.regions:
        left, top, right, bottom = region.polygon.bounds
        assert left > REGION.x - cell
        assert top > REGION.y - cell
        assert right < REGION.right + cell
        assert bottom < REGION.bottom + cell


def test_reads_no_more_of_the_slide_than_it_looks_at(run):
    array, model = pixels(width=1024, height=1024), model_of(spread=False, gain=(1.0,))
    for layer in model.module.attention:
        for attention in layer.values():
            torch.nn.init.normal_(attention.third.weight, std=5.0)
    view = view_of(array)
    asked = []
    read = view.read
    view.read = lambda box, mpp: asked.append((box, mpp)) or read(box, mpp)
    *_, trajectory, _ = run(model, view)
    assert len(asked) == 7
    assert [box for box, _ in asked[:1]] == [Box(0, 0, 1024, 1024)]
    fine = [box.area for box, mpp in asked if mpp < 2]
    assert sum(fine) < 0.05 * 1024**2
    assert min(w.box.w for w in trajectory.windows) >= 32  # a pixel of the slide per pixel


def test_impossible_configurations_are_refused():
    for fault, what in (
        ({"patches": (2, 0)}, "need 1 or more per layer"),
        ({"patches": (2, 2), "auxiliary_layers": (1, 4)}, r"\[4\]: the network has layers 1 to 2"),
        ({"patches": (9, 9, 9)}, "at most 256 windows"),
        ({"gain": (1.0, 2.0, 3.0)}, "one for each of 2 layers"),
        ({"gain": (0.0,)}, "need one above 0"),
        ({"reach": (1.0, 0.5, 1.0)}, r"reach .*one for each of 2 layers"),
        ({"sees": "features"}, "attention on features needs 48 px"),
        ({"shared": True}, "all patches of a window would be the same"),
        ({"backbone": "inception_v3", "look": 64}, "inception_v3 needs 75 px"),
    ):
        with pytest.raises(ValidationError, match=what):
            MagNetConfig(**{**SMALL, **fault})
    with pytest.raises(ValidationError, match="need 0 < smallest <= largest <= 1"):
        training(probe_scales=(0.4, 0.2))


def test_reach_is_by_layer_and_a_single_number_is_taken():
    model = model_of(reach=(0.8, 1e-3), least=0.2, frozen=False)
    with torch.inference_mode():
        seen = model.module.eval()(
            torch.rand(1, 3, 24, 24), lambda w, size, _m: torch.rand(*w.shape[:2], 3, size, size)
        )
    first, last = (w[0, :, 0] for w in seen.windows)
    assert (first > 0.2 + 1e-3).all()
    torch.testing.assert_close(last, 0.2 * first.repeat_interleave(2))
    assert MagNetConfig(reach=0.8).reach == (0.8,)


# How it learns.


class Data:
    """Slides in memory, as the engine gives them; counts what is read from them."""

    def __init__(self, labels, tune=(), **size):
        self.train = [Sample(f"s{i}", label) for i, label in enumerate(labels)]
        self.tune = [Sample(f"t{i}", label) for i, label in enumerate(tune)]
        samples = [*self.train, *self.tune]
        self.views = {s.slide_id: view_of(pixels(i, **size)) for i, s in enumerate(samples)}
        self.reads: list[tuple[str, float]] = []
        for slide_id, view in self.views.items():
            self._watch(slide_id, view)

    def _watch(self, slide_id, view):
        read = view.read

        def counted(box, mpp):
            self.reads.append((slide_id, mpp))
            return read(box, mpp)

        view.read = counted

    def view(self, slide_id):
        return self.views[slide_id]


def training(**fields) -> MagNetTraining:
    values = MagNetTraining.presets["default"] | {"train_batch": 2, **fields}
    return MagNetTraining.model_validate(values)


def task_of(model, data, **fields) -> MagNetTask:
    return MagNetTask(model, model.module, data, training(**fields), seed=5)


STAGE = Stage(epochs=1, lr=1e-3, head_lr=1e-2)


NEAR = {"atol": 1e-3, "rtol": 0}


def epoch_of(task, epoch=0):
    losses = []
    task.model.module.train()
    done = [(w, task.step(w, epoch, losses.append)) for w in task.epoch(epoch, STAGE)]
    return done, losses


def test_an_epoch_takes_every_slide_and_balances_classes():
    task = task_of(model_of(), Data([0, 0, 0, 1]))
    works = list(task.epoch(0, STAGE))
    assert len(works) == task.length(STAGE) == 3
    assert sorted(label for w in works for label in w.labels) == [0, 0, 0, 1, 1, 1]


def test_every_loss_reaches_what_it_teaches():
    model = model_of(reach=(0.3,))
    module = model.module
    data = Data([0, 1], width=256, height=256)

    def learns(**weights):
        fields = {"auxiliary_weight": 0, "paradox_weight": 0, "window_weight": 0}
        fields |= {"foresight_weight": 0, "probes": 2, **weights}
        module.zero_grad()
        _, losses = epoch_of(task_of(model, data, **fields))
        losses[0].backward()
        parts = {
            "attention": module.attention,
            "memory": module.judge.memory,
            "single": module.judge.single,
            "features": module.judge.features,
            "auxiliary": module.auxiliary,
        }
        return {
            name
            for name, part in parts.items()
            if any(p.grad is not None and p.grad.any() for p in part.parameters())
        }

    verdict = {"attention", "memory", "features"}
    assert learns() == verdict
    assert learns(window_weight=1) == verdict | {"single"}
    assert learns(auxiliary_weight=1) == verdict | {"auxiliary"}
    assert learns(foresight_weight=1) == verdict


def test_the_paradox_is_what_the_deeper_does_worse():
    model = model_of(patches=(1, 1, 1), auxiliary_layers=(1, 3), frozen=False)
    task = task_of(model, Data([0, 1]), auxiliary_weight=0, window_weight=0, foresight_weight=0)
    labels = torch.tensor([1, 1])
    verdict = torch.zeros(2)
    empty = torch.zeros(2, 0, 1)

    def guidance(shallow, deep):
        auxiliary = {1: torch.full((2, 1), shallow), 3: torch.full((2, 1), deep)}
        seen = Seen(empty, torch.zeros(2, 1, 1), (), (), (), auxiliary, empty)
        return task._guidance(seen, torch.zeros(2, 0, 3), labels, verdict).item()

    worse = torch.nn.functional.softplus(torch.tensor(1.0)) - torch.nn.functional.softplus(
        torch.tensor(-2.0)
    )
    assert guidance(2.0, -1.0) == pytest.approx(worse.item())
    assert guidance(-1.0, 2.0) == 0


def test_slides_are_copied_once_and_read_for_detail():
    data = Data([0, 1], width=512, height=512)
    model = model_of()
    task = task_of(model, data, overview_px=64, probes=3, probe_scales=(0.05, 0.06))
    epoch_of(task)
    coarse = [r for r in data.reads if r[1] == 4.0]
    fine = [r for r in data.reads if r[1] < 4.0]
    assert sorted(coarse) == [("s0", 4.0), ("s1", 4.0)]
    assert len(fine) >= 6  # the probes at least
    data.reads.clear()
    epoch_of(task, 1)
    assert not [r for r in data.reads if r[1] == 4.0]


def test_without_memory_slides_are_copied_each_time():
    data = Data([0, 1])
    epochs = task_of(model_of(), data, cache_mb=0, overview_px=64, probes=0)
    for epoch in (0, 1):
        epoch_of(epochs, epoch)
    assert sum(mpp == 1.5 for _, mpp in data.reads) == 4


class SlowData(Data):
    """Slides that take a while to be read; of those that are ``broken`` nothing can be."""

    def __init__(self, *labels, **options):
        self.now, self.broken = [], set()
        self._lock = Lock()
        super().__init__(*labels, **options)

    def _watch(self, slide_id, view):
        super()._watch(slide_id, view)
        read = view.read

        def slow(box, mpp):
            with self._lock:
                self.now.append(slide_id)
            time.sleep(0.02)  # a slow disk
            try:
                if slide_id in self.broken:
                    raise SlideError(f"{slide_id} is broken")
                return read(box, mpp)
            finally:
                with self._lock:
                    self.now.remove(slide_id)

        view.read = slow


def test_works_that_are_skipped_on_resuming_read_nothing():
    data = SlowData([0, 1] * 4)
    task = task_of(model_of(), data, probes=0, overview_px=64)
    works = task.epoch(0, STAGE)
    for _ in range(3):
        next(works)
    time.sleep(0.1)  # time enough for a thread to begin what it should not
    assert data.reads == []
    last = next(works)
    task.step(last, 0, lambda _: None)
    works.close()
    assert {slide_id for slide_id, _ in data.reads} == set(last.slides)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_next_batch_of_this_process_is_copied_during_a_step(monkeypatch, processes):
    monkeypatch.setattr("slidelens.families.magnet_train.processes", lambda: processes)
    data = SlowData([0, 1] * 4)
    task = task_of(model_of(), data, probes=0, overview_px=64)
    works = list(task.epoch(0, STAGE))
    task.step(works[0], 0, lambda _: None)
    wait(task.slides._coming.values())
    read = {slide_id for slide_id, _ in data.reads}
    assert read == {*works[0].slides, *works[processes].slides}
    task.slides.drop()


def test_closing_an_epoch_waits_until_no_slide_is_read():
    data = SlowData([0, 1] * 15)
    task = task_of(model_of(), data, probes=0, train_batch=10, overview_px=64)
    works = task.epoch(0, STAGE)
    task.step(next(works), 0, lambda _: None)
    assert len(task.slides._coming) == 8  # of the ten that come next: few slides stay open
    next(works)
    works.close()
    assert data.now == []
    read = len(data.reads)
    time.sleep(0.1)  # five reads' time, if any were left
    assert len(data.reads) == read


def test_a_copy_that_failed_is_not_remembered():
    data = SlowData([0, 1] * 2)
    task = task_of(model_of(), data, probes=0, overview_px=64)
    works = task.epoch(0, STAGE)
    first = next(works)
    data.broken = {s.slide_id for s in data.train} - set(first.slides)
    task.step(first, 0, lambda _: None)
    with pytest.raises(SlideError, match="is broken"):
        task.step(next(works), 0, lambda _: None)
    works.close()
    data.broken = set()
    done, _ = epoch_of(task, 1)
    assert len(done) == 2


def test_where_a_window_cannot_be_read_the_others_are_waited_for(monkeypatch):
    data = SlowData([0])
    task = task_of(model_of(), data, overview_px=64)
    sight = Sight(["s0"], [0])
    eyes = task.slides.eyes(sight)
    read = Eye.read

    def fails(eye, window, side):
        if window[1] < 0:
            raise SlideError("broken")
        return read(eye, window, side)

    monkeypatch.setattr(Eye, "read", fails)
    windows = torch.tensor([[[0.2, x, 0.0] for x in (-0.5, 0.1, 0.2, 0.3)]])
    with pytest.raises(SlideError, match="broken"):
        task.slides.read(sight, eyes, windows, 32, 0)
    assert data.now == []


def test_the_same_seed_sees_the_same_and_another_epoch_does_not():
    def probes(epoch):
        model = model_of()
        seen = []
        model.module.register_forward_hook(
            lambda _m, _args, kwargs, _out: seen.append(kwargs["probes"]), with_kwargs=True
        )
        torch.manual_seed(0)
        _, losses = epoch_of(task_of(model, Data([0, 1])), epoch)
        return seen[0], losses[0].detach()

    one, again, other = probes(3), probes(3), probes(4)
    assert torch.equal(one[0], again[0])
    assert torch.equal(one[1], again[1])
    assert not torch.equal(one[0], other[0])


def test_probes_lie_where_there_is_tissue():
    pictures = torch.full((1, 3, 24, 24), 240, dtype=torch.uint8)
    pictures[0, 1, 4:8, 12:20] = 90
    (probes,) = draw_probes(pictures, 60, (0.1, 0.2), 0.0, np.random.default_rng(0))
    scale, x, y = probes.unbind(-1)
    assert ((scale >= 0.1) & (scale <= 0.2)).all()
    assert ((x >= 0) & (x < 20 / 12 - 1)).all()
    assert ((y >= 4 / 12 - 1) & (y < 8 / 12 - 1)).all()
    blank = torch.full((1, 3, 24, 24), 255, dtype=torch.uint8)
    drawn = draw_probes(blank, 60, (0.1, 0.2), 0.0, np.random.default_rng(0))
    assert drawn.shape == (1, 60, 3)


def test_warming_up_only_the_classifier_of_windows_learns():
    model = model_of()
    task = task_of(model, Data([0, 1]), warmup=1, probes=3, stray=0.0, window_weight=1.0)
    ((_, outcome),), (loss,) = epoch_of(task)
    assert len(outcome.losses) == 2
    loss.backward()
    module = model.module
    assert module.judge.single.weight.grad.any()
    assert all(p.grad is None for p in module.attention.parameters())
    assert all(p.grad is None for p in module.judge.memory.parameters())
    _, (after,) = epoch_of(task, 1)
    after.backward()
    assert any(p.grad is not None and p.grad.any() for p in module.attention.parameters())


FROZEN = Stage(epochs=1, lr=1e-3, head_lr=1e-2, trains="head")


def test_a_survey_looks_once_and_teaches_without_looking_again():
    data = Data([0, 1, 1], width=512, height=512)
    model = model_of(dropout=0.5)
    fields = {"survey": 6, "probes": 0, "warmup": 1, "probe_scales": (0.05, 0.06)}
    task = task_of(model, data, **fields, overview_px=64, stages=(FROZEN,))
    _, losses = epoch_of(task)
    fine = [r for r in data.reads if r[1] < 4.0]
    assert len(fine) == 3 * 6
    sum(losses).backward()
    judge = model.module.judge
    assert judge.single.weight.grad.any()
    known = torch.cat([one.vectors for one in task._known.values()])
    judge.eval()
    torch.testing.assert_close(judge.standard(known).mean(0), torch.zeros(known.shape[1]), **NEAR)
    data.reads.clear()
    epoch_of(task)
    assert not data.reads


def test_a_survey_leaves_a_model_that_is_fine_tuned_as_it_was():
    model = model_of()
    fields = {"survey": 4, "probes": 0, "warmup": 1, "stages": (FROZEN,), "overview_px": 64}
    judge = model.module.judge
    epoch_of(task_of(model, Data([0, 1], width=256, height=256), **fields))
    kept = judge.shift.clone()
    epoch_of(task_of(model, Data([0, 1], width=320, height=320), **fields))
    assert torch.equal(judge.shift, kept)


def test_the_first_probes_say_how_features_are_standardized():
    model = model_of()
    data = Data([0, 1], width=256, height=256)
    task = task_of(model, data, probes=16)
    judge = model.module.judge
    assert not judge.standardized
    epoch_of(task)
    kept = judge.shift.clone()
    looked = [task._looked_at(s, 16).vectors for s in ("s0", "s1")]
    torch.testing.assert_close(torch.cat(looked).mean(0), kept)
    epoch_of(task_of(model, data, probes=3), 1)
    assert torch.equal(judge.shift, kept)  # networks that learn are not standardized again


def test_what_is_known_lies_where_it_was_seen():
    """A window that is recalled on the turned slide shows what the survey saw there."""
    data = Data([1], width=256, height=256)
    model = model_of(patches=(1,))
    fields = {"survey": 8, "probes": 0, "stain": 0.0, "overview_px": 256}
    task = task_of(model, data, **fields, stages=(FROZEN,))
    next(iter(task.epoch(0, FROZEN)))
    for way in range(8):
        sight = Sight(["s0"], [way], random=np.random.default_rng(3))
        windows, vectors = task._recalled(sight)
        eyes = task.slides.eyes(sight)
        there = task.slides.read(sight, eyes, windows, 32, 0)[0]
        survey_way = int(np.random.default_rng([5, crc32(b"s0")]).integers(0, 8))
        places = restore_windows(windows[0].numpy(), way).tolist()
        upright = [Eye(data.view("s0")).read(place, 32) for place in places]
        as_then = orient(torch.from_numpy(np.stack(upright)).permute(0, 3, 1, 2), survey_way)
        seen = model.module.judge.features(task.slides.prepared(as_then, sight))
        torch.testing.assert_close(seen, vectors[0], atol=2e-3, rtol=2e-2)
        again = orient(torch.from_numpy(np.stack(upright)).permute(0, 3, 1, 2), way)
        assert torch.equal(there, again)


def test_scouting_teaches_attention_alone_by_what_the_classifier_says_without_dropout():
    model = model_of(dropout=0.5)
    data = Data([0, 1], width=512, height=512)
    fields = {"survey": 6, "probes": 0, "scouting": 1, "stages": (FROZEN,), "overview_px": 512}
    task = task_of(model, data, **fields)
    ((_, outcome),), (loss,) = epoch_of(task)
    loss.backward()
    module = model.module
    assert len(outcome.losses) == 2
    assert all(any(p.grad.any() for p in a.parameters()) for a in module.attention)
    assert all(p.grad is None for p in module.judge.parameters())
    _, (again,) = epoch_of(task)
    assert torch.equal(loss, again)  # nothing is left out by chance
    epoch_of(task, 1)
    assert module.judge.training


def test_training_with_stain_jitter_looks_where_inference_looks():
    """The grey filter's black stays black: jitter lightens it, and glass would count as tissue."""
    array = pixels(width=512, height=512)
    array[64:] = 230  # glass
    data = Data([1])
    data.views["s0"] = view_of(array)
    model = model_of(spread=False, tissue=True, patches=(1, 1), frozen=False)
    windows = []
    for stain in (0.0, 0.3):
        task = task_of(model, data, stain=stain)
        seen, _ = task._see(Sight(["s0"], [0], [(7,)] if stain else ()))
        windows.append(seen.windows[0][0, 0].detach())
    still, jittered = windows
    assert still[2] < -0.7  # in the strip of tissue, not in the middle
    torch.testing.assert_close(jittered, still)


def test_after_scouting_attention_learns_at_its_own_rate_and_leaves_nothing_out():
    model = model_of()
    stages = (Stage(epochs=2, lr=1e-3, head_lr=0.1), Stage(epochs=1, lr=1e-3, head_lr=0.1))
    fields = {"probes": 2, "warmup": 1, "scouting": 1, "stages": stages}
    zoom = {id(p) for p in model.module.attention.parameters()}
    for rate, expected in ((1.0, {0.1}), (0.01, {0.001}), (0.0, set())):
        task = task_of(model, Data([0, 1]), **fields, zoom_rate=rate)
        rates = [
            {lr for lr, parameters in task.groups(stage) for p in parameters if id(p) in zoom}
            for stage in task.config.stages
        ]
        assert rates == [{0.1}, expected]
    said = []
    for epoch in range(3):
        epoch_of(task, epoch)
        said.append((model.module.attention.training, model.module.judge.training))
    assert said == [(False, True), (True, False), (False, True)]
    with pytest.raises(ValidationError, match=r"zoom_rate 0\.1: is for the stages after"):
        training(probes=2, warmup=1, zoom_rate=0.1)


def test_a_survey_is_for_frozen_networks():
    with pytest.raises(ValidationError, match="survey 4: what windows show is kept while networks"):
        training(survey=4)
    with pytest.raises(ValidationError, match="scouting 3: needs probes or a survey"):
        training(scouting=3, probes=0)


def test_warming_up_needs_probes():
    with pytest.raises(ValueError, match="warmup 2: needs probes or a survey"):
        training(warmup=2, probes=0)


@pytest.mark.parametrize("field", ["warmup", "scouting"])
def test_what_learns_first_is_for_stages_that_do_not_end_early(field):
    with pytest.raises(ValidationError, match=r"patience 2: .* set patience to 0"):
        training(patience=2, **{field: 1})
    assert training(patience=2).patience == 2


def test_stray_probes_lie_anywhere():
    pictures = torch.full((1, 3, 24, 24), 240, dtype=torch.uint8)
    pictures[0, 1, 4:8, 12:20] = 90
    (probes,) = draw_probes(pictures, 60, (0.1, 0.2), 1.0, np.random.default_rng(0))
    assert (probes[:, 1] < 0).any()
    assert (probes[:, 2] > 0).any()


def test_foresight_finds_nothing_on_slides_of_the_first_class():
    """Whatever the classifier makes of windows: attention is told that there is nothing."""
    model = model_of()
    with torch.no_grad():
        model.module.judge.single.bias.fill_(20.0)
    task = task_of(model, Data([0, 0]), probes=4)
    sight = Sight(["s0", "s1"], [0, 0], random=np.random.default_rng(0))
    seen, probes = task._see(sight)
    none, all_of_it = (
        task._foresight(seen, probes, torch.full((2,), label)).item() for label in (0, 1)
    )
    scores = [s.detach().clone().requires_grad_() for s in seen.scores]
    task._foresight(seen._replace(scores=tuple(scores)), probes, torch.zeros(2).long()).backward()
    assert none != all_of_it
    assert all((s.grad >= 0).all() for s in scores)  # less everywhere


@pytest.mark.parametrize("patches", [(4,), (2, 2)])
def test_tuning_is_inference_however_coarse_the_copy(run, patches):
    model = model_of(patches=patches, auxiliary_layers=())
    data = Data([0, 1], tune=[1], width=640, height=480)
    task = task_of(model, data, overview_px=96)
    model.module.eval()
    (work,) = task.evaluation()
    with torch.inference_mode():
        outcome = task.step(work, 0, None)
    *_, score = run(model, data.view("t0"))
    assert outcome.probabilities[0] == pytest.approx(score.probabilities, abs=1e-5)


def test_the_head_alone_learns_without_the_networks():
    task = task_of(model_of(), Data([0, 1]))
    frozen = Stage(epochs=1, lr=1e-3, head_lr=1e-2, trains="head")
    ((rate, head),) = task.groups(frozen)
    both = task.groups(STAGE)
    assert rate == 1e-2
    assert [lr for lr, _ in both] == [1e-2, 1e-3]
    mine = {id(p) for p in head}
    assert not mine & {id(p) for p in both[1][1]}
    assert len(mine) + len(both[1][1]) == len(list(task.model.module.parameters()))


def test_weights_are_for_networks_that_have_them(tmp_path):
    with pytest.raises(ModelError, match="small has no ImageNet weights: use --weights none"):
        MagNetTask.initialize(model_of(), "imagenet")
    assert MagNetTask.initialize(model_of(), "none") == {"backbone_weights": "random"}
    from safetensors.torch import save_file
    from torchvision.models import squeezenet1_1

    weights = squeezenet1_1().state_dict()
    save_file(weights, tmp_path / "w.safetensors")
    model = model_of(backbone="squeezenet1_1")
    said = MagNetTask.initialize(model, str(tmp_path / "w.safetensors"))
    assert said == {"backbone_weights": {"squeezenet1_1": "w.safetensors"}}
    got = model.module.judge.features.state_dict()["trunk.features.0.weight"]
    assert torch.equal(got, weights["features.0.weight"])


def test_flips_can_be_left_out():
    model, data = model_of(), Data([0, 1])
    task = task_of(model, data, flips=False, stain=0.0, probes=0)
    first = []
    model.module.register_forward_pre_hook(lambda _m, args: first.append(args[0]))
    epoch_of(task)
    from slidelens.families.magnet import prepare

    slide_id = next(task.epoch(0, STAGE)).slides[0]
    plain = Eye(data.view(slide_id)).read((1.0, 0.0, 0.0), 24)
    expected = prepare(torch.from_numpy(plain).permute(2, 0, 1)[None], model)
    torch.testing.assert_close(first[0][:1], expected, atol=0.05, rtol=0)


def test_the_finest_resolution_is_that_of_the_smallest_window():
    """A network whose windows stay large never reads at its ``mpp``, so a coarse slide will do."""
    config = MagNetConfig(patches=(2, 2), least=0.25, look=100, mpp=0.25)
    assert config.finest_mpp(16_000) == 16_000 / 16 / 100
    assert config.finest_mpp(100) == 0.25


@pytest.mark.parametrize(("asked", "used"), [("auto", "fp32"), ("bf16", "bf16")])
def test_bfloat16_only_where_it_is_asked_for(monkeypatch, asked, used):
    """A rounding may lead the first look elsewhere, and the answer with it."""
    monkeypatch.setattr("slidelens.engine.device._has_bf16", lambda _: True)
    image = np.full((256, 256, 3), 200, np.uint8)
    image[64:192, 64:192] = (150, 60, 130)
    slide = from_array(image, mpp=0.5)
    assert predict(slide, model_of(), precision=asked, device="cpu").software["precision"] == used
    whole = TissueSettings(method="whole")
    assert predict(slide, "demo-mil", tissue=whole, device="cpu").software["precision"] == "bf16"


@pytest.mark.parametrize(("asked", "used"), [("auto", "32-true"), ("bf16", "bf16-mixed")])
def test_training_rounds_no_more_than_running(monkeypatch, tmp_path, asked, used):
    """Tuning says what the model will give: it must look where that looks."""
    monkeypatch.setattr("slidelens.engine.device._has_bf16", lambda _: True)
    cohort = make_cohort(tmp_path / "cohort")
    overrides = {"precision": asked, "backbone": "small", "auxiliary": "small"}
    given = [cohort / "slides", cohort / "labels.csv", tmp_path / "model"]
    plan = plan_training("magnet", *given, weights="none", device="cpu", overrides=overrides)
    fabric, _ = _fabric(plan)
    assert fabric.strategy.precision.precision == used
