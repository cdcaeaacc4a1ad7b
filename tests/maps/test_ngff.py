"""Maps on disk are OME-NGFF 0.5 images that lie exactly on the slide."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from ome_zarr_models.common.omero import Omero
from ome_zarr_models.v05.bioformats2raw import BioFormats2Raw
from ome_zarr_models.v05.image import Image
from ome_zarr_models.v05.image_label import ImageLabel
from ome_zarr_models.v05.labels import Labels

from slidelens.errors import ResultError
from slidelens.geometry import Affine, Mpp
from slidelens.maps.map import Map
from slidelens.maps.ngff import _halve, open_map, write_map, write_maps
from slidelens.maps.palette import class_colors

MPP = Mpp(0.2527, 0.25)


def large(shape: tuple[int, int] = (600, 2300), kind: str = "probability") -> Map:
    rng = np.random.default_rng(0)
    if kind == "labels":
        values = rng.integers(0, 3, shape)
    else:
        values = rng.random((2, *shape), np.float32)
        values[:, rng.random(shape) < 0.2] = np.nan
        values[:, :, 1100:] = np.nan
    affine = Affine(443.2130, 447.9, 12.5, 0)
    return Map.from_array("big", kind, ("normal", "tumor"), values, affine, MPP)


@pytest.mark.parametrize("kind", ["probability", "labels"])
def test_a_map_comes_back_the_same(tmp_path: Path, kind: str) -> None:
    one = large(kind=kind)
    write_map(tmp_path / "m", one)
    back = open_map(tmp_path / "m", "big", kind, MPP)
    np.testing.assert_array_equal(back.read(), one.read())
    assert back.dtype == one.dtype
    assert back.channels == ("normal", "tumor")
    np.testing.assert_allclose(back.affine, one.affine, rtol=1e-14, atol=1e-10)
    assert back.mpp == pytest.approx(one.mpp, rel=1e-14)


def test_every_model_of_the_specification_accepts_the_hierarchy(tmp_path: Path) -> None:
    one = Map.from_array("p", "probability", ("a", "b"), np.zeros((2, 5, 9)), Affine(4, 4), MPP)
    tissue = Map.from_array("tissue", "labels", ("tissue",), np.ones((7, 3)), Affine(5, 6), MPP)
    places = write_maps(tmp_path / "x.ome.zarr", [one, tissue])
    assert places == {"p": "p", "tissue": "labels/tissue"}
    root = zarr.open_group(tmp_path / "x.ome.zarr", mode="r")
    collection = BioFormats2Raw.from_zarr(root)
    assert collection.ome_attributes.version == "0.5"
    image = Image.from_zarr(root["p"])
    (multiscale,) = image.ome_attributes.multiscales
    assert [(a.name, a.type, a.unit) for a in multiscale.axes] == [
        ("c", "channel", None),
        ("y", "space", "micrometer"),
        ("x", "space", "micrometer"),
    ]
    omero = Omero.model_validate(root["p"].attrs["ome"]["omero"])
    assert [c.label for c in omero.channels] == ["a", "b"]
    label = ImageLabel.from_zarr(root["labels/tissue"])
    assert label.ome_attributes.image_label.colors[0].label_value == 1
    assert Labels.from_zarr(root["labels"]).ome_attributes.labels == ["tissue"]
    assert root["OME"].attrs["ome"]["series"] == ["p"]


def test_the_translation_puts_cell_corners_on_slide_corners(tmp_path: Path) -> None:
    write_map(tmp_path / "m", large())
    group = zarr.open_group(tmp_path / "m", mode="r")
    affine = large().affine
    for level, dataset in enumerate(group.attrs["ome"]["multiscales"][0]["datasets"]):
        scale, shift = dataset["coordinateTransformations"]
        (_, sy, sx), (_, ty, tx) = scale["scale"], shift["translation"]
        # A viewer draws cell 0 from -0.5 to 0.5 cells, and the slide's pixel 0 likewise.
        assert sx == pytest.approx(affine.sx * 2**level * MPP.x)
        assert sy == pytest.approx(affine.sy * 2**level * MPP.y)
        assert tx - sx / 2 == pytest.approx((affine.tx - 0.5) * MPP.x)
        assert ty - sy / 2 == pytest.approx((affine.ty - 0.5) * MPP.y)


def test_large_maps_have_levels_in_few_files_and_none_for_what_is_empty(tmp_path: Path) -> None:
    one = large()
    write_map(tmp_path / "m", one)
    back = open_map(tmp_path / "m", "big", "probability", MPP)
    shapes = [level.shape for level in back.levels]
    assert shapes == [(2, 600, 2300), (2, 300, 1150), (2, 150, 575)]
    np.testing.assert_allclose(back.levels[1][:], _halve(one.read(), "probability"), rtol=1e-6)
    chunks = [p for p in (tmp_path / "m" / "0" / "c").rglob("*") if p.is_file()]
    assert len(chunks) == 2 * 2  # two channels, two of three shards of 1024 cells


@given(
    arrays(
        np.float32,
        array_shapes(min_dims=3, max_dims=3, max_side=7),
        elements=st.one_of(st.just(np.nan), st.floats(-1, 1, width=32)),
    )
)
@settings(max_examples=100)
def test_halving_averages_what_is_known(fine: np.ndarray) -> None:
    half = _halve(fine, "probability")
    for i in range(half.shape[1]):
        for j in range(half.shape[2]):
            for k in range(len(fine)):
                four = fine[k, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
                known = four[~np.isnan(four)].astype(np.float64)
                expected = known.mean() if known.size else np.nan
                np.testing.assert_allclose(half[k, i, j], expected, rtol=1e-6, atol=1e-7)


@given(arrays(np.uint8, (1, 4, 6), elements=st.integers(0, 3)))
@settings(max_examples=100)
def test_halving_labels_takes_the_most_frequent(fine: np.ndarray) -> None:
    half = _halve(fine, "labels")
    for i in range(2):
        for j in range(3):
            counts = np.bincount(fine[0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].ravel())
            assert half[0, i, j] == np.flatnonzero(counts == counts.max())[-1]


def test_channels_carry_the_palette(tmp_path: Path) -> None:
    write_map(tmp_path / "m", large((4, 4)))
    channels = zarr.open_group(tmp_path / "m").attrs["ome"]["omero"]["channels"]
    assert [c["color"] for c in channels] == ["0072B2", "D55E00"]
    assert [c["active"] for c in channels] == [False, True]
    write_map(tmp_path / "l", large((4, 4), "labels"))
    colors = zarr.open_group(tmp_path / "l").attrs["ome"]["image-label"]["colors"]
    expected = class_colors(["normal", "tumor"])
    assert [tuple(c["rgba"][:3]) for c in colors] == [expected["normal"], expected["tumor"]]


def edit(folder: Path, change) -> None:
    path = folder / "zarr.json"
    content = json.loads(path.read_text())
    change(content["attributes"]["ome"])
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda ome: ome.clear(),
        lambda ome: ome.update(multiscales=[]),
        lambda ome: ome["multiscales"][0]["datasets"][0].update(path="9"),
        lambda ome: ome["multiscales"][0]["datasets"][0].pop("coordinateTransformations"),
        lambda ome: ome.pop("omero"),
        lambda ome: ome["omero"].update(channels=[{"label": "one"}]),
        lambda ome: ome.update(multiscales="?"),
    ],
)
def test_foreign_metadata_is_told_by_file(tmp_path: Path, change) -> None:
    write_map(tmp_path / "m", large((4, 4)))
    edit(tmp_path / "m", change)
    with pytest.raises(ResultError, match=re.escape(str(tmp_path / "m"))):
        open_map(tmp_path / "m", "big", "probability", MPP).read()


def test_missing_or_damaged_files_are_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="gone: not a readable Zarr group"):
        open_map(tmp_path / "gone", "big", "probability", MPP).read()
    write_map(tmp_path / "m", large((4, 4)))
    with pytest.raises(ResultError, match=r"no slide\.mpp"):
        open_map(tmp_path / "m", "big", "probability", None).read()
    chunk = next(p for p in (tmp_path / "m" / "0" / "c").rglob("*") if p.is_file())
    chunk.write_bytes(b"nonsense")
    with pytest.raises(ResultError, match=r"m/0: cannot be read"):
        open_map(tmp_path / "m", "big", "probability", MPP).read()
