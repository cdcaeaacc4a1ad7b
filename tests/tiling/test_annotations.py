"""Annotations: every format to the same polygons, exact areas, exact masks."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from slidelens.errors import LabelError
from slidelens.geometry import Box, Mpp
from slidelens.slide.array import from_array
from slidelens.tiling.annotations import Annotation, fraction, rasterize, read_annotations

SQUARE = [[10, 10], [30, 10], [30, 30], [10, 30], [10, 10]]
HOLE = [[15, 15], [25, 15], [25, 25], [15, 25], [15, 15]]


def _write(path: Path, text: object) -> Path:
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return path


def _feature(geometry: object, **properties: object) -> dict[str, object]:
    return {"type": "Feature", "id": "f1", "geometry": geometry, "properties": properties}


def _polygon(*rings: object) -> dict[str, object]:
    return {"type": "Polygon", "coordinates": list(rings)}


def _aperio(regions: str) -> str:
    return (
        '<Annotations MicronsPerPixel="0.25"><Annotation Id="1" Name="" LineColor="65280">'
        '<Attributes><Attribute Name="CaP"/></Attributes><Regions>'
        f"{regions}</Regions></Annotation></Annotations>"
    )


def _region(ring: list[list[int]], number: int, kind: int = 0, negative: int = 0) -> str:
    vertices = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in ring)
    return (
        f'<Region Id="{number}" Type="{kind}" NegativeROA="{negative}">'
        f"<Vertices>{vertices}</Vertices></Region>"
    )


def _asap(*shapes: tuple[str, str, list[list[int]]]) -> str:
    items = []
    for group, kind, ring in shapes:
        corners = [f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(ring)]
        items.append(
            f'<Annotation Name="A" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58">'
            f"<Coordinates>{''.join(reversed(corners))}</Coordinates></Annotation>"
        )
    return f"<ASAP_Annotations><Annotations>{''.join(items)}</Annotations></ASAP_Annotations>"


WITH_HOLE = {
    "geojson": {
        "type": "FeatureCollection",
        "features": [_feature(_polygon(SQUARE, HOLE), classification={"name": "Tumor"})],
    },
    "bare geometry": {"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE]]},
    "list": [_feature({"type": "GeometryCollection", "geometries": [_polygon(SQUARE, HOLE)]})],
    "ncrf": {"positive": [{"name": "a", "vertices": SQUARE}], "negative": [{"vertices": HOLE}]},
    "asap": _asap(("_0", "Polygon", SQUARE[:-1]), ("_2", "Spline", HOLE[:-1])),
    "aperio": _aperio(_region(SQUARE[:-1], 1) + _region(HOLE[:-1], 2, negative=1)),
}


@pytest.mark.parametrize("form", WITH_HOLE)
def test_every_format_gives_the_same_polygon(tmp_path: Path, form: str):
    # The name says nothing: content decides.
    (only,) = read_annotations(_write(tmp_path / "file.txt", WITH_HOLE[form]))
    assert only.polygon.equals(shapely.Polygon(SQUARE, [HOLE]))


def test_class_colour_name_and_id_are_kept(tmp_path: Path):
    new = _feature(_polygon(SQUARE), name="n", classification={"name": "Tumor", "color": [1, 2, 3]})
    old = _feature(_polygon(SQUARE), classification={"name": "Tumor", "colorRGB": -3670016})
    names = _feature(_polygon(SQUARE), classification={"names": ["Tumor", "Positive"]})
    a, b, c = read_annotations(_write(tmp_path / "a.json", [new, old, names]))
    assert (a.label, a.color, a.name, a.id) == ("Tumor", (1, 2, 3), "n", "f1")
    assert (b.label, b.color) == ("Tumor", (200, 0, 0))
    assert c.label == "Tumor: Positive"
    (asap,) = read_annotations(_write(tmp_path / "b", _asap(("Met", "Polygon", SQUARE))))
    assert (asap.label, asap.color) == ("Met", (0xF4, 0xFA, 0x58))
    (aperio,) = read_annotations(_write(tmp_path / "c", _aperio(_region(SQUARE, 1))))
    assert (aperio.label, aperio.color, aperio.id) == ("CaP", (0, 255, 0), "1-1")


@pytest.mark.parametrize(
    ("given", "label"),
    [
        (None, ""),
        ({"name": None}, ""),
        ("Tumor", "Tumor"),
        (["Tumor", "Positive"], "Tumor: Positive"),
        ({"names": ["Tumor", "Positive"]}, "Tumor: Positive"),
        ({"names": "Tumor"}, "Tumor"),
        ({"names": 3}, "3"),
    ],
)
def test_classes_in_every_form(tmp_path: Path, given: object, label: str):
    (only,) = read_annotations(
        _write(tmp_path / "a.json", _feature(_polygon(SQUARE), classification=given))
    )
    assert only.label == label


def test_collections_in_collections_keep_their_classes(tmp_path: Path):
    inner = [_feature(_polygon(SQUARE), classification={"name": name}) for name in ("A", "B")]
    one = {"type": "FeatureCollection", "features": inner[:1]}
    other = {"type": "FeatureCollection", "features": [one, inner[1]]}
    for content in (other, [other], [one, inner[1]]):
        found = read_annotations(_write(tmp_path / "a.json", content))
        assert [a.label for a in found] == ["A", "B"]


@pytest.mark.parametrize("colour", ["\u00b2", "9" * 5000, "-5", "red"])
def test_a_broken_colour_costs_no_polygon(tmp_path: Path, colour: str):
    xml = _aperio(_region(SQUARE, 1)).replace("65280", colour)
    (only,) = read_annotations(_write(tmp_path / "a.xml", xml))
    assert (only.polygon.area, only.color) == (400, None)


def test_what_bounds_no_area_is_counted_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    shapes = [
        {"type": "Point", "coordinates": [1, 2]},
        {"type": "LineString", "coordinates": [[0, 0], [1, 1]]},
        _polygon([[0, 0], [5, 5], [0, 0], [0, 0]]),
        None,
        _polygon(SQUARE),
    ]
    path = _write(tmp_path / "a.geojson", [_feature(s) for s in shapes])
    with caplog.at_level(logging.WARNING):
        found = read_annotations(path)
    assert len(found) == 1
    assert found.ignored == {"Point": 2, "LineString": 1, "Polygon": 1}
    assert "1 LineString, 2 Point, 1 Polygon" in caplog.text
    found = read_annotations(_write(tmp_path / "b", _asap(("None", "Dot", [[1, 1]]))))
    assert not found
    assert found.ignored == {"MultiPoint": 1}


def test_a_ring_that_crosses_itself_is_repaired(tmp_path: Path):
    bow = [[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]
    found = read_annotations(_write(tmp_path / "a.json", _polygon(bow)))
    assert found[0].polygon.is_valid
    assert found[0].polygon.area == 50
    assert found.repaired == 1


def test_what_a_pen_circled_twice_is_inside(tmp_path: Path):
    loop = [[0, 0], [10, 0], [10, 10], [5, 10], [5, 4], [8, 4], [8, 12], [0, 12], [0, 0]]
    (found,) = read_annotations(_write(tmp_path / "a.json", _polygon(loop)))
    assert found.polygon.area == 116  # the outline's 134, less the 3 x 6 that it counts twice


def test_an_ellipse_and_a_rectangle_of_two_corners(tmp_path: Path):
    corners = [[10, 20], [30, 60]]
    text = _aperio(_region(corners, 1, kind=2) + _region(corners, 2, kind=1))
    ellipse, rectangle = read_annotations(_write(tmp_path / "a.xml", text))
    assert ellipse.polygon.area == pytest.approx(np.pi * 10 * 20, rel=1e-3)
    assert rectangle.polygon.bounds == (10, 20, 30, 60)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hello", "neither JSON nor XML"),
        ("", "neither JSON nor XML"),
        ("{", "not valid JSON"),
        ("<a>", "not valid XML"),
        ('<?xml version="1.0" encoding="klingon"?><Annotations/>', "not valid XML"),
        ("<svg/>", "<svg>"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><Annotations>&b;</Annotations>', "not valid XML"),
        ([1], "feature 0 is not a GeoJSON object"),
        ({"type": "FeatureCollection"}, "without a list of features"),
        ([_feature(_polygon(SQUARE)), _feature(_polygon([[0, 0], [1]]))], r"feature 1 \(id f1\)"),
        ([_feature({"type": "Circle", "coordinates": []})], "feature 0 .* not a readable Circle"),
        ({"positive": [{"vertices": [[0, 0], [1, "x"], [2, 2]]}]}, "positive polygon 0"),
        ({"positive": [{"vertices": [[0, 0], [1, 10**400], [2, 2]]}]}, "positive polygon 0"),
        ({"negative": [{}]}, "negative polygon 0"),
        (_aperio('<Region Id="7"><Vertex X="1" Y="b"/></Region>'), "Region 7 of Annotation 1"),
        (_asap(("a", "Polygon", [[0, 0], [1, 1], [float("nan"), 0]])), "Annotation 0"),
    ],
)
def test_a_broken_file_is_named_with_its_feature(tmp_path: Path, text: object, says: str):
    path = _write(tmp_path / "broken.file", text)
    with pytest.raises(LabelError, match=says) as error:
        read_annotations(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_a_label_error(tmp_path: Path):
    with pytest.raises(LabelError, match="cannot be read"):
        read_annotations(tmp_path / "none.xml")


# --- fraction -------------------------------------------------------------------------------------


def test_fraction_is_the_exact_area_and_overlaps_count_once():
    areas = [Annotation(shapely.box(0, 0, 10, 10)), Annotation(shapely.box(5, 0, 15, 10))]
    boxes = np.array(
        [[0, 0, 10, 10], [10, 0, 10, 10], [0, 5, 20, 10], [14, 9, 2, 2], [15, 0, 5, 5]]
    )
    assert fraction(areas, boxes) == pytest.approx([1, 0.5, 0.375, 0.25, 0])


@pytest.mark.filterwarnings("error")
def test_fraction_of_a_box_without_area_is_none():
    boxes = np.array([[0, 0, 0, 5], [1, 1, 3, 0], [2, 2, 0, 0], [0, 0, 5, 5]])
    assert fraction([Annotation(shapely.box(0, 0, 9, 9))], boxes).tolist() == [0, 0, 0, 1]


def test_fraction_of_nothing():
    assert fraction([], np.zeros((0, 4))).shape == (0,)
    assert fraction([], np.array([[0, 0, 1, 1]])).tolist() == [0]


star = st.lists(st.floats(0.3, 1.0), min_size=4, max_size=12)


def _star(radii: list[float], x: float, y: float, r: float) -> shapely.Polygon:
    turns = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    points = np.stack([x + r * radii * np.cos(turns), y + r * radii * np.sin(turns)], axis=1)
    return shapely.Polygon(points)


@settings(max_examples=60)
@given(st.lists(star, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_fraction_equals_shapely_on_the_union(shapes: list[list[float]], random):
    polygons = [
        _star(np.array(s), random.uniform(0, 50), random.uniform(0, 50), 30) for s in shapes
    ]
    boxes = np.array([[i * 13.0, j * 11.0, 12.5, 10.5] for i in range(4) for j in range(4)])
    union = shapely.union_all(polygons)
    expected = [union.intersection(shapely.box(x, y, x + w, y + h)).area / (w * h)
                for x, y, w, h in boxes]  # fmt: skip
    found = fraction([Annotation(p) for p in polygons], boxes)
    np.testing.assert_allclose(found, expected, atol=1e-9)


# --- rasterize ------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    star,
    st.tuples(st.floats(-20, 20), st.floats(-20, 20)),
    st.floats(0.2, 3.0),
    st.builds(Mpp, st.floats(0.2, 1.0), st.floats(0.2, 1.0)),
)
def test_a_pixel_is_drawn_if_its_centre_is_inside(
    radii: list[float], corner: tuple[float, float], mpp: float, mpp0: Mpp
):
    outer = _star(np.array(radii), 7.3, 5.1, 25)
    area = outer.difference(shapely.box(5, 4, 9.7, 8.3))
    box = Box(*corner, 41.0, 33.0)
    mask = rasterize([Annotation(area)], box, mpp0, mpp)
    slide = from_array(np.zeros((8, 8, 3), np.uint8), mpp=(mpp0.x, mpp0.y))
    height, width = mask.shape
    assert slide.read(box, mpp).shape == (height, width, 3)
    x = box.x + (np.arange(width) + 0.5) * mpp / mpp0.x
    y = box.y + (np.arange(height) + 0.5) * mpp / mpp0.y
    centres = shapely.points(*np.meshgrid(x, y))
    clear = shapely.distance(shapely.boundary(area), centres) > 1e-9
    assert (mask.astype(bool) == shapely.contains(area, centres))[clear].all()


def test_touching_polygons_share_no_pixel_and_leave_none():
    left, right = (
        shapely.Polygon([(0, 0), (7, 0), (3, 9), (0, 9)]),
        shapely.Polygon([(7, 0), (10, 0), (10, 9), (3, 9)]),
    )
    box, one = Box(0, 0, 10, 9), Mpp(1, 1)
    a, b = (rasterize([Annotation(p)], box, one, 1.0) for p in (left, right))
    assert (a + b == 1).all()


def test_classes_are_numbered_from_one_and_later_ones_paint_over():
    areas = [
        Annotation(shapely.box(0, 0, 8, 8), "tumor"),
        Annotation(shapely.box(4, 0, 8, 8), "stroma"),
        Annotation(shapely.box(0, 0, 1, 1), "other"),
    ]
    box, one = Box(0, 0, 8, 8), Mpp(1, 1)
    mask = rasterize(areas, box, one, 1.0, ["stroma", "tumor"])
    assert mask.dtype == np.uint8
    assert (mask[:, :4] == 2).all()
    assert (mask[:, 4:] == 1).all()
    many = [str(i) for i in range(300)]
    assert rasterize(areas, box, one, 1.0, [*many, "tumor"]).max() == 301


# --- real files -----------------------------------------------------------------------------------


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "count", "labels"),
    [
        ("aperio_xml/TCGA-EJ-5518-01Z-00-DX1.xml", 4, {"CaP", ""}),
        ("camelyon16_ncrf/Tumor_012.json", 1, {"tumor"}),
        ("camelyon16_ncrf/Tumor_083.json", 2, {"tumor"}),
        ("camelyon16_ncrf/Tumor_091.json", 6, {"tumor"}),
        ("geojson/histoqc_geojson_example.json", 2, {"Tumor", "Invborder"}),
        ("geojson/histoqc_holed.geojson", 1, {""}),
        ("geojson/large_image_sample.geojson", 10, {""}),
        ("geojson/qupath_polygon.geojson", 1, {""}),
        ("napari_wsi_annotations.json", 1, {""}),
    ],
)
def test_real_files(data: Path, name: str, count: int, labels: set[str]):
    found = read_annotations(data / "annotations" / name)
    assert len(found) == count
    assert {a.label for a in found} == labels
    assert all(a.polygon.is_valid and a.polygon.area > 0 for a in found)


@pytest.mark.realdata
def test_aperio_area_is_what_imagescope_wrote(data: Path):
    found = read_annotations(data / "annotations/aperio_xml/TCGA-EJ-5518-01Z-00-DX1.xml")
    assert found[0].polygon.area == pytest.approx(29046449.6, rel=1e-8)
    # ImageScope's sum counts twice what this outline circles twice.
    assert found[2].polygon.area == pytest.approx(3853031.2, rel=2e-3)
    assert found[2].polygon.area < 3853031.2


@pytest.mark.realdata
def test_holes_of_camelyon_are_cut_out(data: Path):
    path = data / "annotations/camelyon16_ncrf/Tumor_083.json"
    raw = json.loads(path.read_text())
    assert len(raw["negative"]) == 3
    tumor = shapely.union_all([a.polygon for a in read_annotations(path)])
    for hole in raw["negative"]:
        inside = shapely.Polygon(hole["vertices"]).representative_point()
        assert not tumor.contains(inside)


@pytest.mark.realdata
def test_every_annotation_of_the_cohort_reads_and_covers_whole_tiles(data: Path):
    tiles = 0
    for path in sorted((data / "crc_mosaic/annotations").glob("*.geojson")):
        found = read_annotations(path)
        assert not found.ignored
        for annotation in found:
            x0, y0, x1, y1 = annotation.polygon.bounds
            assert fraction([annotation], np.array([[x0, y0, x1 - x0, y1 - y0]])) == 1
        tiles += len(found)
    assert tiles == 179
