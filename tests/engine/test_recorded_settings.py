"""What a result keeps of how it was run, and what an evaluation says of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import Field
from tiny_family import TinyConfig

from sample_evaluation import SCORES, TRUTH, evaluated, write_result
from slidelens.engine.cohort import predict_cohort
from slidelens.engine.evaluate import EvaluationOptions, evaluate
from slidelens.engine.evaluation.measure import Resampling
from slidelens.engine.fields import with_options
from slidelens.engine.last_run import failed_slides
from slidelens.engine.predict import predict
from slidelens.engine.prediction_table import Outcome
from slidelens.engine.provenance import run_settings
from slidelens.families.base import Model
from slidelens.geometry import Box
from slidelens.maps.result import Result
from slidelens.slide.array import from_array
from slidelens.tiling.tissue import TissueMask, TissueSettings, tissue_mask

WHOLE = TissueSettings(method="whole")


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)


def test_a_result_keeps_what_was_asked_of_its_run(tiny, tmp_path):
    with from_array(picture(), mpp=1.0, name="s") as slide:
        plain = predict(slide, tiny, tissue=WHOLE).settings
        assert (plain.region, plain.precision, plain.options) == (None, "auto", {})
        assert plain.config == tiny.config.model_dump()
        assert plain.tissue["method"] == "whole"
        asked = {"region": Box(16, 0, 64.5, 96), "precision": "fp32", "options": {"overlap": 8}}
        predict(slide, tiny, tissue=WHOLE, out=tmp_path, **asked)
    settings = Result.load(tmp_path / "tiny-model" / "s").settings
    assert (settings.region, settings.precision) == ((16, 0, 64.5, 96), "fp32")
    assert settings.options == {"overlap": 8}
    assert settings.config == tiny.config.model_dump() | {"overlap": 8}


def test_a_cohort_writes_them_and_what_is_skipped_keeps_them(tiny, tmp_path):
    path = tmp_path / "s.tif"
    Image.fromarray(picture()).save(path)
    for status in ("done", "skipped"):
        run = predict_cohort(
            [path],
            [with_options(tiny, {"batch_size": 2})],  # as the desktop's worker gives them
            tmp_path / "out",
            mpp=1.0,
            tissue=WHOLE,
            region=Box(0, 0, 64, 64),
            options={"overlap": 8},
        )
        assert [e.status for e in run if isinstance(e, Outcome)] == [status]
        settings = Result.load(tmp_path / "out" / "tiny-model" / "s").settings
        assert settings.options == {"batch_size": 2, "overlap": 8}
        assert settings.region == (0, 0, 64, 64)


def test_a_mask_of_ones_own_is_told_as_such(tiny):
    with from_array(picture(), mpp=1.0) as slide:
        mask = tissue_mask(slide, WHOLE)
        assert isinstance(mask, TissueMask)
        assert predict(slide, tiny, tissue=mask).settings.tissue == {"method": "given"}


def test_the_place_of_a_file_is_no_setting():
    class Placed(TinyConfig):
        table: Path | None = Field(None)

    config = Placed(table=Path("/home/doe/table.csv"))
    model = Model("m", "tiny", config, ("a", "b"), None, options={"table": "/home/doe/table.csv"})
    settings = run_settings(model, region=None, precision="auto", tissue=WHOLE)
    assert "doe" not in settings.model_dump_json()
    assert settings.config == TinyConfig().model_dump()


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr("slidelens.engine.evaluate._pictures", lambda *_: {})


def again(folder: Path) -> list[str]:
    options = EvaluationOptions(allow_missing=True, resampling=Resampling(100))
    return evaluate(folder / "results", folder / "labels.csv", folder / "eval", options).warnings


def test_an_evaluation_says_that_slides_were_not_run_alike(tmp_path):
    evaluated(tmp_path, TRUTH, {"good": SCORES["good"]})
    assert not any("different settings" in text or "region" in text for text in again(tmp_path))
    for slide_id in SCORES["good"]:
        file = tmp_path / "results" / "good" / slide_id / "result.json"
        content = json.loads(file.read_text())
        content["settings"] = {"config": {"overlap": 0, "at": "/home/doe"}}
        if slide_id in "ab":
            content["settings"] |= {"region": [0, 0, 512, 512]}
            content["settings"]["config"] |= {"overlap": 28, "at": "/home/jane"}
        file.write_text(json.dumps(content))
    found = "\n".join(again(tmp_path))
    assert "good: of 2 of 6 slides only a region was predicted" in found
    assert "region whole slide (4 slides) | 0,0,512,512 (2 slides)" in found
    assert "overlap 0 (4 slides) | 28 (2 slides)" in found
    assert "doe" not in found


def write_table(folder: Path, failed: str, name: str = "good") -> None:
    with (folder / "results" / name / "predictions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["slide_id", "status", "error", "prob_normal", "prob_tumor", "seconds"])
        for slide_id in (*TRUTH, "unlabelled"):
            bad = slide_id in failed.split()
            rows.writerow([slide_id, "failed" if bad else "done", "x" if bad else "", "", "", "1"])


def test_a_result_that_is_older_than_a_run_that_failed_is_warned_of(tmp_path):
    evaluated(tmp_path, TRUTH, SCORES)
    write_result(tmp_path / "results", "good", "unlabelled", {"normal": 0.5, "tumor": 0.5})
    write_table(tmp_path, failed="")
    assert not any("failed" in text for text in again(tmp_path))
    write_table(tmp_path, failed="b d unlabelled no_result")
    (text,) = [text for text in again(tmp_path) if "failed" in text]
    assert text.startswith("good: the last run of b, d failed (predictions.csv says why), so an")
    assert "Predict again" in text
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert metrics["models"]["good"]["last_run_failed"] == ["b", "d"]
    assert "last_run_failed" not in metrics["models"]["weak"]
    # Reports repeat these warnings, so they must not name slides.
    assert any(
        t.startswith("good: the last run of 2 evaluated slides") for t in metrics["warnings"]
    )
    assert not any("b, d" in text for text in metrics["warnings"])


def test_a_table_that_cannot_be_read_is_said_and_another_is_passed_over(tmp_path, caplog):
    evaluated(tmp_path, TRUTH, {"good": SCORES["good"]})
    table = tmp_path / "results" / "good" / "predictions.csv"
    table.write_text("slide;verdict\nb;failed\n")
    again(tmp_path)
    assert not caplog.records
    table.write_bytes(b"\xef\xbb\xbfslide_id;status\r\nb;failed\r\n")  # by a spreadsheet
    assert failed_slides(table.parent) == {"b"}
    table.write_bytes(b"slide_id,status\n\xff\xfe,failed\n")
    again(tmp_path)
    assert f"{table}: is not UTF-8 text" in caplog.text
    assert "slides that failed are not known" in caplog.text
    table.write_text("status\nfailed\n")
    again(tmp_path)
