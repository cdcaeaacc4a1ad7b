"""OME-Zarr, written here in both versions."""

import json

import numpy as np
import pytest
import zarr

from slidelens import Box, SlideError, UnsupportedSlideError, open_slide
from slidelens.slide.channels import COLOURS
from slidelens.slide.describe import describe

RGB = np.random.default_rng(0).integers(0, 256, (300, 420, 3)).astype(np.uint8)
LENGTH = {"y": "space", "x": "space", "z": "space", "c": "channel", "t": "time"}


def write(path, version, axes, levels, unit="micrometer", side=0.5, **extra):
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    datasets = []
    for i, array in enumerate(levels):
        chunks = tuple(100 if axis in "yx" else 1 for axis in axes)
        group.create_array(str(i), data=array, chunks=chunks)
        scale = [side * 2**i if axis in "yx" else 1.0 for axis in axes]
        datasets.append(
            {"path": str(i), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        )
    named = [{"name": axis, "type": LENGTH[axis]} for axis in axes]
    for axis in named:
        if axis["type"] == "space" and unit:
            axis["unit"] = unit
    multiscale = {"axes": named, "datasets": datasets, "name": "slide"}
    if version == "0.4":
        multiscale["version"] = "0.4"
        group.attrs.update({"multiscales": [multiscale], **extra})
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale], **extra}
    return group


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["cyx", "tczyx"])
def test_rgb(tmp_path, version, axes):
    path = tmp_path / "slide.ome.zarr"
    levels = [np.moveaxis(RGB[::step, ::step], 2, 0) for step in (1, 2)]
    if axes == "tczyx":
        levels = [level[None, :, None] for level in levels]
    write(path, version, axes, levels)
    with open_slide(path) as slide:
        facts = describe(slide)
        assert (slide.backend, slide.id, slide.channels) == ("omezarr", "slide", ())
        assert facts["mpp"] == 0.5
        assert facts["mpp_source"] == "NGFF scale"
        assert [level.downsample for level in slide.levels] == [1.0, 2.0]
        np.testing.assert_array_equal(slide.read(Box(33, 44, 222, 111)), RGB[44:155, 33:255])
        np.testing.assert_array_equal(slide.read(Box(0, 0, 420, 300), 1.0), RGB[::2, ::2])


@pytest.mark.parametrize("kind", ["<u2", ">u2"])
def test_sixteen_bit_colours_of_either_byte_order(tmp_path, kind):
    path = tmp_path / "slide.ome.zarr"
    write(path, "0.4", "cyx", [(np.moveaxis(RGB, 2, 0).astype(int) * 257).astype(kind)])
    with open_slide(path) as slide:
        assert slide.channels == ()
        np.testing.assert_array_equal(slide.read(Box(33, 44, 222, 111)), RGB[44:155, 33:255])


@pytest.mark.parametrize(
    ("unit", "side", "mpp"),
    [
        ("nanometer", 250, 0.25),
        ("millimeter", 0.001, 1.0),
        ("angstrom", 5000, 0.5),
        (None, 0.25, None),
        ("second", 1, None),
    ],
)
def test_units(tmp_path, unit, side, mpp):
    path = tmp_path / "slide.zarr"
    write(path, "0.5", "yx", [RGB[..., 0]], unit=unit, side=side)
    with open_slide(path) as slide:
        assert slide.mpp == (None if mpp is None else pytest.approx((mpp, mpp)))
        pixels = slide.read(Box(0, 0, 420, 300))
        np.testing.assert_array_equal(pixels, np.repeat(RGB[..., :1], 3, 2))


def test_scale_of_the_whole_multiscale_counts_too(tmp_path):
    path = tmp_path / "slide.zarr"
    group = write(path, "0.5", "yx", [RGB[..., 0]], side=0.5)
    ome = dict(group.attrs["ome"])
    ome["multiscales"][0]["coordinateTransformations"] = [{"type": "scale", "scale": [1.0, 0.5]}]
    group.attrs["ome"] = ome
    with open_slide(path) as slide:
        assert slide.mpp == (0.25, 0.5)


def test_channels(tmp_path):
    path = tmp_path / "cells.zarr"
    channels = np.zeros((2, 200, 200), np.uint16)
    channels[0, 50:, :] = 4000
    channels[1, :, 100:] = 70
    omero = {
        "channels": [{"label": "DAPI", "color": "0000FF"}, {"label": "PD1", "color": "FF0000"}]
    }
    write(path, "0.5", "cyx", [channels], omero=omero)
    with open_slide(path) as slide:
        assert slide.channels == ("DAPI", "PD1")
        pixels = slide.read(Box(0, 0, 200, 200))
    np.testing.assert_array_equal(pixels[100, 10], COLOURS[0])
    np.testing.assert_array_equal(pixels[10, 150], COLOURS[1])


def test_four_channels_that_are_stated_are_no_colours_with_alpha(tmp_path):
    path = tmp_path / "cells.zarr"
    omero = {"channels": [{"active": True}] * 4}
    write(path, "0.5", "cyx", [np.zeros((4, 200, 200), np.uint16)], omero=omero)
    with open_slide(path) as slide:
        assert len(slide.channels) == 4


def test_several_masks(tmp_path):
    path = tmp_path / "slide.ome.zarr"
    masks = np.stack([RGB[..., 0] > 99, RGB[..., 1] > 250])
    write(path, "0.5", "cyx", [masks])
    with open_slide(path) as slide:
        pixels = slide.read(Box(0, 0, 420, 300))
    assert (pixels[masks[0] & ~masks[1]] == COLOURS[0]).all()
    assert (pixels[~masks[0] & masks[1]] == COLOURS[1]).all()
    assert not pixels[~masks.any(0)].any()


def test_bioformats2raw_layout(tmp_path):
    root = tmp_path / "slide.zarr"
    group = zarr.open_group(root, mode="w", zarr_format=2)
    group.attrs["bioformats2raw.layout"] = 3
    write(root / "0", "0.4", "cyx", [np.moveaxis(RGB, 2, 0)])
    with open_slide(root) as slide:
        np.testing.assert_array_equal(slide.read(Box(0, 0, 50, 50)), RGB[:50, :50])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_layout_that_names_its_images(tmp_path, version):
    """As bioformats2raw writes with names of its own, and ``slidelens export`` writes maps."""
    root = tmp_path / "slide.ome.zarr"
    group = zarr.open_group(root, mode="w", zarr_format=2 if version == "0.4" else 3)
    for where, about in ((group, {"bioformats2raw.layout": 3}), ("OME", {"series": ["main/one"]})):
        at = group.create_group(where) if isinstance(where, str) else where
        at.attrs.update(about if version == "0.4" else {"ome": {"version": "0.5", **about}})
    group.create_group("main")
    write(root / "main" / "one", version, "cyx", [np.moveaxis(RGB, 2, 0)])
    with open_slide(root) as slide:
        np.testing.assert_array_equal(slide.read(Box(0, 0, 50, 50)), RGB[:50, :50])


@pytest.mark.parametrize(
    "omero",
    [None, {}, {"channels": None}, {"channels": [{"label": None, "color": None}] * 3}],
)
def test_channels_that_are_null(tmp_path, omero):
    path = tmp_path / "slide.ome.zarr"
    write(path, "0.5", "cyx", [np.moveaxis(RGB, 2, 0)], omero=omero)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(Box(0, 0, 420, 300)), RGB)
    write(path, "0.5", "cyx", [np.moveaxis(RGB, 2, 0)], omero={"channels": ["DAPI"]})
    with pytest.raises(SlideError, match=r"slide\.ome\.zarr: its `omero` metadata"):
        open_slide(path)


def test_what_is_no_image_or_breaks_the_rules(tmp_path):
    path = tmp_path / "slide.zarr"
    zarr.open_group(path, mode="w")
    with pytest.raises(UnsupportedSlideError, match="no DICOM or OME-Zarr"):
        open_slide(path)
    write(path, "0.5", "cyx", [np.moveaxis(RGB, 2, 0)])
    meta = json.loads((path / "zarr.json").read_text())
    del meta["attributes"]["ome"]["multiscales"][0]["axes"]
    (path / "zarr.json").write_text(json.dumps(meta))
    with pytest.raises(SlideError, match=r"does not follow NGFF 0\.5 \(axes: Field required\)"):
        open_slide(path)
    (path / "zarr.json").write_text("{")
    with pytest.raises(SlideError, match=r"zarr\.json cannot be read"):
        open_slide(path)


def test_a_missing_array_and_a_broken_chunk(tmp_path):
    path = tmp_path / "slide.zarr"
    write(path, "0.5", "cyx", [np.moveaxis(RGB, 2, 0)])
    for chunk in (path / "0" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"broken")
    with open_slide(path) as slide, pytest.raises(SlideError, match="cannot be decoded"):
        describe(slide)
    (path / "0" / "zarr.json").unlink()
    with pytest.raises(SlideError, match="arrays cannot be opened"):
        open_slide(path)
