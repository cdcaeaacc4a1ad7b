"""Multi-stage segmentation through the commands, on phantoms; resumed exactly; bad input named."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import slidelens as sl
from slidelens.cli.app import program
from slidelens.engine.train import train
from slidelens.engine.training import loop
from slidelens.errors import LabelError, ModelError, SlideError
from slidelens.testing.phantom import write_cohort
from slidelens.tiling.tissue import TissueSettings
from train_cohort import annotate, make_cohort, request

STAGES = [
    {"on": "patches", "trains": "head", "epochs": 1, "lr": 1e-3, "head_lr": 1e-2},
    {"on": "patches", "epochs": 1, "lr": 1e-4, "head_lr": 1e-3, "start": "last"},
    {"on": "map", "trains": "head", "epochs": 2, "lr": 1e-3, "head_lr": 1e-2},
    {"on": "map", "epochs": 1, "lr": 1e-5, "head_lr": 1e-3},
]


def _run(*words, monkeypatch):
    words = [str(word) for word in words]
    monkeypatch.setattr("sys.argv", ["slidelens", *words])  # `train` looks there for its families
    return CliRunner().invoke(program(), words)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_cohort(folder, 4, 3, size=(512, 512), mpp=2.0, tune=0.5)
    return folder


def test_train_and_predict_through_the_commands(phantoms, tmp_path, monkeypatch):
    model, results = tmp_path / "m", tmp_path / "results"
    done = _run(
        *("train", "multistage", "--slides", phantoms / "slides"),
        *("--labels", phantoms / "labels.csv", "--annotations", phantoms / "annotations"),
        *("--backbone", "squeezenet1_1", "--weights", "none", "--tile", 64, "--mpp", 2),
        *("--width", 4, "--depth", 1, "--min-tissue", 0.5, "--device", "cpu", "--out", model),
        *("--set", f"stages={json.dumps(STAGES)}", "--set", "map_batch=2", "--json"),
        *("--tissue", "otsu", "--tissue", "max-hole=50000"),
        monkeypatch=monkeypatch,
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["epochs"] == 5
    card = json.loads((model / "model.json").read_text())
    assert (card["family"], card["classes"]) == ("multistage", ["normal", "tumor"])
    assert card["config"]["tile"] == 64
    assert (card["tissue"]["method"], card["tissue"]["max_hole"]) == ("otsu", 50000)
    rows = list(csv.DictReader((phantoms / "labels.csv").open()))
    slide = phantoms / "slides" / f"{rows[-1]['slide_id']}.tif"
    done = _run(
        *("predict", slide, "--model", model, "--out", results, "--set", "fine=2"),
        *("--set", "lumps=separate", "--device", "cpu", "--json"),
        monkeypatch=monkeypatch,
    )
    assert done.exit_code == 0, done.output
    result = sl.Result.load(results / "m" / slide.stem)
    assert result.settings.tissue == card["tissue"]
    assert sum(result.probabilities.values()) == pytest.approx(1)
    drawn = result.maps["probability"]
    assert (drawn.mpp, drawn.channels) == (64.0, ("normal", "tumor"))
    tumour = drawn.read()[1]
    labels = result.maps["segmentation"].read()[0]
    assert ((tumour >= 0.5) == (labels == 1)).all()
    options, other = {"lumps": "separate"}, TissueSettings(min_area=9000)
    plain = sl.predict(slide, model, options=options, tissue=other, device="cpu")
    assert plain.settings.tissue == card["tissue"] | {"min_area": 9000}
    highest = np.nanmax(plain.maps["probability"].read()[1])
    assert plain.probabilities["tumor"] == pytest.approx(highest, abs=1e-6)
    assert result.probabilities["tumor"] == pytest.approx(highest, abs=1e-6)
    assert sum(r.area_mm2 for r in result.regions) == pytest.approx(labels.sum() * 0.064**2)
    assert len(result.tiles) == int(np.isfinite(tumour).sum())


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Slides of 3 x 3 tiles; the dark one is annotated."""
    return annotate(make_cohort(tmp_path_factory.mktemp("cohort")))


def _request(cohort, out, **options):
    overrides = {"stages": json.dumps(STAGES), "map_batch": "2", "depth": "1", "width": "4"}
    overrides |= options.pop("overrides", {})
    given = request(cohort, out, overrides=overrides, **options)
    del given["overrides"]["warm_steps"]  # of MIL
    return {"annotations": cohort / "annotations", **given, "family_name": "multistage"}


def _weights(folder):
    return (folder / "weights.safetensors").read_bytes()


def test_resumes_to_the_same_weights_in_every_stage(cohort, tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", {}
    with monkeypatch.context() as always:
        always.setattr(loop, "SAVE_SECONDS", 0.0)
        always.setattr(loop, "SAVE_SHARE", 0.0)
        for _ in train(**_request(cohort, whole)):
            if (whole / "training" / "checkpoint.json").exists():  # what a kill here would leave
                record = json.loads((whole / "training" / "checkpoint.json").read_text())
                position = record["position"]
                out = tmp_path / f"killed-{position['epoch']}"
                if position["done"] == 2:
                    shutil.copytree(whole / "training", out / "training", dirs_exist_ok=True)
                    killed[out] = position["stage"]
    assert sorted(killed.values()) == [0, 1, 2, 2, 3]
    for out in killed:
        list(train(**_request(cohort, out), resume=True))
        assert _weights(out) == _weights(whole), out.name


def test_a_model_continues_from_a_classifier_and_learns(cohort, tmp_path):
    """Separate Learning in two commands; a dark tile is easily told."""
    first, second = tmp_path / "classifier", tmp_path / "separate"
    patches = [s | {"epochs": 6} for s in STAGES if s["on"] == "patches"]
    overrides = {"method": "classifier", "stages": json.dumps(patches), "crop": "1"}
    list(train(**_request(cohort, first, overrides=overrides)))
    overrides = {"method": "multistage", "stages": json.dumps([STAGES[2] | {"epochs": 20}])}
    *_, last = train(**_request(cohort, second, from_model=first, overrides=overrides))
    assert last.tune_auc == 1
    before, after = (load_file(model / "weights.safetensors") for model in (first, second))
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_what_training_lacks_is_said_at_once(cohort, tmp_path):
    with pytest.raises(ModelError, match="learns from annotations: say which folder"):
        train(**_request(cohort, tmp_path / "m") | {"annotations": None})
    (tmp_path / "none").mkdir()
    with pytest.raises(LabelError, match="for 3 positive slides: s1, s3, s5"):
        train(**_request(cohort, tmp_path / "m") | {"annotations": tmp_path / "none"})


def test_annotations_that_do_not_fit_are_listed_before_the_first_step(cohort, tmp_path):
    folder = tmp_path / "annotations"
    shutil.copytree(cohort / "annotations", folder)
    (folder / "s1.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    square = [[9000, 0], [9100, 0], [9100, 100], [9000, 0]]
    (folder / "s3.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [square]}))
    (folder / "s5.geojson").write_text("no GeoJSON")
    steps = train(**_request(cohort, tmp_path / "m") | {"annotations": folder})
    with pytest.raises(SlideError, match="3 of 6 slides cannot be used") as caught:
        list(steps)
    text = str(caught.value)
    assert "s1: labelled 'tumour', but no tumour is drawn" in text
    assert "x=9000..9100" in text
    assert "s5.geojson: neither JSON nor XML" in text
    assert not (tmp_path / "m" / "model.json").exists()
