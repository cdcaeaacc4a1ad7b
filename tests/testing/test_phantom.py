"""Phantoms: pure, exact, readable, and told apart by texture only."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from slidelens.geometry import Box, Mpp, Size
from slidelens.slide.open import open_slide
from slidelens.testing import phantom
from slidelens.testing.phantom import (
    CLASSES,
    PhantomSpec,
    PhantomTruth,
    draw,
    truth,
    write_cohort,
    write_phantom,
)
from slidelens.testing.pyramid import write_pyramid
from slidelens.tiling.annotations import fraction, read_annotations
from slidelens.tiling.grid import GridSpec, make_grid

SPEC = PhantomSpec(size=(1400, 1100), mpp=0.5, seed=4, lesions=2, tumor_fraction=0.3, pen="blue")


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return draw(SPEC)


# --- purity ---------------------------------------------------------------------------------------


@settings(max_examples=10, phases=[Phase.explicit, Phase.generate])
@example(0, 105, 255, 279)  # its corner touches the soft edge of the tissue
@given(st.integers(0, 1300), st.integers(0, 1000), st.integers(1, 300), st.integers(1, 300))
def test_any_box_is_the_crop_of_the_whole(image: np.ndarray, x: int, y: int, w: int, h: int):
    w, h = min(w, 1400 - x), min(h, 1100 - y)
    assert (draw(SPEC, Box(x, y, w, h)) == image[y : y + h, x : x + w]).all()


def test_far_from_the_corner_boxes_still_meet():
    spec = PhantomSpec(size=(120_000, 90_000), mpp=0.25, seed=2, lesions=3)
    x, y = (int(v) for v in truth(spec).tumor[0].polygon.centroid.coords[0])
    whole = draw(spec, Box(x - 200, y - 200, 400, 400))
    below = draw(spec, Box(x - 200, y + 50, 400, 100))
    assert (whole[250:350] == below).all()
    assert np.ptp(whole) > 100


def test_the_seed_decides():
    small = Box(600, 500, 64, 64)
    assert (draw(SPEC, small) == draw(PhantomSpec(**vars(SPEC)), small)).all()
    other = PhantomSpec(**{**vars(SPEC), "seed": 5})
    assert (draw(SPEC, small) != draw(other, small)).mean() > 0.5


@pytest.mark.parametrize("box", [Box(0.5, 0, 9, 9), Box(-1, 0, 9, 9), Box(1395, 0, 9, 9)])
def test_a_box_that_cannot_be_drawn_is_refused(box: Box):
    with pytest.raises(ValueError, match="box"):
        draw(SPEC, box)


@pytest.mark.parametrize(
    "wrong", [{"size": (0, 9)}, {"mpp": 0}, {"lesions": -1}, {"tumor_fraction": 1.0}]
)
def test_a_spec_that_makes_no_slide_is_refused(wrong: dict[str, object]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PhantomSpec(**wrong)


# --- truth ----------------------------------------------------------------------------------------


def test_tissue_is_where_the_truth_says(image: np.ndarray):
    known = truth(SPEC)
    assert known.label == 1
    box = Box.of_size(SPEC.size)
    tissue, pen = (known.mask(box, 0.5, what) for what in ("tissue", "pen"))
    coloured = np.ptp(image, axis=2) > 25
    assert not (coloured & ~tissue & ~pen).any(where=~_edge(known))
    assert coloured[pen].mean() > 0.99
    # Stroma is pink; lumina, clefts and fat inside tissue are not.
    assert coloured[tissue].mean() > 0.6


def _edge(known: PhantomTruth) -> np.ndarray:
    """Pixels within 4 of an outline."""
    box = Box.of_size(SPEC.size)
    masks = [known.mask(box, 0.5, what) for what in ("tissue", "pen")]
    edge = np.zeros(masks[0].shape, bool)
    for mask in masks:
        edge |= ndimage.binary_dilation(mask, iterations=4)
        edge &= ~ndimage.binary_erosion(mask, iterations=4)
    return edge


def test_tumour_changes_no_pixel_outside_its_polygons(monkeypatch: pytest.MonkeyPatch):
    """Benign glands and fat make room for it; they are left out here."""
    glands = phantom.draw_glands

    def no_benign(canvas: object, style: object, *fields: object) -> None:
        if style is not phantom.BENIGN:
            glands(canvas, style, *fields)

    monkeypatch.setattr(phantom, "draw_glands", no_benign)
    monkeypatch.setattr(phantom, "draw_fat", lambda *planes: None)
    spec = PhantomSpec(**{**vars(SPEC), "pen": None})
    healthy = PhantomSpec(**{**vars(spec), "lesions": 0})
    assert (truth(healthy).label, truth(healthy).tumor) == (0, ())
    changed = (draw(spec) != draw(healthy)).any(axis=2)
    inside = truth(spec).mask(Box.of_size(spec.size), 0.5)
    assert changed[inside].mean() > 0.8
    assert not changed[~ndimage.binary_dilation(inside, iterations=2)].any()


def test_lesions_lie_inside_tissue_apart_and_of_the_asked_size():
    spec = PhantomSpec(size=(6000, 5000), seed=11, lesions=4, tumor_fraction=0.2)
    known = truth(spec)
    tissue = shapely.union_all([a.polygon for a in known.tissue])
    lesions = [a.polygon for a in known.tumor]
    assert len(lesions) == 4
    assert all(tissue.contains(p) for p in lesions)
    assert all(a.disjoint(b) for i, a in enumerate(lesions) for b in lesions[:i])
    share = sum(p.area for p in lesions) / tissue.area
    assert 0.1 < share < 0.25


def test_masks_at_any_resolution_are_the_polygons():
    known = truth(SPEC)
    area = sum(a.polygon.area for a in known.tumor)
    for mpp in (0.5, 0.77, 2.0):
        mask = known.mask(Box.of_size(SPEC.size), mpp)
        assert mask.sum() * (mpp / 0.5) ** 2 == pytest.approx(area, rel=0.02)


# --- files ----------------------------------------------------------------------------------------


def test_openslide_reads_what_was_drawn(tmp_path: Path, image: np.ndarray):
    spec = PhantomSpec(**{**vars(SPEC), "mpp": 0.2527})
    known = write_phantom(tmp_path / "a.tif", spec)
    with open_slide(tmp_path / "a.tif", backend="openslide") as slide:
        assert slide.size == known.size == Size(1400, 1100)
        assert slide.mpp == pytest.approx((0.2527, 0.2527), rel=1e-9)
        assert [lv.size for lv in slide.levels] == [(1400, 1100), (350, 275), (88, 69)]
        box = Box(300, 200, 700, 700)
        read, drawn = (v.astype(float) for v in (slide.read(box), draw(spec, box)))
        assert np.abs(read - drawn).mean() < 5  # JPEG
        assert np.abs((read - drawn).mean((0, 1))).max() < 0.5
        # A stored level is the area mean of level 0, in place.
        mean = drawn.reshape(175, 4, 175, 4, 3).mean((1, 3))
        here, beside = (np.abs(slide.read_level(1, x, 50, 175, 175) - mean) for x in (75, 76))
        assert 2 * here.mean() < beside.mean()


def test_the_same_spec_gives_the_same_bytes(tmp_path: Path):
    spec = PhantomSpec(size=(500, 300), seed=1)
    for name in ("a.tif", "b.tif"):
        write_phantom(tmp_path / name, spec)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_a_repeated_slide_reuses_its_tiles(tmp_path: Path):
    drawn = []

    def paint(box: Box) -> np.ndarray:
        drawn.append(box)
        y, x = np.mgrid[: int(box.h), : int(box.w)]
        return np.stack([x // 16 % 256, y // 16 % 256, (x + y) // 32 % 256], axis=2).astype(
            np.uint8
        )

    path = tmp_path / "a.tif"
    write_pyramid(path, Size(4096, 4096), Mpp(0.5, 0.5), paint, repeat=(2, 2))
    assert len(drawn) == 1
    with open_slide(path, backend="openslide") as slide:
        assert slide.size == Size(8192, 8192)
        for level, side in ((0, 4096), (1, 1024), (2, 256)):
            first = slide.read_level(level, 100, 60, 90, 90)
            again = slide.read_level(level, 100 + side, 60 + side, 90, 90)
            assert (first == again).all()


def test_a_repeat_that_would_not_fit_the_tiles_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="multiples of 4096"):
        write_phantom(tmp_path / "a.tif", PhantomSpec(size=(4000, 4096), repeat=(2, 1)))


def test_truth_repeats_too():
    one, four = (
        truth(PhantomSpec(size=(4096, 4096), lesions=1, repeat=r)) for r in ((1, 1), (2, 2))
    )
    assert four.size == Size(8192, 8192)
    assert len(four.tumor) == 4 * len(one.tumor)
    masks = [t.mask(Box(x, y, 4096, 4096), 4.0) for t, x, y in ((one, 0, 0), (four, 4096, 4096))]
    assert masks[0].any()
    assert (masks[0] == masks[1]).all()


def test_a_giant_ends_in_a_small_level(tmp_path: Path):
    """The levels that are drawn stop at 2304 px here; the next is made of their tiles."""
    path = tmp_path / "giant.tif"

    def paint(box: Box):
        stripes = np.zeros((int(box.h), int(box.w), 3), np.uint8)
        stripes[:, : stripes.shape[1] // 2] = (200, 80, 120)
        return stripes

    write_pyramid(path, Size(4096, 4096), Mpp(0.5, 0.5), paint, repeat=(9, 1))
    with open_slide(path) as slide:
        assert [lv.size[0] for lv in slide.levels] == [36864, 9216, 2304, 576]
        coarse = slide.read_level(3, 0, 0, 576, 64)
    stripes = coarse.reshape(64, 9, 64, 3).astype(int)
    np.testing.assert_allclose(stripes[:, :, 4:28] - (200, 80, 120), 0, atol=4)
    np.testing.assert_allclose(stripes[:, :, 36:60], 0, atol=4)


def test_levels_are_drawn_block_by_block(tmp_path: Path):
    """A slide wider and higher than one block: no call draws more than a block."""
    calls: list[Box] = []

    def paint(box: Box) -> np.ndarray:
        calls.append(box)
        return np.full((int(box.h), int(box.w), 3), 200, np.uint8)

    write_pyramid(tmp_path / "a.tif", Size(4400, 4200), Mpp(0.5, 0.5), paint)
    assert max(box.area for box in calls) <= 4096**2
    assert sum(box.area for box in calls) == 4400 * 4200
    with open_slide(tmp_path / "a.tif", backend="openslide") as slide:
        for level, lv in enumerate(slide.levels):
            whole = slide.read_level(level, 0, 0, *lv.size)
            assert abs(int(whole.min()) - 200) <= 1
            assert abs(int(whole.max()) - 200) <= 1


@pytest.mark.parametrize(
    ("n", "shares", "splits"),
    [
        (6, {"tune": 1 / 3, "test": 1 / 3}, "train train tune tune test test"),
        (5, {"tune": 0.5}, "train train tune tune tune"),
        (5, {"tune": 0.5, "test": 0.5}, "tune tune test test test"),
    ],
)
def test_splits_of_a_cohort(tmp_path: Path, n: int, shares: dict[str, float], splits: str):
    write_cohort(tmp_path, n, size=(256, 256), **shares)
    with (tmp_path / "labels.csv").open() as file:
        assert " ".join(row["split"] for row in csv.DictReader(file)) == splits


def test_cohort(tmp_path: Path):
    made = write_cohort(tmp_path, 6, seed=3, size=(700, 700), tune=0.3)
    with (tmp_path / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["slide_id"] for r in rows] == [f"phantom_{n:03d}" for n in range(6)]
    assert {(r["label"], r["split"]) for r in rows} == {
        (c, s) for c in CLASSES for s in ("train", "tune")
    }
    for row, known in zip(rows, made, strict=True):
        assert row["label"] == CLASSES[known.label]
        assert (tmp_path / f"slides/{row['slide_id']}.tif").is_file()
        found = read_annotations(tmp_path / f"annotations/{row['slide_id']}.geojson")
        assert [a.label for a in found] == ["tumor"] * len(known.tumor)
        assert bool(len(found)) == bool(known.label)
        for a, b in zip(found, known.tumor, strict=True):
            assert a.polygon.symmetric_difference(b.polygon).area < 1e-6


# --- what a model sees ----------------------------------------------------------------------------


def test_texture_tells_tumour_and_mean_colour_does_not():
    """Tiles of 224 px at 0.5 µm/px, judged on slides that the classifier has not seen."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    colour, texture, label, owner = [], [], [], []
    for n in range(8):
        spec = PhantomSpec(size=(1792, 1792), seed=300 + n, lesions=2, tumor_fraction=0.3)
        known, whole = truth(spec), draw(spec)
        grid = make_grid(known.size, known.mpp, GridSpec(224, 0.5))
        tissue, tumour = fraction(known.tissue, grid.boxes), fraction(known.tumor, grid.boxes)
        for box, a, b in zip(grid.boxes.astype(int), tissue, tumour, strict=True):
            if a < 0.8 or 0.02 < b < 0.5:
                continue
            tile = whole[box[1] : box[1] + 224, box[0] : box[0] + 224].astype(float)
            red = tile[::2, ::2, 0]
            scales = [ndimage.gaussian_gradient_magnitude(red, s).mean() for s in (1, 3)]
            colour.append(tile.mean((0, 1)))
            texture.append([*scales, *np.percentile(red, [1, 5, 10, 25, 50, 75, 90, 99])])
            label.append(b >= 0.5)
            owner.append(n)
    y, train = np.array(label), np.array(owner) < 5
    assert y[train].sum() > 10
    assert y[~train].sum() > 10

    def auc(features: list[object]) -> float:
        """Of the better of a forest and a quadratic model."""
        x, scores = np.array(features), []
        for model in (
            RandomForestClassifier(100, class_weight="balanced", random_state=0),
            make_pipeline(
                StandardScaler(),
                PolynomialFeatures(2),
                LogisticRegression(class_weight="balanced", max_iter=5000),
            ),
        ):
            model.fit(x[train], y[train])
            scores.append(roc_auc_score(y[~train], model.predict_proba(x[~train])[:, 1]))
        return max(scores)

    assert auc(colour) < 0.88 < 0.93 < auc(texture)


def test_a_placed_section_is_alone_on_its_slide(tmp_path: Path):
    spec = PhantomSpec(size=(4096, 4096), mpp=2.0, repeat=(3, 2), place=(2, 1), lesions=1)
    made = truth(spec)
    assert made.size == Size(12288, 8192)
    assert len(made.tumor) == 1
    left, top, right, bottom = made.tumor[0].polygon.bounds
    assert left >= 8192
    assert right <= 12288
    assert top >= 4096
    assert bottom <= 8192
    path = tmp_path / "a.tif"
    pink = np.array((200, 80, 120), np.uint8)
    write_pyramid(
        path,
        Size(4096, 4096),
        Mpp(2.0, 2.0),
        lambda box: np.broadcast_to(pink, (int(box.h), int(box.w), 3)).copy(),
        repeat=(3, 2),
        place=(2, 1),
    )
    with open_slide(path) as slide:
        for level, lv in enumerate(slide.levels):
            side = 4096 // round(lv.downsample)
            inside = slide.read_level(level, 2 * side, side, side, side)
            outside = slide.read_level(level, 0, 0, 2 * side, 2 * side)
            np.testing.assert_allclose(inside.astype(int) - pink, 0, atol=3)
            assert (outside == 246).all()


def test_a_place_beyond_the_repeats_is_refused():
    with pytest.raises(ValueError, match="place \\(1, 0\\)"):
        PhantomSpec(size=(4096, 4096), place=(1, 0))
