"""Pictures show every cell where it is, in the palette's colours."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageDraw

from slidelens.errors import ResultError
from slidelens.geometry import Affine, Box, Mpp, Size
from slidelens.maps.map import Map, MapData
from slidelens.maps.overlay import draw_overlay, scale_bar_um, scale_top
from slidelens.maps.palette import TISSUE, class_colors, colormap, hex_color
from slidelens.maps.picture import overview
from slidelens.maps.result import ModelInfo, Result, SlideInfo

MPP = Mpp(0.5, 0.5)
GREY = np.full((100, 200, 3), 200, np.uint8)


def test_a_cell_covers_exactly_its_pixels() -> None:
    values = np.full((1, 10, 10), np.nan)
    values[0, 3, 7] = 1
    one = Map.from_array("p", "probability", ("a",), values, Affine(20, 20), MPP)
    drawn = draw_overlay(GREY, Size(400, 200), one)  # half a picture pixel per level-0 px
    changed = (drawn != 200).any(-1)
    rows, columns = np.nonzero(changed)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (30, 39, 70, 79)
    assert changed.sum() == 100
    r, g, b, a = colormap("probability")[255]
    expected = np.rint(200 * (1 - a) + 255 * a * np.array([r, g, b]))
    np.testing.assert_allclose(drawn[35, 75], expected, atol=1)


def test_one_cell_far_above_all_others_does_not_hide_a_saliency_map() -> None:
    values = np.tile(np.linspace(0, 1, 1000, dtype=np.float32), (1, 10, 1))
    values[0, 5, 5] = 50
    tops = {}
    for kind in ("saliency", "attention", "probability"):
        one = Map.from_array("m", kind, ("a",), values, Affine(1, 1), MPP)
        tops[kind] = scale_top(one)
    assert tops["saliency"] == pytest.approx(0.995, abs=0.001)
    assert (tops["attention"], tops["probability"]) == (50, 1)


def test_coarser_levels_lie_in_the_same_place() -> None:
    fine = np.zeros((1, 2000, 4000), np.float32)
    fine[:, 600:800, 1400:1600] = 1
    coarse = fine[:, ::8, ::8].copy()
    one = Map("p", "probability", MapData(("a",), Affine(0.1, 0.1), MPP, (fine, coarse)))
    drawn = draw_overlay(GREY, Size(400, 200), one)
    rows, columns = np.nonzero((drawn != 200).any(-1))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (30, 39, 70, 79)


def test_what_is_zero_or_unknown_leaves_the_picture_alone() -> None:
    values = np.array([[[0.0, np.nan]]])
    for kind in ("probability", "attention", "saliency"):
        one = Map.from_array("p", kind, ("a",), values, Affine(200, 200), MPP)
        np.testing.assert_array_equal(draw_overlay(GREY, Size(400, 200), one), GREY)


def test_labels_take_class_colours_and_tissue_is_outlined() -> None:
    labels = Map.from_array("l", "labels", ("a", "b"), [[0, 2]], Affine(200, 200), MPP)
    drawn = draw_overlay(GREY, Size(400, 200), labels)
    assert (drawn[:, :100] == 200).all()
    expected = 0.4 * 200 + 0.6 * np.array(class_colors(["a", "b"])["b"])
    np.testing.assert_allclose(drawn[50, 150], expected, atol=1)
    mask = np.zeros((10, 20))
    mask[2:8, 5:15] = 1
    tissue = Map.from_array("tissue", "labels", ("tissue",), mask, Affine(20, 20), MPP)
    nothing = Map.from_array("l", "labels", ("a",), [[0]], Affine(400, 200), MPP)
    drawn = draw_overlay(GREY, Size(400, 200), nothing, tissue=tissue)
    outline = (drawn == TISSUE).all(-1)
    assert outline[20, 50:150].all()
    assert outline[79, 50:150].all()
    assert outline[20:80, 50].all()
    assert outline.sum() == 2 * 100 + 2 * 58


@pytest.mark.parametrize("name", [None, "saliency", "tissue"])
def test_an_overview_holds_both_panels(result: Result, name: str | None) -> None:
    thumbnail = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
    page = overview(result, thumbnail, name, panel=480)
    assert page.mode == "RGB"
    assert page.width > 2 * 480 > 2 * page.height > 480
    again = overview(result, thumbnail, name, panel=480)
    assert page.tobytes() == again.tobytes()
    assert page.tobytes() != overview(result, thumbnail // 2, name, panel=480).tobytes()
    plain = overview(result, thumbnail, name, panel=480, regions=False)
    assert page.tobytes() != plain.tobytes()


def test_several_results_stand_side_by_side(result: Result) -> None:
    one, two, five = (overview([result] * n, GREY, "probability", panel=240) for n in (1, 2, 5))
    assert one.height == two.height < five.height
    assert one.width < two.width == five.width
    other = Result(SlideInfo(id="other"), result.model, result.probabilities)
    with pytest.raises(ResultError, match="results of one slide"):
        overview([result, other], GREY)
    with pytest.raises(ResultError, match="none"):
        overview([], GREY)


def test_saliency_stands_beside_the_probability(result: Result) -> None:
    both = np.asarray(overview(result, GREY, panel=240))
    one = np.asarray(overview(result, GREY, "probability", panel=240))
    other = np.asarray(overview(result, GREY, "saliency", panel=240))
    assert both.shape[0] == one.shape[0]
    assert both.shape[1] > one.shape[1] + 240
    first, second = 24 + 252, 24 + 2 * 252  # margin; a panel and the gap behind it
    body = slice(12 + 41, 12 + 41 + 160)
    np.testing.assert_array_equal(both[body, first:][:, :240], one[body, first:][:, :240])
    np.testing.assert_array_equal(both[body, second:][:, :240], other[body, first:][:, :240])


@pytest.mark.parametrize(
    ("kind", "largest", "end"),
    [
        ("probability", 0.4, "1"),
        ("attention", 0.0123456, "0.012"),
        ("attention", 0.00001234, "1.2e-05"),
        ("saliency", 2.5, "≥ 2.5"),
    ],
)
def test_a_colour_bar_ends_in_the_value_of_its_last_colour(
    result: Result, monkeypatch: pytest.MonkeyPatch, kind: str, largest: float, end: str
) -> None:
    said: list[str] = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, place, words, *rest, **more: (
            said.append(words) or text(self, place, words, *rest, **more)
        ),
    )
    shown = Map.from_array(
        "m", kind, ("tumor",), np.full((1, 4, 4), largest), Affine(100, 100), MPP
    )
    overview(Result(result.slide, result.model, result.probabilities, maps=[shown]), GREY)
    at = said.index("m: tumor")
    assert said[at + 1 : at + 3] == [end, "0"]


def test_a_long_slide_stands_above_its_heatmap(result: Result) -> None:
    slide = result.slide.model_copy(update={"width": 3000, "height": 800})
    long = Result(slide, result.model, result.probabilities, maps=list(result.maps.values()))
    page = overview(long, np.zeros((80, 300, 3), np.uint8), panel=480)
    assert page.width < 2 * 480


def test_what_cannot_be_drawn_is_told(result: Result) -> None:
    with pytest.raises(ResultError, match="no map 'x'; it has probability, saliency, tissue"):
        overview(result, GREY, "x")
    bare = Result(SlideInfo(id="a"), ModelInfo(name="m"), {"x": 1.0})
    with pytest.raises(ResultError, match="width, height and mpp"):
        overview(bare, GREY)
    sized = Result(SlideInfo(id="a", width=9, height=9, mpp=1), ModelInfo(name="m"), {"x": 1.0})
    with pytest.raises(ResultError, match="no map"):
        overview(sized, GREY)


@pytest.mark.parametrize(
    ("width", "bar"), [(1000, 200), (999, 100), (7936, 1000), (26000, 5000), (60, 10), (0.5, 0.1)]
)
def test_scale_bars_are_round(width: float, bar: float) -> None:
    assert scale_bar_um(width) == pytest.approx(bar)


def test_classes_have_distinct_colours_and_the_last_is_vermillion() -> None:
    for n in range(1, 13):
        colors = class_colors([f"c{i}" for i in range(n)])
        assert len(set(colors.values())) == n
        assert colors[f"c{n - 1}"] == (213, 94, 0)
    assert hex_color((0, 114, 178)) == "0072B2"


def test_colormaps_are_uniform_and_grow_opaque() -> None:
    for kind in ("probability", "attention", "saliency"):
        table = colormap(kind)
        assert table.shape == (256, 4)
        assert (np.diff(table[:, 3]) >= 0).all()
        assert table[0, 3] == 0
        assert (colormap(kind, alpha=False)[:, 3] == 1).all()
        luminance = table[:, :3] @ (0.2126, 0.7152, 0.0722)
        assert (np.diff(luminance) > -1e-3).all()


def test_the_overlay_of_a_part_is_the_part_of_the_overlay() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (100, 200, 3), dtype=np.uint8)
    for kind in ("probability", "saliency", "labels"):
        values = rng.random((20, 40)) * (3 if kind != "probability" else 1)
        channels = ("t", "u", "v") if kind == "labels" else ("t",)
        one = Map.from_array("x", kind, channels, values, Affine(10, 10), Mpp(1, 1))
        whole = draw_overlay(picture, Size(400, 200), one)
        part = draw_overlay(picture[20:60, 40:], Size(400, 200), one, box=Box(80, 40, 320, 80))
        np.testing.assert_array_equal(part, whole[20:60, 40:])
    outside = draw_overlay(picture, Size(400, 200), one, box=Box(500, 0, 400, 200))
    np.testing.assert_array_equal(outside, picture)


def test_opacity_weakens_the_overlay() -> None:
    one = Map.from_array("x", "probability", ("t",), np.ones((20, 40)), Affine(10, 10), Mpp(1, 1))
    full = draw_overlay(GREY, Size(400, 200), one).astype(int)
    half = draw_overlay(GREY, Size(400, 200), one, opacity=0.5).astype(int)
    np.testing.assert_allclose(half - GREY, (full - GREY) / 2, atol=1)
