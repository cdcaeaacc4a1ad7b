"""Tissue: exact fractions, any background, no slide cut in half, real slides."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage

from slidelens.errors import MissingMppError
from slidelens.geometry import Affine, Box, Mpp, Size
from slidelens.slide.array import from_array
from slidelens.slide.open import open_slide
from slidelens.testing.phantom import PhantomSpec, draw, truth
from slidelens.tiling.annotations import fraction, read_annotations
from slidelens.tiling.grid import GridSpec, make_grid
from slidelens.tiling.thresholds import _near
from slidelens.tiling.tissue import TissueMask, TissueSettings, tissue_mask

PINK, PURPLE = (222, 150, 190), (120, 70, 150)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def _at(mask: TissueMask, size: Size) -> np.ndarray:
    """The mask at the centre of every level-0 pixel."""
    column = ((np.arange(size.width) + 0.5) / mask.affine.sx).astype(int)
    row = ((np.arange(size.height) + 0.5) / mask.affine.sy).astype(int)
    return mask.array[row][:, column]


def _paint(background: tuple[int, int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A noisy slide of 1.2 x 1 mm at 2 µm/px with a disc of tissue; and where the disc is."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:500, :600]
    disc = np.hypot(x - 300, y - 250) < 180
    image = np.empty((500, 600, 3))
    image[:] = background
    image[disc] = PINK
    image[disc & (rng.random((500, 600)) < 0.3)] = PURPLE
    return np.clip(image + rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8), disc


# --- the mask -------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    st.lists(st.tuples(*[st.floats(-20, 90)] * 2, *[st.floats(0.1, 90)] * 2), min_size=1),
    st.tuples(st.floats(1, 20), st.floats(1, 20), st.floats(-9, 9), st.floats(-9, 9)),
)
def test_fraction_is_the_covered_area(boxes: list[tuple[float, ...]], place: tuple[float, ...]):
    array = np.array([[1, 0, 1, 1], [0, 0, 1, 0], [1, 1, 0, 1]], bool)
    affine = Affine(*place)
    found = TissueMask(array, affine).fraction(np.array(boxes))
    for value, box in zip(found, boxes, strict=True):
        cells = [affine.box(j, i).intersect(Box(*box)).area for i, j in np.argwhere(array)]
        assert value == pytest.approx(sum(cells) / (box[2] * box[3]), abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(
    place=st.tuples(st.floats(0.3, 40), st.floats(0.3, 40), st.floats(-30, 30), st.floats(-30, 30)),
    cell=st.tuples(st.floats(0.5, 500), st.floats(0.5, 500)),
    start=st.tuples(st.floats(-200, 100), st.floats(-200, 100)),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
def test_a_lattice_has_the_tissue_of_its_boxes(
    place: tuple[float, ...],
    cell: tuple[float, float],
    start: tuple[float, float],
    shape: tuple[int, int],
):
    mask = TissueMask(np.random.default_rng(1).random((300, 17)) > 0.4, Affine(*place))
    (w, h), (rows, columns) = cell, shape
    x, y = start[0] + w * np.arange(columns + 1), start[1] + h * np.arange(rows + 1)
    boxes = [(left, top, w, h) for top in y[:-1] for left in x[:-1]]
    cells = mask.fraction(np.array(boxes)).reshape(shape) * w * h / (place[0] * place[1])
    assert mask.of_lattice(x, y) == pytest.approx(cells, abs=1e-6 + 1e-6 * cells.max())


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32])
def test_a_mask_of_numbers_is_tissue_where_it_is_not_zero(kind: type):
    mask = TissueMask((np.eye(4) * 255).astype(kind), Affine(2.0, 2.0))
    assert mask.fraction(np.array([[0.0, 0, 8, 8]])).tolist() == [0.25]
    assert mask.of_lattice(np.array([0.0, 8]), np.array([0.0, 8])).tolist() == [[4.0]]
    with pytest.raises(ValueError, match=r"is \(h, w\), .* not \(4, 4, 3\)"):
        TissueMask(np.ones((4, 4, 3), kind), Affine(2.0, 2.0))


def test_fraction_of_a_box_without_area_is_nothing():
    mask = TissueMask(np.ones((2, 2), bool), Affine(1, 1))
    assert mask.fraction(np.array([[0.5, 0.5, 0, 1]])).tolist() == [0]


def test_area_in_square_millimetres():
    mask = TissueMask(np.ones((10, 20), bool), Affine(16, 8))
    assert mask.area_mm2(Mpp(0.5, 0.25)) == pytest.approx(200 * 8 * 2 / 1e6)


# --- methods --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["auto", "stain", "otsu"])
@pytest.mark.parametrize("background", [(255, 255, 255), (243, 240, 244), (205, 204, 206)])
def test_tissue_on_white_and_grey(background: tuple[int, int, int], method: str):
    image, disc = _paint(background)
    mask = tissue_mask(from_array(image, mpp=2.0), TissueSettings(method=method))
    assert mask.settings.method == ("stain" if method == "auto" else method)
    assert _iou(_at(mask, Size(600, 500)), disc) > 0.97


def test_black_filling_around_a_scan_is_no_tissue():
    image, disc = _paint((240, 240, 240))
    wide = np.zeros((900, 1000, 3), np.uint8)
    wide[200:700, 200:800] = image
    whole = np.zeros((900, 1000), bool)
    whole[200:700, 200:800] = disc
    mask = tissue_mask(from_array(wide, mpp=2.0))
    assert mask.settings.method == "stain"
    assert _iou(_at(mask, Size(1000, 900)), whole) > 0.95


def test_tissue_straight_on_black():
    image, disc = _paint((0, 0, 0))
    image[disc & (np.arange(600) % 40 < 12)] = 245  # clefts show the lamp
    mask = tissue_mask(from_array(image, mpp=2.0))
    assert _iou(_at(mask, Size(600, 500)), disc) > 0.95


def test_fluorescence_is_found_by_light():
    rng = np.random.default_rng(3)
    image = rng.normal(4, 1, (500, 600, 3)).clip(0, 255).astype(np.uint8)
    y, x = np.mgrid[:500, :600]
    disc = np.hypot(x - 250, y - 250) < 180
    nuclei = ndimage.binary_dilation(disc & (rng.random(disc.shape) < 0.007), iterations=3)
    image[nuclei, 2] = 200
    mask = tissue_mask(from_array(image, mpp=2.0))
    assert mask.settings.method == "intensity"
    assert _iou(_at(mask, Size(600, 500)), disc) > 0.85


def test_a_thin_stroke_that_pales_in_places_is_pen_all_along():
    image, disc = _paint((246, 246, 246))
    ink = 0.8 + 0.35 * np.sin(np.arange(500) / 30)[:, None, None]
    image[:, 32:44] = 246 * np.exp(-ink * (1.31, 1.15, 0.46))  # 24 µm wide
    kept, found = (
        _at(tissue_mask(from_array(image, mpp=2.0), TissueSettings(pen=pen)), Size(600, 500))
        for pen in (False, True)
    )
    assert kept[4:-4, 32:44].all()
    assert not found[:, :60].any()
    assert _iou(found, disc) > 0.9


@pytest.mark.parametrize("colour", ["blue", "green", "black", "red"])
def test_pen_is_left_out(colour: str):
    spec = PhantomSpec(size=(1500, 1200), mpp=1.0, seed=6, pen=colour)
    slide, known = from_array(draw(spec), mpp=spec.mpp), truth(spec)
    box = Box.of_size(spec.size)
    ink = known.mask(box, spec.mpp, "pen")
    assert ink.mean() > 0.01
    mask = _at(tissue_mask(slide), slide.size)
    assert mask[ink].mean() < 0.01
    kept = _at(tissue_mask(slide, TissueSettings(pen=False)), slide.size)
    if colour != "black":  # black ink has no colour: the stain method never takes it for tissue
        assert kept[ink].mean() > 0.9
    tissue = known.mask(box, spec.mpp, "tissue")
    assert _iou(mask, tissue) > 0.93


@pytest.mark.parametrize("method", ["auto", "stain", "otsu", "intensity"])
@pytest.mark.parametrize("value", [0, 128, 200, 255])
def test_a_blank_slide_has_no_tissue(method: str, value: int):
    image = np.full((300, 400, 3), value, np.uint8)
    mask = tissue_mask(from_array(image, mpp=2.0), TissueSettings(method=method))
    if method == "otsu" and value == 128:
        assert mask.array.all()  # darkness alone: an even grey is as dark as tissue
    else:
        assert not mask.array.any()
    assert mask.area_mm2(Mpp(2, 2)) in (0, pytest.approx(0.48))


@pytest.mark.parametrize("method", ["auto", "stain", "otsu"])
def test_a_crop_of_nothing_but_tissue_is_all_tissue(method: str):
    image, disc = _paint((255, 255, 255))
    crop = image[150:350, 200:400]
    assert disc[150:350, 200:400].all()
    mask = tissue_mask(from_array(crop, mpp=2.0), TissueSettings(method=method))
    assert mask.array.all()


def test_tissue_up_to_the_border_stays_there():
    image, disc = _paint((255, 255, 255))
    crop = image[:, 301:]  # a border through the tissue, at no whole number of cells
    mask = tissue_mask(from_array(crop, mpp=2.0))
    assert _iou(_at(mask, Size(299, 500)), disc[:, 301:]) > 0.97
    assert mask.array[60, 0]


def test_holes_and_specks_are_judged_by_their_area():
    image, _ = _paint((255, 255, 255))
    image[240:260, 290:310] = 255  # 40 x 40 µm
    image[20:40, 20:40] = PINK
    slide = from_array(image, mpp=2.0)
    settings = TissueSettings(min_area=5_000, max_hole=5_000, closing=0)
    mask = _at(tissue_mask(slide, settings), slide.size)
    assert mask[250, 300]
    assert not mask[30, 30]
    fine = settings.model_copy(update={"min_area": 500.0, "max_hole": 500.0})
    mask = _at(tissue_mask(slide, fine), slide.size)
    assert not mask[250, 300]
    assert mask[30, 30]


@pytest.mark.parametrize("shape", [(70, 90), (1, 40), (3, 5), (1, 1)])
@pytest.mark.parametrize("radius", [0.4, 1.0, 2.5, 3.0, 7.3, 60.0])
def test_near_is_a_true_disc(shape: tuple[int, int], radius: float):
    mask = np.random.default_rng(0).random(shape) < 0.02
    mask[0, 0] = True
    expected = ndimage.distance_transform_edt(~mask) <= radius
    assert np.array_equal(_near(mask, radius), expected)
    assert not _near(np.zeros(shape, bool), radius).any()


def test_closing_bridges_gaps_of_its_width():
    image = np.full((400, 400, 3), 255, np.uint8)
    image[50:350, 50:350] = PINK
    image[:, 192:208] = 255  # 32 µm, open at both ends
    slide = from_array(image, mpp=2.0)
    closed, open_ = (
        _at(tissue_mask(slide, TissueSettings(closing=um)), slide.size)[200, 200] for um in (24, 8)
    )
    assert closed
    assert not open_


def test_whole_is_everything_and_reads_nothing(monkeypatch: pytest.MonkeyPatch):
    slide = from_array(np.full((101, 99, 3), 255, np.uint8), mpp=2.0)
    monkeypatch.setattr(type(slide), "read", None)
    mask = tissue_mask(slide, TissueSettings(method="whole"))
    assert mask.array.all()
    assert mask.fraction(np.array([[0, 0, 99, 101]])).tolist() == [1]


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (40, 25)])
def test_a_slide_smaller_than_a_cell_works(size: tuple[int, int]):
    image = np.full((size[1], size[0], 3), PINK, np.uint8)
    mask = tissue_mask(from_array(image, mpp=0.5))
    assert mask.fraction(np.array([[0, 0, *size]])) == pytest.approx(1)


def test_strips_make_no_difference(monkeypatch: pytest.MonkeyPatch):
    slide = from_array(_paint((240, 240, 240))[0], mpp=2.0)
    whole = tissue_mask(slide)
    monkeypatch.setattr("slidelens.tiling.tissue._STRIP_PX", 6000)
    assert (tissue_mask(slide).array == whole.array).all()


def test_without_resolution_it_says_so():
    with pytest.raises(MissingMppError, match="--mpp"):
        tissue_mask(from_array(np.zeros((9, 9, 3), np.uint8)))


def test_settings_refuse_what_they_do_not_know():
    with pytest.raises(ValidationError):
        TissueSettings(metod="otsu")
    with pytest.raises(ValidationError):
        TissueSettings(mpp=0)


# --- real slides ----------------------------------------------------------------------------------


@pytest.mark.realdata
@pytest.mark.parametrize("method", ["auto", "otsu"])
def test_colon_polyp_against_its_mask(data: Path, method: str):
    known = tifffile.imread(data / "wsi/colon_polyp_203mp_tissue_mask_ds4.tif") > 0
    with open_slide(data / "wsi/colon_polyp_203mp.tif", mpp=0.5) as slide:
        mask = tissue_mask(slide, TissueSettings(method=method))
    found = _at(TissueMask(mask.array, Affine(4, 4)), Size(3968, 3200))
    assert _iou(found, known) >= 0.93
    assert (found & known).sum() / known.sum() >= 0.97


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "mpp", "method", "low", "high"),
    [
        ("CMU-1-Small-Region.svs", None, "stain", 0.36, 0.45),
        ("TCGA-CR-7395-01A-01-TS1.svs", 0.25, "stain", 0.60, 0.70),
        ("test3-DAPI-2-387.ndpi", None, "intensity", 0.75, 0.95),
        ("google_camelyon_jpeg.dcm", None, "stain", 0.18, 0.30),
    ],
)
def test_share_of_tissue_on_slides_of_four_scanners(
    data: Path, name: str, mpp: float | None, method: str, low: float, high: float
):
    with open_slide(data / "wsi" / name, mpp=mpp) as slide:
        mask = tissue_mask(slide)
    assert mask.settings.method == method
    assert low < mask.array.mean() < high


@pytest.mark.realdata
def test_labelled_cohort_keeps_every_tumour_tile_and_drops_background(data: Path):
    folder = data / "crc_mosaic"
    with (folder / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 68
    off = []
    for row in rows:
        name = row["slide_id"]
        with open_slide(folder / f"slides/{name}.tif") as slide:
            grid = make_grid(
                slide.size, slide.require_mpp(), GridSpec(224, 0.5), tissue=tissue_mask(slide)
            )
        tumour = fraction(read_annotations(folder / f"annotations/{name}.geojson"), grid.boxes)
        assert np.count_nonzero(tumour > 0.5) == int(row["tumor_tiles"]), name
        off.append(len(grid) - int(row["tissue_tiles"]))
    assert min(off) == 0  # no tissue tile is lost
    assert max(off) <= 2  # a gap between tiles may be closed
    assert sum(off) <= 15
