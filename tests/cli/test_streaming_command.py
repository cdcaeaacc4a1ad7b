"""Streaming from the command line: train, predict with SmoothGrad, open, show, export."""

from __future__ import annotations

import json

import numpy as np
import pytest

from slidelens.maps.result import Result
from slidelens.slide.open import open_slide
from slidelens.testing.phantom import write_cohort


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streaming")
    write_cohort(folder, 6, 1, size=(512, 448), tune=0.34)
    return folder


@pytest.fixture
def model(slidelens, cohort, tmp_path):
    folder = tmp_path / "whole"
    done = slidelens(
        *("train", "streaming", "--slides", cohort / "slides", "--labels", cohort / "labels.csv"),
        *("--out", folder, "--backbone", "squeezenet1_1", "--layers", "features.5"),
        *("--weights", "none", "--tile", 128, "--epochs", 2, "--device", "cpu"),
    )
    assert done.code == 0, done.err
    return folder


def test_predict_with_saliency_export_show(slidelens, model, cohort, tmp_path):
    out = tmp_path / "results"
    card = json.loads((model / "model.json").read_text())
    assert (card["family"], card["config"]["layers"]) == ("streaming", "features.5")
    slide = cohort / "slides" / "phantom_001.tif"
    wanted = ("saliency=smoothgrad", "saliency_samples=2", "saliency_mpp=4")
    options = [part for field in wanted for part in ("--set", field)]
    arguments = ("predict", slide, "--model", model, "--out", out, *options)
    done = slidelens(*arguments, "--json")
    assert done.code == 0, done.err
    assert "skipped" in slidelens(*arguments).err
    folder = out / "whole" / "phantom_001"
    result = Result.load(folder)
    kinds = {name: drawn.kind for name, drawn in result.maps.items()}
    assert kinds == {"probability": "probability", "saliency": "saliency", "tissue": "labels"}
    saliency = result.maps["saliency"]
    assert (saliency.channels, saliency.mpp) == (("tumor",), 4.0)
    assert np.nanmax(saliency.read()) > 0
    assert len(result.tiles) > 0
    exported = slidelens("export", folder, "--to", "ome-zarr", "--out", tmp_path / "zarr")
    assert exported.code == 0, exported.err
    assert list((tmp_path / "zarr").rglob("saliency/zarr.json"))
    _check_layers(result, slide)
    plain = slidelens("predict", slide, "--model", model, "--out", out)
    assert plain.code == 0
    assert "skipped" not in plain.err  # other settings
    assert "saliency" not in Result.load(folder).maps


def _check_layers(result, path):
    from slidelens.desktop import layers

    with open_slide(path) as slide:
        made = {options["name"]: options for _, options, _ in layers.result_layers(result, slide)}
    assert made["whole: saliency"]["colormap"].name == "saliency"
    assert made["whole: saliency"]["contrast_limits"][1] > 0
    # A cell of 4 µm on the slide, whose resolution viewers are told in µm.
    assert tuple(made["whole: saliency"]["scale"]) == (4.0, 4.0)


def test_a_class_that_is_not_there_is_named(slidelens, model, cohort, tmp_path):
    slide = cohort / "slides" / "phantom_001.tif"
    done = slidelens(
        *("predict", slide, "--model", model, "--out", tmp_path / "r"),
        *("--set", "saliency=gradient", "--set", "saliency_class=stroma"),
    )
    assert done.code == 1
    assert "saliency_class 'stroma': the model's classes are normal, tumor" in done.out + done.err
    done = slidelens(
        *("predict", slide, "--model", model, "--out", tmp_path / "r", "--set", "layers=features.2")
    )
    assert done.code == 1
    assert "its options are: size, background" in done.err
