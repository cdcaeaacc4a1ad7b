"""The training engine end to end, on a cohort of tiny slides: resumes exactly, fails well."""

from __future__ import annotations

import csv
import json
import random
import shutil
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.torch import load_file

from slidelens.engine.labels import read_labels
from slidelens.engine.learnt import learnt_from
from slidelens.engine.package import load_model
from slidelens.engine.predict import predict
from slidelens.engine.train import train
from slidelens.engine.training import loop, samples
from slidelens.engine.training.file import read_train_file, train_arguments
from slidelens.engine.training.record import write_curves
from slidelens.errors import LabelError, ModelError, ResultError, SlideError
from slidelens.families.mil import MilConfig
from slidelens.geometry import Box, Mpp
from slidelens.slide.base import Slide
from slidelens.slide.openslide import OpenSlideReader
from train_cohort import make_cohort, request
from warm import Warm

STEPS = 8  # per epoch: 4 scans, 2 batches, 2 tuning slides


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture
def save_always(monkeypatch):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(loop, "SAVE_SHARE", 0.0)


@pytest.fixture(scope="module")
def reference(cohort, tmp_path_factory):
    """A model trained without interruption, and its progress; with its curves."""
    out = tmp_path_factory.mktemp("reference") / "my model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slidelens.engine.train.write_curves", write_curves)
        return out, list(train(**request(cohort, out)))


def _weights(out: Path) -> bytes:
    return (out / "weights.safetensors").read_bytes()


def test_a_package_tells_of_a_slide_whether_it_was_trained_on_and_lists_none(reference, cohort):
    out, _ = reference
    card = load_model(out, "cpu").card
    rows = read_labels(out / "training" / "slides.csv").rows
    assert {row.split for row in rows} == {"train", "tune"}
    assert [learnt_from(card, row.slide_id) for row in rows] == [row.split for row in rows]
    assert learnt_from(card, "another") is None
    assert not any(f'"{row.slide_id}"' in (out / "model.json").read_text() for row in rows)
    slide = next((cohort / "slides").glob(f"{rows[0].slide_id}.*"))
    assert predict(slide, out, device="cpu").model.learnt_from == rows[0].split


def test_learns_and_writes_a_package_that_runs(reference):
    out, progress = reference
    model = load_model(out, "cpu")
    assert model.name == "my-model"
    assert model.classes == ("normal", "tumour")
    assert model.card["training_data"]["slides"]["train"] == {"normal": 2, "tumour": 2}
    assert model.card["training"]["seed"] == 1
    assert model.card["metrics"]["slides"] == 2
    assert progress[-1].doing == "done"
    assert progress[-1].tune_auc == model.card["metrics"]["auc"]
    assert 0 <= model.card["threshold"] <= 1
    assert model.card["threshold_rule"] == "maximum balanced accuracy on the tuning split"
    rows = list(csv.DictReader((out / "training" / "history.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["stage"] for row in rows] == ["1", "2", "2"]
    assert [float(row["lr"]) for row in rows] == pytest.approx([1e-3, 1e-3, 5e-4])
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert sorted(p.name for p in (out / "training").iterdir()) == [
        ".lock",
        "config.yaml",
        "contents.json",
        "curves.png",
        "history.csv",
        "slides.csv",
        "tensorboard",
        "tune.csv",
    ]
    with Image.open(out / "training" / "curves.png") as curves:
        assert min(curves.size) > 300
    assert model.card["training"]["software"]["precision"] == "fp32"
    assert model.card["training"]["software"]["device"].startswith("cpu")


def test_progress_counts_every_step(reference):
    _, progress = reference
    steps = [p for p in progress if p.doing in ("scan", "train", "tune")]
    assert [p.done for p in steps] == [*range(1, STEPS + 1)] * 3
    assert {p.total for p in steps} == {STEPS}
    assert [p.epoch for p in steps] == [1] * STEPS + [2] * STEPS + [3] * STEPS
    assert {p.epochs for p in steps} == {3}
    assert [p.doing for p in progress[:6]] == ["open"] * 6
    assert [p.doing for p in progress[-3:]] == ["score", "score", "done"]
    assert all(p.epoch <= p.epochs for p in progress)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(cohort, reference, tmp_path):
    list(train(**request(cohort, tmp_path / "same")))
    list(train(**request(cohort, tmp_path / "other", seed=2)))
    assert _weights(tmp_path / "same") == _weights(reference[0])
    assert _weights(tmp_path / "other") != _weights(reference[0])


def test_random_numbers_of_the_caller_are_nothing_to_a_training(cohort, tmp_path):
    """Neither do they change its weights, nor does it change what the caller draws next."""

    def seeded():
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002  # reason: the global one
        torch.manual_seed(5)

    def drawn():
        return random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002

    dropout = {"pooling": "abmil", "features": "end-to-end", "dropout": "0.5"}
    for name in ("alone", "among"):
        steps = train(**request(cohort, tmp_path / name, epochs=1, overrides=dropout))
        seeded()
        found = [drawn() for step in steps if name == "among" and step.doing == "train"]
    load_model(tmp_path / "alone")
    found.append(drawn())
    seeded()
    assert len(found) > 1
    assert found == [drawn() for _ in found]
    assert _weights(tmp_path / "alone") == _weights(tmp_path / "among")


@pytest.mark.parametrize(
    "overrides", [{}, {"accumulate": "3", "train_batch": "1", "optimizer": "sgd"}]
)
def test_resumes_to_the_same_weights_from_any_step(
    cohort, save_always, monkeypatch, tmp_path, overrides
):
    whole = tmp_path / "whole"
    for number, _ in enumerate(train(**request(cohort, whole, overrides=overrides))):
        if (whole / "training" / "checkpoint.json").exists():  # what a kill here would leave
            shutil.copytree(whole / "training", tmp_path / f"killed-{number}" / "training")
    killed = sorted(tmp_path.glob("killed-*"), key=lambda p: int(p.name.split("-")[1]))
    assert len(killed) > 20
    monkeypatch.undo()  # those that go on save after each epoch, as all do that are so short
    for out in {*killed[::7], killed[-1]}:  # a scan, a batch, a tuning slide
        list(train(**request(cohort, out, overrides=overrides), resume=True))
        assert _weights(out) == _weights(whole), out.name
        history = "training/history.csv"
        assert (out / history).read_text() == (whole / history).read_text()


_CHILD = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from train_cohort import request
from slidelens.engine.training import loop
from slidelens.engine.train import train
loop.SAVE_SECONDS = loop.SAVE_SHARE = 0.0
for step in train(**request(Path({cohort!r}), Path({out!r}))):
    print(step.doing, flush=True)
"""


def test_two_trainings_do_not_share_a_folder(cohort, save_always, reference, tmp_path):
    """Neither one that begins anew nor one that goes on; the first ends as if alone."""
    out = tmp_path / "out"
    first = train(**request(cohort, out))
    second = train(**request(cohort, out))
    while next(first).doing == "open":
        pass
    with pytest.raises(ModelError, match="another training is at work in this folder"):
        list(second)
    with pytest.raises(ModelError, match="another training is at work in this folder"):
        next(train(**request(cohort, out), resume=True))  # before it looks at the slides
    *_, last = first
    assert last.doing == "done"
    assert _weights(out) == _weights(reference[0])


def test_sigkill_at_a_random_moment_then_resume(cohort, reference, tmp_path):
    out = tmp_path / "killed"
    code = _CHILD.format(tests=str(Path(__file__).parents[1]), cohort=str(cohort), out=str(out))
    survived = random.randint(7, 6 + 3 * STEPS)  # lines until the kill, 6 of them from opening
    child = Warm("-c", code)
    for _ in range(survived):
        assert child.stdout.readline()
    child.kill()
    assert child.wait() == -signal.SIGKILL
    child.close()
    list(train(**request(cohort, out), resume=True))
    assert _weights(out) == _weights(reference[0]), f"killed after {survived} lines"


def test_closing_the_iterator_saves(cohort, reference, tmp_path, caplog):
    out = tmp_path / "closed"
    steps = train(**request(cohort, out))
    for _ in range(6 + STEPS + 3):
        next(steps)
    steps.close()
    record = json.loads((out / "training" / "checkpoint.json").read_text())
    assert (record["position"]["epoch"], record["position"]["done"]) == (1, 2)
    assert not (out / "model.json").exists()
    with pytest.raises(ModelError, match="unfinished training; continue it with --resume"):
        train(**request(cohort, out))
    files = [out / "training" / name for name in ("config.yaml", "slides.csv")]
    before = [file.read_bytes() for file in files]
    with pytest.raises(ModelError, match=r"other settings \(seed: 1, now 9\)"):
        train(**request(cohort, out, seed=9), resume=True)
    assert [file.read_bytes() for file in files] == before  # they tell of what goes on
    list(train(**request(cohort, out), resume=True))
    assert _weights(out) == _weights(reference[0])
    train(**request(cohort, tmp_path / "mistyped"), resume=True).close()
    assert "mistyped holds no unfinished training" in caplog.text


def test_its_file_resumes_a_training_from_another_folder(cohort, reference, tmp_path, monkeypatch):
    """Places are kept as they are from anywhere, numbers as a file states them."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(reference[0], "start", ignore=shutil.ignore_patterns("training"))
    options = {"from_model": "start", "mpp": Mpp(0.5, 0.5), "fraction": np.float64(1)}
    steps = train(**request(cohort, Path("out"), seed=np.int64(1), **options))
    assert any(step.doing == "epoch" for step in steps)
    steps.close()
    monkeypatch.chdir("/")
    options, fields = read_train_file(tmp_path / "out" / "training" / "config.yaml")
    list(train(**train_arguments(options | {"out": tmp_path / "out"}, fields), resume=True))
    assert load_model(tmp_path / "out", "cpu").card["training"]["epochs"] == 3


def test_a_finished_model_is_not_overwritten(cohort, reference):
    for resume in (False, True):
        with pytest.raises(ModelError, match="already holds a model"):
            train(**request(cohort, reference[0]), resume=resume)


def test_no_epochs_are_no_training(cohort, tmp_path):
    with pytest.raises(ModelError, match=r"epochs must be at least 1, not 0\."):
        train(**request(cohort, tmp_path / "m", epochs=0))


def test_a_loss_that_is_not_finite_names_the_slide_and_keeps_the_checkpoint(cohort, tmp_path):
    out = tmp_path / "nan"
    stages = json.dumps(
        [{"epochs": 1, "lr": 1e-3, "head_lr": 1e-3}, {"epochs": 1, "lr": 1e30, "head_lr": 1e30}]
    )
    told = r"epoch 2: the \w+ of slides? s\d.*not.*finite.* lr and head_lr in .*--resume"
    with pytest.raises(ModelError, match=told):
        list(train(**request(cohort, out, overrides={"stages": stages})))
    record = json.loads((out / "training" / "checkpoint.json").read_text())
    assert record["position"]["epoch"] == 1
    tensors = load_file(out / "training" / record["tensors"])
    assert all(t.isfinite().all() for k, t in tensors.items() if k.startswith("model."))

    def again(**changed):  # as the message says
        options, fields = read_train_file(out / "training" / "config.yaml")
        return train(**train_arguments(options | {"out": out}, fields | changed), resume=True)

    lower = [dict(stage) for stage in json.loads(stages)]
    lower[1] |= {"lr": 1e-4, "head_lr": 1e-3}
    with pytest.raises(ModelError, match=r"other settings \(smoothing: 0.0, now 0.1\)"):
        again(stages=lower, smoothing=0.1)
    list(again(stages=lower, clip_norm=0.5))
    (_, last) = csv.DictReader((out / "training" / "history.csv").open())
    assert float(last["lr"]) == 1e-3
    training = load_model(out, "cpu").card["training"]
    assert training["changed_on_resume"] == [
        "epoch 2: clip_norm: 0.0, now 0.5",
        "epoch 2: lr of stage 2: 1e+30, now 0.0001",
        "epoch 2: head_lr of stage 2: 1e+30, now 0.001",
    ]
    assert (training["clip_norm"], training["stages"][1]["lr"]) == (0.5, 1e-4)


def test_a_full_disk_stops_with_what_to_do(cohort, tmp_path, monkeypatch):
    out = tmp_path / "full"
    steps = train(**request(cohort, out))
    while next(steps).doing != "epoch":
        pass
    before = (out / "training" / "checkpoint.json").read_text()

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ResultError, match=r"No space left.*--resume"):
        list(steps)
    monkeypatch.undo()
    assert (out / "training" / "checkpoint.json").read_text() == before
    list(train(**request(cohort, out), resume=True))
    assert (out / "model.json").exists()


def test_bad_slides_are_all_named_before_training(tmp_path):
    cohort = make_cohort(tmp_path / "c")
    (cohort / "slides" / "s1.tif").write_text("this is no slide")
    whole = (cohort / "slides" / "s4.tif").read_bytes()
    (cohort / "slides" / "s4.tif").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SlideError, match=r"(?s)2 of 6 slides.*s1: .*s4: ") as caught:
        list(train(**request(cohort, tmp_path / "m")))
    assert "s0" not in str(caught.value)
    assert "--slide-mpp" not in str(caught.value)
    assert not (tmp_path / "m" / "training" / "checkpoint.json").exists()


def test_slides_without_resolution_name_the_option_of_training(tmp_path):
    cohort = make_cohort(tmp_path / "c")
    path = cohort / "slides" / "s1.tif"
    tifffile.imwrite(path, tifffile.imread(path), tile=(32, 32), photometric="rgb")
    with pytest.raises(SlideError, match=r"(?s)1 of 6 slides.*s1: .*--slide-mpp"):
        list(train(**request(cohort, tmp_path / "m")))


def test_labels_without_slides_are_all_named(cohort, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id,label\ns0,a\nnowhere,b\ngone.svs,a\n")
    with pytest.raises(LabelError, match=r"nowhere, gone\.svs|gone\.svs, nowhere"):
        train(**{**request(cohort, tmp_path / "m"), "labels_csv": labels})


def test_fine_tuning_starts_from_the_package(cohort, reference, tmp_path):
    base = load_file(reference[0] / "weights.safetensors")
    stage = '[{"epochs": 1, "lr": 0.1, "head_lr": 0.001, "trains": "head"}]'
    tuned = request(cohort, tmp_path / "m", from_model=reference[0], overrides={"stages": stage})
    list(train(**tuned))
    weights = load_file(tmp_path / "m" / "weights.safetensors")
    changed = {k for k in base if not torch.equal(base[k], weights[k])}
    assert changed == {"head.weight", "head.bias"}
    model = load_model(tmp_path / "m", "cpu")
    assert model.config.backbone == "squeezenet1_1"
    assert model.card["training_data"]["from"] == "my-model"
    base_card = load_model(reference[0], "cpu").card["learnt_from"]
    assert model.card["learnt_from"] == base_card  # the same slides, which are in it once
    assert "from_classes" not in model.card["training_data"]
    with pytest.raises(ModelError, match="brings its own weights"):
        train(**request(cohort, tmp_path / "n", from_model=reference[0], weights="none"))
    with pytest.raises(
        ModelError, match=r"do not fit the changed configuration \([^()]*\): leave out.*--from\.$"
    ):
        list(train(**request(cohort, tmp_path / "n", from_model=reference[0], backbone="resnet18")))


def test_fine_tuning_for_other_classes_keeps_the_encoder(cohort, reference, tmp_path):
    labels = tmp_path / "labels.csv"
    classes = load_model(reference[0], "cpu").classes
    text = Path(request(cohort, tmp_path)["labels_csv"]).read_text()
    for old, new in zip(classes, ("stroma", "gland"), strict=True):
        text = text.replace(f",{old}", f",{new}")
    labels.write_text(text)
    stage = '[{"epochs": 1, "lr": 0.1, "head_lr": 0.001, "trains": "head"}]'
    given = {"from_model": reference[0], "overrides": {"stages": stage}}
    asked = {**request(cohort, tmp_path / "m", **given), "labels_csv": labels}
    with pytest.raises(LabelError, match="--classes"):
        list(train(**asked))
    list(train(**asked, classes=("stroma", "gland")))
    base = load_file(reference[0] / "weights.safetensors")
    weights = load_file(tmp_path / "m" / "weights.safetensors")
    assert {k for k in base if not torch.equal(base[k], weights[k])} == {"head.weight", "head.bias"}
    model = load_model(tmp_path / "m", "cpu")
    assert model.classes == ("stroma", "gland")
    assert model.card["training_data"]["from_classes"] == list(classes)


def test_statistics_of_batch_norm_stay_frozen(cohort, tmp_path):
    stage = '[{"epochs": 1, "lr": 0.01, "head_lr": 0.01}]'
    asked = request(cohort, tmp_path / "m", backbone="resnet18", overrides={"stages": stage})
    list(train(**asked))
    weights = load_file(tmp_path / "m" / "weights.safetensors")
    means = [v for k, v in weights.items() if k.endswith("running_mean")]
    assert means
    assert all((v == 0).all() for v in means)
    assert (weights["features.trunk.bn1.weight"] != 1).any()


def test_small_cache_reads_tiles_again_with_the_same_outcome(cohort, reference, tmp_path):
    list(train(**request(cohort, tmp_path / "m", overrides={"cache_mb": "0"})))
    assert _weights(tmp_path / "m") == _weights(reference[0])


def test_slides_far_coarser_than_the_model_reads_them_are_refused(cohort, tmp_path):
    asked = request(cohort, tmp_path / "m", overrides={"mpp": "0.5"}, mpp=5.0)
    message = r"6 of 6 slides cannot be used(.|\n)*s0.tif: its finest resolution is 5 µm/px"
    with pytest.raises(SlideError, match=message + r".*coarser resolution \(--mpp X\)"):
        list(train(**asked))
    assert not (tmp_path / "m" / "model.json").exists()


def test_coarse_slides_of_one_resolution_are_warned_of_once(cohort, caplog):
    config = MilConfig(tile=32, mpp=0.25)
    files = {f"s{i}": cohort / "slides" / f"s{i}.tif" for i in range(3)}
    device = torch.device("cpu")
    data = samples.TrainSlides([], [], files, device=device, cache_bytes=0, config=config)
    for name in files:
        data.view(name)
    data.close()
    assert caplog.text.count("its finest resolution is 0.5 µm/px") == 1
    assert "other slides of this resolution are not named" in caplog.text


def test_annotations_of_slides_that_qupath_crops_are_warned_of_once(cohort, monkeypatch, caplog):
    monkeypatch.setattr(Slide, "bounds", Box(100, 60, 50, 50))
    files = {f"s{i}": cohort / "slides" / f"s{i}.tif" for i in range(3)}
    drawn = {"s1": Path("s1.geojson"), "s2": Path("s2.geojson")}
    device = torch.device("cpu")
    data = samples.TrainSlides([], [], files, device=device, cache_bytes=0, annotations=drawn)
    for name in files:
        data.view(name)
    data.close()
    (said,) = caplog.messages
    assert said.startswith("s1: its annotations are displaced if")
    assert "x=100, y=60 px" in said


def test_a_view_that_is_closed_for_others_can_still_be_read(cohort, monkeypatch):
    """Threads of a family read from views; those of more slides than may be open are closed."""
    monkeypatch.setattr(samples, "_OPEN", 1)
    files = {f"s{i}": cohort / "slides" / f"s{i}.tif" for i in range(2)}
    data = samples.TrainSlides([], [], files, device=torch.device("cpu"), cache_bytes=0)
    view = data.view("s0")
    stored, events = view.slide.read, []
    reading, may_end = threading.Event(), threading.Event()

    def slow(*arguments):
        reading.set()
        assert may_end.wait(20)
        pixels = stored(*arguments)
        events.append("read")
        return pixels

    monkeypatch.setattr(view.slide, "read", slow)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(view.read, view.region, 0.5)
        assert reading.wait(20)
        other = threads.submit(data.view, "s1")  # there is no room for both
        other.add_done_callback(lambda _: events.append("opened"))
        assert not wait([other], timeout=0.2).done
        may_end.set()
        assert first.result().shape == (96, 96, 3)
        assert other.result().mpp == view.mpp
    assert events == ["read", "opened"]
    with pytest.raises(SlideError, match="closed"):
        stored(view.region, 0.5)
    assert (view.read(view.region, 0.5) == first.result()).all()
    data.close()


@pytest.mark.parametrize("stop", [None, 1])
def test_magnet_reads_no_slide_that_is_closed(cohort, tmp_path, monkeypatch, stop):
    """Neither while there are more slides than may be open, nor when the training is closed."""
    reading, broken = Counter(), []
    read, close = OpenSlideReader.read, OpenSlideReader.close

    def slow(self, *arguments):
        if not threading.current_thread().name.startswith("slidelens-magnet"):
            return read(self, *arguments)
        reading[self] += 1
        time.sleep(0.02)  # a slow disk: reads are under way when slides are closed
        try:
            return read(self, *arguments)
        finally:
            reading[self] -= 1

    def noted(self):
        broken.extend([self.path] * reading[self])
        close(self)

    monkeypatch.setattr(OpenSlideReader, "read", slow)
    monkeypatch.setattr(OpenSlideReader, "close", noted)
    monkeypatch.setattr(samples, "_OPEN", 1)
    fields = {"auxiliary": "small", "patches": "[1]", "auxiliary_layers": "[]", "glance": "16"}
    fields |= {"look": "32", "mpp": "0.5", "train_batch": "1", "precision": "fp32"}
    fields |= {"probes": "0", "window_weight": "0", "foresight_weight": "0"}
    fields["stages"] = '[{"epochs": 1, "lr": 0.001, "head_lr": 0.001}]'
    asked = request(cohort, tmp_path / "m", family_name="magnet", backbone="small")
    steps = train(**(asked | {"overrides": fields}))
    for step in steps:
        if step.doing == "train" and step.done == stop:
            steps.close()
    assert not broken
    assert not any(reading.values())
    assert (tmp_path / "m" / "model.json").exists() == (stop is None)
