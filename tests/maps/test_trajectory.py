"""Nested windows: what is refused, what the file keeps, what QuPath gets."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sample_results import make_result
from slidelens.errors import ResultError
from slidelens.export import export_result
from slidelens.geometry import Box, Mpp
from slidelens.maps.result import Result
from slidelens.maps.trajectory import (
    Trajectory,
    Window,
    read_trajectory,
    window_features,
    write_trajectory,
)

MPP = Mpp(0.5, 0.25)


def make_trajectory() -> Trajectory:
    """Two windows in the slide, two in the first of these, one in the second."""
    return Trajectory(
        (
            Window(0, None, Box(-100, 0, 3200, 6400), 16.0),
            Window(1, 0, Box(200, 400, 800, 1600), 4.0),
            Window(2, 1, Box(300, 500, 200, 400), 1.0, (0.8, 0.2)),
            Window(2, 1, Box(600.5, 700.25, 100, 200), 0.5, (0.4, 0.6)),
            Window(1, 0, Box(1500, 1000, 1200, 2400), 6.0, (0.4, 0.6)),
            Window(2, 4, Box(1600, 1100, 300, 600), 1.5, (0.1, 0.9)),
        ),
        ("normal", "tumor"),
        MPP,
    )


def test_knows_its_tree():
    made = make_trajectory()
    assert made.depth == 2
    assert made.children(0) == [1, 4]
    assert made.children(1) == [2, 3]
    assert [w.mpp for w in made.last] == [1.0, 0.5, 1.5]
    assert made.windows[1].magnification == 2.5
    assert made.box_um(1) == Box(100, 100, 400, 400)


@pytest.mark.parametrize(
    ("layer", "parent", "probabilities", "what"),
    [
        (1, 1, None, "comes before its parent 1"),
        (1, -1, None, "before its parent -1"),
        (2, 0, None, "layer 2 is in layer 0"),
        (1, None, None, "layer 1 is in layer -1"),
        (1, 0, (1.0,), "not one per class"),
    ],
)
def test_refuses_what_is_no_tree(layer, parent, probabilities, what):
    root = Window(0, None, Box(0, 0, 9, 9), 1.0)
    with pytest.raises(ValueError, match=what):
        Trajectory((root, Window(layer, parent, Box(0, 0, 1, 1), 1.0, probabilities)), "ab", MPP)


number = st.floats(-1e7, 1e7, allow_nan=False)
length = st.floats(1e-3, 1e7)


@given(st.lists(st.tuples(number, number, length, length), min_size=1, max_size=4), length)
def test_the_file_keeps_every_bit(tmp_path_factory, boxes, mpp):
    windows = [Window(i, i - 1 if i else None, Box(*b), mpp, (0.25, 0.75)) for i, b in
               enumerate(boxes)]  # fmt: skip
    made = Trajectory(tuple(windows), ("a", "b"), Mpp(0.2527, 0.1))
    path = tmp_path_factory.mktemp("t") / "trajectory.json"
    write_trajectory(path, made)
    assert read_trajectory(path) == made


def test_the_file_says_all_for_other_programs(tmp_path):
    write_trajectory(tmp_path / "t.json", make_trajectory())
    content = json.loads((tmp_path / "t.json").read_text())
    assert content["classes"] == ["normal", "tumor"]
    assert content["windows"][3] == {
        "layer": 2,
        "parent": 1,
        "box": [600.5, 700.25, 100, 200],
        "box_um": [300.25, 175.0625, 50, 50],
        "mpp": 0.5,
        "magnification": 20,
        "probabilities": [0.4, 0.6],
    }


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda c: c.pop("classes"), "key 'classes'"),
        (lambda c: c["windows"][2].update(box=[0, 0, -1, 5]), r"key 'windows\.2\.box\.2'"),
        (lambda c: c["windows"][1].update(parent=3), "before its parent 3"),
        (lambda c: c["windows"][5].update(probabilities=[0.1, 1.2]), r"probabilities\.1"),
    ],
)
def test_a_damaged_file_names_itself_and_the_key(tmp_path, change, what):
    path = tmp_path / "trajectory.json"
    write_trajectory(path, make_trajectory())
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ResultError, match=rf"trajectory\.json.*{what}"):
        read_trajectory(path)


def test_a_file_that_is_no_json_names_itself(tmp_path):
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(ResultError, match=r"t\.json: no trajectory"):
        read_trajectory(tmp_path / "t.json")


def _result() -> Result:
    plain = make_result()
    return Result(
        plain.slide,
        plain.model,
        plain.probabilities,
        maps=list(plain.maps.values()),
        regions=plain.regions,
        trajectory=make_trajectory(),
    )


def test_a_result_carries_it_through_its_folder(tmp_path):
    _result().save(tmp_path / "r")
    loaded = Result.load(tmp_path / "r")
    assert loaded.trajectory == make_trajectory()
    loaded.save(tmp_path / "r")
    assert Result.load(tmp_path / "r").trajectory == make_trajectory()


def test_a_result_without_one_writes_no_file(tmp_path):
    make_result().save(tmp_path / "r")
    assert not (tmp_path / "r" / "trajectory.json").exists()
    assert Result.load(tmp_path / "r").trajectory is None


def test_geojson_holds_regions_and_windows(tmp_path):
    result = _result()
    path = export_result(result, "geojson", tmp_path / "r.geojson")
    features = json.loads(path.read_text())["features"]
    windows = [f for f in features if f["properties"]["objectType"] == "detection"]
    assert len(windows) == 6
    assert len(features) - 6 == len(result.regions)
    assert windows == json.loads(json.dumps(window_features(make_trajectory())))
    ring = windows[2]["geometry"]["coordinates"][0]
    assert {tuple(p) for p in ring} == {(300, 500), (500, 500), (500, 900), (300, 900)}
    facts = windows[2]["properties"]["measurements"]
    assert (facts["Layer"], facts["Parent"], facts["Probability tumor"]) == (2, 1, 0.2)
    assert facts["Magnification"] == 10
    colors = {tuple(f["properties"]["classification"]["color"]) for f in windows}
    assert len(colors) == 3
