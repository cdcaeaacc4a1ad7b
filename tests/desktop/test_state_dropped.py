from __future__ import annotations

import json

import pytest
from known_slides import make_result, make_slide

from slidelens.desktop.state.about import about
from slidelens.desktop.state.dropped import kind_of
from slidelens.errors import SlideNotFoundError
from slidelens.geometry import Mpp
from slidelens.testing.phantom import PhantomSpec, write_phantom


def test_what_is_dropped_is_known_by_its_content(tmp_path):
    slide = tmp_path / "a.tif"
    write_phantom(slide, PhantomSpec(size=(512, 512)))
    made = make_result(make_slide(0.5), Mpp(0.5, 0.5))
    made.save(tmp_path / "results" / "oracle" / "square")
    (tmp_path / "labels.csv").write_text("\ufeffSlide_ID, label\na,1\n")
    (tmp_path / "wide.csv").write_text("slide_id,label\na,1\n", encoding="utf-16")
    (tmp_path / "other.csv").write_text("x,y\n1,2\n")
    (tmp_path / "a.geojson").write_text('{"type": "FeatureCollection"}')
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "note.txt").write_text("no slide")
    for name in ("model", "evaluation"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.json").write_text(json.dumps({}))
    (tmp_path / "empty").mkdir()
    result = tmp_path / "results" / "oracle" / "square"
    assert {
        path.name: kind_of(path) for path in [*tmp_path.iterdir(), result, result / "result.json"]
    } == {
        "a.tif": "slide",
        "results": "results",
        "square": "result",
        "result.json": "result",
        "labels.csv": "labels",
        "wide.csv": "labels",
        "other.csv": "other",
        "a.geojson": "annotations",
        "metrics.json": "other",
        "note.txt": "other",
        "model": "model",
        "evaluation": "evaluation",
        "empty": "folder",
    }
    assert kind_of(tmp_path / "gone.svs") == "other"


def test_facts_of_a_slide(tmp_path):
    path = tmp_path / "a.tif"
    write_phantom(path, PhantomSpec(size=(2048, 1024), mpp=0.5))
    facts = dict(about(path).facts)
    assert facts["Size"] == "2048 × 1024 px, 1.0 × 0.5 mm"
    assert facts["Resolution"].startswith("0.5 µm/px")
    assert facts["Levels"].startswith("2: full size, 1/") or "full size" in facts["Levels"]
    assert facts["On disk"].endswith("MB")
    assert about(path).properties
    with pytest.raises(SlideNotFoundError):
        about(tmp_path / "gone.svs")


@pytest.mark.realdata
def test_pictures_in_a_scanner_s_file(data):
    found = about(data / "wsi" / "CMU-1-Small-Region.svs")
    assert {"label", "macro", "thumbnail"} <= set(found.pictures)
    assert found.read_picture("macro").ndim == 3
    assert dict(found.facts)["Objective"] == "20x"


def test_resolution_that_was_given(tmp_path):
    import numpy as np
    import tifffile

    path = tmp_path / "bare.tif"
    tifffile.imwrite(path, np.full((512, 512, 3), 200, np.uint8), tile=(256, 256))
    assert dict(about(path).facts)["Resolution"] == "not stated"
    assert dict(about(path, Mpp(0.25, 0.25)).facts)["Resolution"] == "0.25 µm/px, given by hand"


def test_a_resolution_other_than_the_file_s_says_both(tmp_path):
    path = tmp_path / "a.tif"
    write_phantom(path, PhantomSpec(size=(1024, 1024), mpp=0.5))
    plain = dict(about(path).facts)["Resolution"]
    assert dict(about(path, Mpp(0.5, 0.5)).facts)["Resolution"] == plain
    said = dict(about(path, Mpp(0.25, 0.25)).facts)["Resolution"]
    assert said == f"0.25 µm/px, given by hand; the file says {plain}"
