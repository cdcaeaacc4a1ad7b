"""What a family breaks, in a run or in a training, is told in a sentence that names it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import tiny_family
import torch
from pydantic import Field

from slidelens.engine.cohort import predict_cohort
from slidelens.engine.contract import blaming, build_network
from slidelens.engine.predict import predict
from slidelens.engine.progress import Progress
from slidelens.engine.train import train
from slidelens.errors import ModelError, PluginError
from slidelens.families import FAMILIES
from slidelens.families.base import MapSpec, Patch, SlideScore
from slidelens.families.mil import MilConfig
from slidelens.families.mil_train import MilTask
from slidelens.families.training import Outcome, Work
from slidelens.nn.encoders import ENCODERS, encoder_facts
from slidelens.slide.array import from_array
from slidelens.tiling.tissue import TissueSettings
from train_cohort import make_cohort, request

SCORE = SlideScore((0.5, 0.5))
BOX = np.array([[0.0, 0, 16, 16]])
HALF = np.full((1, 2), 0.5, np.float32)


@pytest.fixture
def run(tiny, monkeypatch):
    """Run a changed family, as a plugin, on a slide of 64 x 48 px, all tissue."""

    def run(**changes):
        family = replace(tiny_family.FAMILY, **changes)
        monkeypatch.setitem(FAMILIES._loaded, "tiny", family)
        monkeypatch.setitem(FAMILIES.__dict__, "_plugins", {"tiny": None})
        with from_array(np.zeros((48, 64, 3), np.uint8), mpp=1.0, name="s") as slide:
            return predict(slide, tiny, tissue=TissueSettings(method="whole"))

    return run


def patch(boxes=BOX, values=HALF):
    return Patch("probability", boxes, values)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (0.7, "infer gave a float; expected Patch, Bag"),
        (None, "infer gave None; expected Patch, Bag"),
        (patch(values=HALF[:, :1]), r"values of shape \(1, 1\) for 1 boxes; expected \(1, 2\)\."),
        (patch(values=HALF[0]), r"values of shape \(2,\) for 1 boxes"),
        (patch(values=np.zeros((1, 2, 4, 4))), r"shape \(1, 2, 4, 4\) for 1 boxes"),
        (patch(values=HALF * 100), r"values from 50 to 50; expected 0 to 1, or NaN"),
        (patch(BOX + 64), r"box \[64.0, 64.0, 80.0, 80.0\] is not one of this slide of 64 x 48"),
        (patch(BOX * (1, 1, 0, 1)), "is not one of this slide"),
        (patch(BOX * np.nan), "is not one of this slide"),
        (patch([["a", 0, 1, 1]]), "boxes and values must be arrays"),
        (SCORE, "infer gave a SlideScore after the SlideScore"),
    ],
)
def test_an_event_that_cannot_be_is_told(run, event, message):
    with pytest.raises(ModelError, match=rf"family 'tiny' \(model 'tiny-model'\): .*{message}"):
        run(infer=lambda model, view: iter([SCORE, event] if event is SCORE else [event]))


def test_events_of_other_number_types_are_taken(run):
    events = [
        patch(BOX.astype(np.int32).tolist(), torch.tensor(HALF).half()),
        patch(BOX + np.array([16, 0, 0, 0]), HALF * np.nan),  # not looked at
        SlideScore(torch.tensor([0.25, 0.75])),
    ]
    result = run(infer=lambda model, view: iter(events))
    assert result.probabilities == {"normal": 0.25, "tumour": 0.75}
    assert result.tiles.probabilities[0].tolist() == [0.5, 0.5]


def test_a_family_may_fill_its_arrays_anew(run):
    def infer(model, view):
        box, values = BOX.copy(), HALF.copy()
        for i in range(2):
            box[0, 0], values[:] = 16 * i, (1 - i, i)
            yield patch(box, values)
        yield SCORE

    result = run(infer=infer)
    assert result.tiles.boxes[:, 0].tolist() == [0, 16]
    assert result.tiles.probabilities.tolist() == [[1, 0], [0, 1]]
    assert result.maps["probability"].read()[:, 0, :2].tolist() == [[1, 0], [0, 1]]


def test_who_looks_at_the_maps_leaves_what_is_wrong_to_the_run(tiny, monkeypatch, tmp_path):
    events = [patch(values=HALF * 100), Patch.empty("probability", 2), SCORE]
    family = replace(tiny_family.FAMILY, infer=lambda model, view: iter(events))
    monkeypatch.setitem(FAMILIES._loaded, "tiny", family)
    tifffile.imwrite(tmp_path / "s.tif", np.zeros((48, 64, 3), np.uint8))
    whole = TissueSettings(method="whole")
    for event in predict_cohort(tmp_path, tiny, tmp_path / "out", mpp=1.0, tissue=whole):
        if isinstance(event, Progress):
            event.peek()
    assert event.status == "failed"
    assert "values from 50 to 50" in event.error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../x"}, "has a name that cannot be used"),
        ({"name": "tissue"}, "has a name that cannot be used"),
        ({"kind": "heat"}, "is of kind 'heat'; the kinds are probability"),
        ({"channels": "ab"}, "has channels 'ab'; expected a tuple"),
        ({"channels": ()}, "expected a tuple of one name or more"),
        ({"mpp": 0.0}, "cells of 0.0 µm; expected more than 0"),
        ({"mpp": 0.001}, r"cells of 0.001 µm, 3\.1e\+09 of them; expected 0.125 µm or more"),
        ({}, "is declared twice"),
    ],
)
def test_a_map_that_cannot_be_drawn_is_told(run, change, message):
    spec = MapSpec("probability", "probability", ("normal", "tumour"), 16.0)
    with pytest.raises(ModelError, match=rf"family 'tiny' .*its map .*{message}"):
        run(maps=lambda config, classes: [spec, replace(spec, **change)])


def test_a_map_in_which_nothing_is_drawn_is_told(run, caplog):
    run(infer=lambda model, view: iter([SCORE]))
    assert "s: family 'tiny' (model 'tiny-model'): declared maps in which it drew" in caplog.text
    caplog.clear()
    run()
    assert "drew nothing" not in caplog.text


def _raises(*_):
    raise KeyError("cls_token")
    yield


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"infer": _raises}, "failed to run: KeyError: 'cls_token'"),
        ({"infer": lambda model, view: None}, "failed to run: TypeError: infer gave None"),
        ({"maps": lambda config, classes: None}, "failed to declare its maps: .*maps gave None"),
    ],
)
def test_a_plugin_that_raises_is_named(run, changes, message):
    with pytest.raises(PluginError, match=rf"plugin 'tiny' \(group .*\) {message}") as caught:
        run(**changes)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("given", [None, 1 / 3])
def test_a_plugin_that_builds_no_network_is_named(tiny, monkeypatch, given):
    monkeypatch.setitem(FAMILIES.__dict__, "_plugins", {"tiny": None})
    family = replace(tiny_family.FAMILY, build=lambda config, n: given)
    with pytest.raises(PluginError, match=r"'tiny' .* failed to build its network: .* gave"):
        build_network(family, tiny.config, 2)


def test_what_a_built_in_raises_keeps_its_traceback(tiny, monkeypatch):
    family = replace(tiny_family.FAMILY, infer=_raises)
    monkeypatch.setitem(FAMILIES._loaded, "tiny", family)
    with from_array(np.zeros((48, 64, 3), np.uint8), mpp=1.0) as slide, pytest.raises(KeyError):
        predict(slide, tiny)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("cohort"))


def _without_backward(self, work, epoch, backward, step=MilTask.step):
    return step(self, work, epoch, lambda loss: None)


def _one_probability(self, work, epoch, backward, step=MilTask.step):
    outcome = step(self, work, epoch, backward)
    return Outcome(outcome.losses, ((0.5,),)) if work.phase == "tune" else outcome


@pytest.mark.parametrize(
    ("member", "value", "message"),
    [
        ("step", _without_backward, "its training changes no weight"),
        ("epoch", lambda self, epoch, stage: iter(()), "its training changes no weight"),
        (
            "epoch",
            lambda self, epoch, stage: iter([Work("training", ("a",), (0,))]),
            "it trains in phase 'training'; expected scan, train, tune",
        ),
        (
            "step",
            lambda self, work, epoch, backward: None,
            "a scan step gave None; expected an Outcome",
        ),
        ("step", _one_probability, "a tune step gave .* a loss and 2 finite probabilities"),
    ],
)
def test_a_training_that_cannot_learn_ends_in_no_model(
    cohort, tmp_path, monkeypatch, member, value, message
):
    monkeypatch.setattr(MilTask, member, value)
    with pytest.raises(ModelError, match=rf"family 'mil' \(model 'm'\): {message}"):
        list(train(**request(cohort, tmp_path / "m")))
    assert not (tmp_path / "m" / "model.json").exists()


@pytest.mark.parametrize(
    ("member", "value", "message"),
    [
        ("step", lambda *_: [][5], "IndexError"),
        ("initialize", classmethod(lambda cls, model, weights: None), "initialize gave None"),
    ],
)
def test_training_steps_of_a_plugin_that_raise_are_named(
    cohort, tmp_path, monkeypatch, member, value, message
):
    monkeypatch.setitem(FAMILIES.__dict__, "_plugins", {"mil": None})
    monkeypatch.setattr(MilTask, member, value)
    with pytest.raises(PluginError, match=rf"plugin 'mil' .* failed to train: .*{message}"):
        list(train(**request(cohort, tmp_path / "m")))


def test_a_model_that_could_not_be_packaged_is_told_before_it_learns(cohort, tmp_path, monkeypatch):
    class WithoutMpp(MilConfig):
        mpp: float = Field(0.5, exclude=True)

    monkeypatch.setitem(FAMILIES._loaded, "mil", replace(FAMILIES.get("mil"), config=WithoutMpp))
    steps = train(**request(cohort, tmp_path / "m"))
    with pytest.raises(ModelError, match="cannot package model 'm': mpp"):
        next(steps)


def test_an_encoder_of_a_plugin_that_fails_is_named(monkeypatch):
    monkeypatch.setitem(ENCODERS.__dict__, "_plugins", {"theirs": None})
    config = SimpleNamespace(backbone="theirs/small")
    with (
        pytest.raises(PluginError, match=r"plugin 'theirs' \(group slidelens.backbones\) failed"),
        blaming("mil", config, "to build its network"),
    ):
        {}["weights"]
    source = SimpleNamespace(facts=lambda variant: {}[variant])
    monkeypatch.setitem(ENCODERS._loaded, "theirs", source)
    with pytest.raises(PluginError, match=r"plugin 'theirs' .* failed to state its facts: KeyErr"):
        encoder_facts("theirs/small")
    for error in (ModelError("foreseen"), torch.OutOfMemoryError("full")):
        with pytest.raises(type(error)), blaming("mil", config, "to run"):
            raise error


def test_a_work_of_an_unknown_slide_is_told(cohort, tmp_path, monkeypatch):
    works = [Work("scan", ("nosuch",), (0,))]
    monkeypatch.setattr(MilTask, "epoch", lambda self, epoch, stage: iter(works))
    with pytest.raises(ValueError, match="no slide 'nosuch' is trained on"):
        list(train(**request(cohort, tmp_path / "m")))
