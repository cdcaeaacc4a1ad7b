"""GeoJSON as QuPath reads it."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import UUID

import pytest
import shapely

from slidelens.errors import ResultError
from slidelens.maps.geojson import feature, read_regions, region_features, write_features
from slidelens.maps.regions import Region
from slidelens.maps.result import Result
from slidelens.tiling.annotations import read_annotations

CLASSIFIED = {"properties": {"classification": {"name": "a"}}}
POINTLESS = {"type": "Polygon", "coordinates": [[[0, 0]]]}
ENDLESS = {"type": "Polygon", "coordinates": [[[0, 0], [99, 0], [1, 1], [0, 0]]]}
SHAPE = shapely.Polygon([(0, 0), (9, 0), (9, 9), (0, 9)], [[(2, 2), (4, 2), (4, 4), (2, 4)]])


def test_a_feature_is_exactly_qupaths() -> None:
    (one,) = region_features([Region(SHAPE, "tumor", 0.25, 0.75)], ["normal", "tumor"])
    identity = one.pop("id")
    assert UUID(identity).version == 5
    assert one == {
        "type": "Feature",
        "geometry": {
            "type": "Polygon",
            "coordinates": [
                [[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]],
                [[2, 2], [4, 2], [4, 4], [2, 4], [2, 2]],
            ],
        },
        "properties": {
            "objectType": "annotation",
            "name": "tumor",
            "classification": {"name": "tumor", "color": [213, 94, 0]},
            "isLocked": False,
            "measurements": {"Area mm^2": 0.25, "Mean probability": 0.75},
        },
    }


def test_an_object_keeps_its_id_and_others_have_their_own() -> None:
    ids = [
        feature(SHAPE, "a", (1, 2, 3))["id"],
        feature(SHAPE, "a", (9, 9, 9), measurements={"x": 1})["id"],
        feature(SHAPE, "b", (1, 2, 3))["id"],
        feature(SHAPE, "a", (1, 2, 3), kind="tile")["id"],
        feature(SHAPE, "a", (1, 2, 3), name="window 1")["id"],
    ]
    assert ids[0] == ids[1] == feature(SHAPE, "a", (1, 2, 3), name="a")["id"]
    assert len(set(ids)) == 4


def test_our_files_are_read_as_annotations_too(tmp_path: Path, result: Result) -> None:
    path = tmp_path / "r.geojson"
    write_features(path, region_features(result.regions, result.classes))
    found = read_annotations(path)
    assert len(found) == len(result.regions)
    for one, region in zip(found, result.regions, strict=True):
        assert one.polygon.equals(region.polygon)
        assert (one.label, tuple(one.color)) == ("tumor", (213, 94, 0))
    assert json.loads(path.read_text())["type"] == "FeatureCollection"


def test_regions_without_measurements_are_kept_without(tmp_path: Path) -> None:
    path = tmp_path / "r.geojson"
    write_features(path, [feature(SHAPE, "a", (1, 2, 3))])
    (region,) = read_regions(path)
    assert region.area_mm2 != region.area_mm2  # NaN: unknown
    (one,) = region_features([region], ["a"])
    assert one["properties"]["measurements"] == {}


def test_several_polygons_in_one_are_regions_each(tmp_path: Path) -> None:
    path = tmp_path / "r.geojson"
    two = shapely.MultiPolygon([shapely.box(0, 0, 4, 4), shapely.box(8, 8, 9, 9)])
    path.write_text(json.dumps({"features": [{**CLASSIFIED, "geometry": two.__geo_interface__}]}))
    assert [region.polygon.area for region in read_regions(path)] == [16, 1]


def test_a_polygon_that_crosses_itself_is_repaired_and_keeps_its_area(tmp_path: Path) -> None:
    path = tmp_path / "r.geojson"
    bow = shapely.Polygon([(0, 0), (4, 4), (4, 0), (0, 4)])
    write_features(path, [feature(bow, "a", (1, 2, 3), measurements={"Area mm^2": 8.0})])
    found = read_regions(path)
    assert all(region.polygon.is_valid for region in found)
    assert shapely.union_all([region.polygon for region in found]).area == 8
    assert [region.area_mm2 for region in found] == [4, 4]


def test_a_class_that_the_result_does_not_know_still_has_a_colour(tmp_path: Path) -> None:
    features = region_features([Region(SHAPE, "other", 1, 1)], ["a", "b"])
    assert len(features[0]["properties"]["classification"]["color"]) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("?", "not a GeoJSON FeatureCollection"),
        ("[]", "not a GeoJSON FeatureCollection"),
        ('{"features": 3}', "not a GeoJSON FeatureCollection"),
        ('{"features": [{}]}', "feature 0 is not a classified polygon"),
        (
            '{"features": [{"properties": {"classification": {"name": "a"}}, "geometry": 1}]}',
            "feature 0 is not a classified polygon",
        ),
        *(
            (
                json.dumps({"features": [{**CLASSIFIED, "geometry": ENDLESS}]}).replace("99", far),
                "feature 0 .*a coordinate is not finite",
            )
            for far in ("1e999", "NaN")
        ),
        (
            json.dumps({"features": [{**CLASSIFIED, "geometry": POINTLESS}]}),
            "feature 0 is not a classified polygon",
        ),
        (
            json.dumps(
                {"features": [{**CLASSIFIED, "geometry": shapely.Polygon().__geo_interface__}]}
            ),
            "feature 0 is not a classified polygon",
        ),
    ],
)
def test_malformed_files_are_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.geojson"
    path.write_text(text)
    with pytest.raises(ResultError, match=message):
        read_regions(path)
