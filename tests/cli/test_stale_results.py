"""Results of slides whose last run failed: `evaluate` and `report` say so."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def stale(slidelens, tmp_path, monkeypatch):
    """Two slides were predicted; then one of them was damaged and run again."""
    monkeypatch.setattr("slidelens.engine.evaluate._pictures", lambda *_: {})
    rng = np.random.default_rng(0)
    paths = [tmp_path / "doe_jane.tif", tmp_path / "roe.tif"]
    for path in paths:
        image = np.full((256, 256, 3), 245, np.uint8)
        image[40:200, 40:200] = rng.integers(60, 200, (160, 160, 3))
        Image.fromarray(image).save(path)
    arguments = ("predict", *paths, "--model", "demo-mil", "--out", tmp_path / "r", "--mpp", "1")
    assert slidelens(*arguments, "--region", "0,0,200,250", "--set", "overlap=0").code == 0
    paths[0].write_text("no slide")
    failed = slidelens(*arguments, "--overwrite")
    assert failed.code == 1
    assert "doe_jane: failed" in failed.out + failed.err
    (tmp_path / "labels.csv").write_text("slide_id,label\ndoe_jane,tumor\nroe,normal\n")
    return tmp_path


def test_evaluate_and_report_name_the_slides(slidelens, stale):
    command = ("evaluate", stale / "r", "--labels", stale / "labels.csv", "--out", stale / "e")
    done = slidelens(*command, "--resamples", 100)
    assert done.code == 0
    (warned,) = [line for line in done.err.splitlines() if "last run" in line]
    assert warned.startswith("note: demo-mil: the last run of doe_jane failed")
    assert "Predict again, or delete the results" in warned

    done = slidelens("report", stale / "e", "--out", stale / "report.html", "--json")
    assert done.code == 0
    assert warned in done.err.splitlines()
    assert json.loads(done.out)["warnings"] == [warned.removeprefix("note: ")]
    page = (stale / "report.html").read_text()
    assert "demo-mil: the last run of S-00" in page
    assert "doe_jane" not in page
    assert str(stale) not in page


def test_a_run_that_goes_well_takes_the_warning_away(slidelens, stale):
    shutil.copy(stale / "roe.tif", stale / "doe_jane.tif")
    slides = (stale / "doe_jane.tif", stale / "roe.tif")
    again = ("--out", stale / "r", "--mpp", "1", "--overwrite")
    assert slidelens("predict", *slides, "--model", "demo-mil", *again).code == 0
    command = ("evaluate", stale / "r", "--labels", stale / "labels.csv", "--out", stale / "e")
    assert "last run" not in slidelens(*command, "--resamples", 100).err


def test_the_report_of_a_real_run_repeats_its_options(slidelens, stale):
    command = ("evaluate", stale / "r", "--labels", stale / "labels.csv", "--out", stale / "e")
    slidelens(*command, "--resamples", 100)
    slidelens("report", stale / "e", "--out", stale / "report.html")
    page = (stale / "report.html").read_text()
    # doe_jane has its first run's settings still; roe was run anew over the whole slide.
    again = "--model demo-mil --region 0,0,200,250 --set overlap=0 --mpp 1 --out RESULTS"
    assert again in page
    assert "--model demo-mil --mpp 1 --out RESULTS" in page
    assert "its slides were run with different settings" in page


def test_lesions_name_the_slides(slidelens, stale):
    square = [[2, 2], [254, 2], [254, 254], [2, 254], [2, 2]]
    drawn = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [square]},
        "properties": {"classification": {"name": "tumor"}},
    }
    (stale / "drawn").mkdir()
    (stale / "drawn" / "doe_jane.geojson").write_text(
        json.dumps({"type": "FeatureCollection", "features": [drawn]})
    )
    command = ("lesions", stale / "r" / "demo-mil", "--labels", stale / "labels.csv")
    more = ("--annotations", stale / "drawn", "--out", stale / "l")
    done = slidelens(*command, *more, "--tumour", "tumor")
    assert done.code == 0, done.err
    assert "demo-mil: the last run of doe_jane failed" in done.err
    assert json.loads((stale / "l" / "froc.json").read_text())["last_run_failed"] == ["doe_jane"]
