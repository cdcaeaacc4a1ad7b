import numpy as np
import pytest

from slidelens.geometry import Affine, Box, Mpp, Size
from slidelens.maps.map import Map
from slidelens.maps.regions import positive_regions
from slidelens.maps.result import ModelInfo, Result, SlideInfo, Tiles
from slidelens.review.foci import annotated_foci, find_foci, leading_map
from slidelens.testing.phantom import PhantomSpec, truth
from slidelens.testing.results import make_result
from slidelens.tiling.annotations import Annotation

SIZE, MPP = Size(4000, 4000), Mpp(0.5, 0.5)
CLASSES = ("normal", "tumor")


def result(**parts):
    slide = SlideInfo(id="a", width=SIZE.width, height=SIZE.height, mpp=MPP.x)
    return Result(slide, ModelInfo(name="m"), {"normal": 0.4, "tumor": 0.6}, **parts)


def one_map(values, cell, kind="probability", channels=("tumor",)):
    return Map.from_array(f"the-{kind}", kind, channels, values, Affine(cell, cell), MPP)


def tiles(values, side=200.0, **more):
    n = len(values)
    boxes = np.stack([np.arange(n) * side, np.zeros(n), *[np.full(n, side)] * 2], 1)
    both = np.stack([1 - np.array(values), values], 1).astype(np.float32)
    return Tiles(boxes, CLASSES, both, **more)


def test_of_tiles_the_most_probable_are_shown_as_they_are():
    found = find_foci(
        result(maps=[one_map(np.zeros((20, 20)), 200)], tiles=tiles([0.1, np.nan, 0.9, 0.4])),
        "tumor",
        2,
    )
    assert [f.box for f in found] == [Box(400, 0, 200, 200), Box(600, 0, 200, 200)]
    assert found[0].value == pytest.approx(0.9)
    (normal,) = find_foci(result(tiles=tiles([0.1, 0.9])), "normal", 1)
    assert normal.box.x == 0


def test_attention_comes_before_probability():
    looked = np.array([0.2, 0.7, 0.1], np.float32)
    found = find_foci(result(tiles=tiles([0.9, 0.1, 0.1], attention=looked)), "tumor", 1)
    assert (found[0].box.x, found[0].what) == (200, "tile with the most attention")


def test_the_peak_of_saliency_is_the_field_with_most_of_it():
    values = np.zeros((500, 500), np.float32)
    values[100, 400] = 5.0  # one loud cell
    values[290:310, 190:210] = 0.5  # a quiet crowd
    source = one_map(values, 8, "saliency")
    found = find_foci(result(maps=[source], tiles=tiles([0.9])), "tumor", 3)
    box = found[0].box
    assert (box.x + box.w / 2, box.y + box.h / 2) == pytest.approx((1600, 2400), abs=80)
    assert box.w * MPP.x == 192
    assert len(found) == 1  # what lies far below the peak is not worth a picture


def test_lesions_are_shown_whole_largest_first_or_where_they_are_strongest():
    values = np.zeros((500, 500), np.float32)
    values[50:70, 50:70] = 0.9  # 80 µm
    values[200:480, 200:480] = 0.6  # 1120 µm
    values[400:420, 220:240] = 1.0
    source = one_map(values, 8)
    fine = tiles([0.5] * 3, side=448.0)  # means over a grid, not what the method saw
    found = find_foci(
        result(maps=[source], tiles=fine, regions=positive_regions(source)), "tumor", 2
    )
    assert [round(f.box.w * MPP.x) for f in found] == [192, 128]
    large, small = (f.box for f in found)
    assert large.contains(230 * 8, 410 * 8)
    assert (small.x + small.w / 2, small.y + small.h / 2) == pytest.approx((480, 480))
    assert "lesion of" in found[0].what


def test_a_segmentation_shows_its_lesions_even_if_it_is_as_coarse_as_its_tiles():
    values = np.zeros((20, 20), np.float32)
    values[4:6, 4:7] = 0.9
    source, labels = one_map(values, 448), one_map(values > 0.5, 448, "labels")
    tiled = tiles([0.2, 0.9, 0.3], side=448.0)
    regions = positive_regions(source)
    (lesion,) = find_foci(result(maps=[source, labels], tiles=tiled, regions=regions), "tumor", 1)
    assert lesion.what.startswith("lesion of 0.301 mm², mean probability 0.")
    (tile,) = find_foci(result(maps=[source], tiles=tiled, regions=regions), "tumor", 1)
    assert tile.what.startswith("tile")
    (tile,) = find_foci(result(maps=[source, labels], tiles=tiled), "tumor", 1)
    assert tile.what.startswith("tile")


def test_without_regions_the_strongest_field_of_any_map_will_do():
    values = np.full((500, 500), 0.1, np.float32)
    values[300:320, 100:120] = 0.3
    found = find_foci(result(maps=[one_map(values, 8)], tiles=tiles([0.5], 448.0)), "tumor", 1)
    assert found[0].box.contains(110 * 8, 310 * 8)
    labels = one_map((values > 0.2) * 2, 8, "labels", ("gland", "tumor"))
    found = find_foci(result(maps=[labels]), "tumor", 1)
    assert found[0].box.contains(110 * 8, 310 * 8)
    assert find_foci(result(maps=[labels]), "gland", 1) == []
    assert find_foci(result(), "tumor", 3) == []


def test_windows_of_the_last_layer_come_first_where_the_method_chose_them():
    made = make_result(truth(PhantomSpec(size=(2048, 2048), lesions=1)), "a", "magnet", 0.9)
    found = find_foci(made, "tumor", 9)
    assert found[0].what == "window 3 of 3 in the last layer, 10x"
    assert found[0].value == pytest.approx(0.9)
    assert {f.box.w for f in found} == {512.0}


@pytest.mark.parametrize("method", ["mil", "streaming", "segmentation", "magnet"])
def test_every_kind_of_method_finds_the_tumour_of_a_phantom(method):
    facts = truth(PhantomSpec(size=(3072, 3072), lesions=1, seed=4))
    found = find_foci(make_result(facts, "a", method, 0.9, seed=4), "tumor", 3)
    assert facts.mask(found[0].box, 2.0).mean() > 0.2
    for one in found:
        for other in found:
            if one is not other:
                assert one.box.intersect(other.box).area <= 0.25 * one.box.area


def test_saliency_leads_and_the_tissue_mask_never_does():
    zero = np.zeros((5, 5))
    tissue = Map.from_array("tissue", "labels", ("tissue",), zero, Affine(1, 1), MPP)
    both = [tissue, one_map(zero, 8, "labels"), one_map(zero, 8), one_map(zero, 8, "saliency")]
    assert [leading_map(result(maps=both[:n])) for n in (1, 0)] == [None, None]
    assert [leading_map(result(maps=both[:n])).kind for n in (2, 3, 4)] == [
        "labels",
        "probability",
        "saliency",
    ]


def test_what_was_annotated_is_shown_the_largest_first():
    import shapely

    areas = [
        Annotation(shapely.box(0, 0, 100, 100), "Tumour"),
        Annotation(shapely.box(2000, 2000, 2400, 2400), "tumor"),
        Annotation(shapely.box(1000, 0, 3000, 2000), "necrosis"),
    ]
    first, second = annotated_foci(areas, "tumor", MPP, 5)
    assert first.box == pytest.approx(Box(1960, 1960, 480, 480))
    assert (second.box.x + second.box.w / 2, second.box.w) == (50, 256)
    ring = shapely.Point(2000, 2000).buffer(1500) - shapely.Point(2000, 2000).buffer(1400)
    (field,) = annotated_foci([Annotation(ring)], "tumor", MPP, 1)
    x, y, w, h = field.box
    assert ring.covers(shapely.Point(x + w / 2, y + h / 2))  # the middle of a ring is not in it
