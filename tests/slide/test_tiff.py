"""TIFF in all its kinds, written here, read back exactly."""

import numpy as np
import pytest
import tifffile

from slidelens import Box, SlideError, UnsupportedSlideError, open_slide
from slidelens.slide.channels import COLOURS
from slidelens.slide.describe import describe

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (300, 420, 3)).astype(np.uint8)
GREY = RNG.integers(0, 256, (300, 420)).astype(np.uint8)
MICRONS = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}


def read_all(path, **options):
    with open_slide(path, **options) as slide:
        facts = describe(slide)
        return slide.read(Box.of_size(slide.size)), facts


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rowsperstrip": 16, "compression": "zlib"},
        {"bigtiff": True, "tile": (64, 80), "compression": "lzw", "predictor": True},
        {"byteorder": ">", "tile": (128, 128)},
        {"tile": (64, 64), "compression": "jpegxl", "compressionargs": {"lossless": True}},
        {"tile": (64, 64), "compression": "zlib"},
    ],
    ids=["one strip", "strips", "bigtiff lzw", "big endian", "jpeg xl", "deflate tiles"],
)
def test_rgb(tmp_path, options):
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", **MICRONS, **options)
    pixels, facts = read_all(path)
    np.testing.assert_array_equal(pixels, RGB)
    assert facts["mpp"] == 0.5
    assert facts["mpp_source"] == "TIFF resolution tags"


@pytest.mark.parametrize("tile", [None, (64, 64)])
def test_planes_of_their_own(tmp_path, tile):
    path = tmp_path / "planar.tif"
    planes = np.moveaxis(RGB, 2, 0)
    options = {"tile": tile, "compression": "zlib"} if tile else {"rowsperstrip": 32}
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate", **options)
    np.testing.assert_array_equal(read_all(path)[0], RGB)


def test_grey_inverted_and_palette(tmp_path):
    path = tmp_path / "grey.tif"
    tifffile.imwrite(path, GREY, photometric="minisblack", tile=(64, 64))
    np.testing.assert_array_equal(read_all(path)[0], np.repeat(GREY[..., None], 3, 2))
    tifffile.imwrite(path, GREY, photometric="miniswhite", tile=(64, 64))
    np.testing.assert_array_equal(read_all(path)[0], np.repeat(255 - GREY[..., None], 3, 2))
    colours = RNG.integers(0, 256, (3, 256)).astype(np.uint16) * 257
    tifffile.imwrite(path, GREY, photometric="palette", colormap=colours, tile=(64, 64))
    np.testing.assert_array_equal(read_all(path)[0], (colours >> 8).T[GREY])


def test_transparent_is_white(tmp_path):
    path = tmp_path / "alpha.tif"
    alpha = np.zeros((300, 420, 1), np.uint8)
    alpha[100:] = 255
    alpha[:50] = 128
    rgba = np.concatenate([RGB, alpha], 2)
    tifffile.imwrite(path, rgba, photometric="rgb", extrasamples=["unassalpha"], tile=(64, 64))
    pixels, _ = read_all(path)
    assert (pixels[50:100] == 255).all()
    np.testing.assert_array_equal(pixels[100:], RGB[100:])
    want = RGB[:50] * (128 / 255) + 255 * (127 / 255)
    assert np.abs(pixels[:50] - want).max() <= 0.51


def test_sixteen_bit_rgb_and_grey(tmp_path):
    path = tmp_path / "deep.tif"
    tifffile.imwrite(path, RGB.astype(np.uint16) * 257, photometric="rgb", tile=(64, 64))
    np.testing.assert_array_equal(read_all(path)[0], RGB)
    deep = np.linspace(1000, 3000, 300 * 420).reshape(300, 420).astype(np.uint16)
    tifffile.imwrite(path, deep, photometric="minisblack", rowsperstrip=10, compression="zlib")
    pixels, _ = read_all(path)
    assert pixels[0, 0].tolist() == [0, 0, 0]
    assert pixels[-1, -1].tolist() == [255, 255, 255]
    assert (np.diff(pixels[:, 0, 0].astype(int)) >= 0).all()


@pytest.mark.parametrize("tile", [None, (64, 64)])
def test_ome_channels_levels_and_resolution(tmp_path, tile):
    path = tmp_path / "cells.ome.tif"
    channels = np.zeros((3, 256, 320), np.uint16)
    for i in range(3):
        channels[i, 20 + 60 * i : 60 + 60 * i, 50:250] = 1000 * (i + 1)
    metadata = {
        "axes": "CYX",
        "PhysicalSizeX": 250.0,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.3,
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": ["DAPI", "CD3", "CD8"]},
    }
    options = {"tile": tile, "photometric": "minisblack"}
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(channels, subifds=1, metadata=metadata, **options)
        file.write(channels[:, ::2, ::2], subfiletype=1, **options)
    with open_slide(path) as slide:
        assert (slide.backend, slide.id, slide.channels) == (
            *("tifffile", "cells"),
            ("DAPI", "CD3", "CD8"),
        )
        assert slide.mpp == pytest.approx((0.25, 0.3))
        assert slide.mpp_source == "OME-XML PhysicalSize"
        assert [level.size for level in slide.levels] == [(320, 256), (160, 128)]
        pixels = slide.read_level(0, 0, 0, 320, 256)
        for i in range(3):
            np.testing.assert_array_equal(pixels[40 + 60 * i, 100], COLOURS[i])
        assert (pixels[:20] == 0).all()
        half = slide.read_level(1, 0, 0, 160, 128)
        np.testing.assert_array_equal(half, pixels[::2, ::2])


def test_the_first_time_and_depth_are_read(tmp_path):
    path = tmp_path / "stack.ome.tif"
    stack = np.zeros((2, 3, 2, 128, 96), np.uint8)  # T, Z, C
    stack[0, 0, 0] = 200
    stack[1:] = 77
    stack[:, 1:] = 99
    stack[..., :8, :8] = 0
    tifffile.imwrite(path, stack, metadata={"axes": "TZCYX"}, tile=(64, 64), ome=True)
    with open_slide(path) as slide:
        assert slide.size == (96, 128)
        assert slide.channels == ("channel 0", "channel 1")
        np.testing.assert_array_equal(slide.read(Box(40, 40, 4, 4))[0, 0], COLOURS[0])


def test_imagej_stack_in_one_piece(tmp_path):
    path = tmp_path / "stack.tif"
    stack = np.zeros((2, 60, 50), np.uint16)
    stack[0, 10:, :] = 500
    stack[1, :, 25:] = 900
    tifffile.imwrite(path, stack, imagej=True, metadata={"axes": "CYX"})
    with open_slide(path) as slide:
        assert len(slide.channels) == 2
        pixels = slide.read(Box(0, 0, 50, 60))
    np.testing.assert_array_equal(pixels[30, 10], COLOURS[0])
    np.testing.assert_array_equal(pixels[5, 40], COLOURS[1])


@pytest.mark.parametrize("dpi", [72, 96, 150, 300, 600, 1200])
@pytest.mark.parametrize("tile", [None, (64, 64)])
def test_print_resolutions_are_not_mpp(tmp_path, dpi, tile):
    path = tmp_path / "print.tif"
    options = {"resolution": (dpi, dpi), "resolutionunit": "INCH"}
    tifffile.imwrite(path, RGB, photometric="rgb", tile=tile, **options)
    with open_slide(path) as slide:
        assert (slide.mpp, slide.mpp_source) == (None, None)


def test_a_missing_tile_is_white_in_colour(tmp_path):
    path = tmp_path / "sparse.tif"
    tiles = [None if i == 1 else np.full((64, 64, 3), 10 * i, np.uint8) for i in range(4)]
    tifffile.imwrite(
        path,
        iter(tiles),
        shape=(128, 128, 3),
        dtype=np.uint8,
        tile=(64, 64),
        photometric="rgb",
        compression="zlib",
    )
    with open_slide(path, backend="tifffile") as slide:
        pixels = slide.read(Box(0, 0, 128, 128))
    assert [int(pixels[y, x, 0]) for y in (5, 70) for x in (5, 70)] == [0, 255, 20, 30]


def test_kinds_that_are_no_pictures_are_refused(tmp_path):
    path = tmp_path / "odd.tif"
    tifffile.imwrite(path, RNG.random((64, 64)).astype(np.complex64), photometric="minisblack")
    with pytest.raises(UnsupportedSlideError, match="complex64"):
        open_slide(path)
    cmyk = np.zeros((64, 64, 4), np.uint8)
    tifffile.imwrite(path, cmyk, photometric="separated")
    with pytest.raises(UnsupportedSlideError, match="SEPARATED"):
        open_slide(path)


def test_colours_of_unusual_types_are_refused_when_opened(tmp_path):
    path = tmp_path / "odd.tif"
    for kind in (np.float32, np.uint32, np.int16):
        tifffile.imwrite(path, RGB[:64, :64].astype(kind), photometric="rgb")
        with pytest.raises(UnsupportedSlideError, match=f"{np.dtype(kind)}; slidelens reads RGB"):
            open_slide(path)


def test_one_huge_compressed_strip_is_refused_not_decoded(tmp_path, monkeypatch):
    path = tmp_path / "strip.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", rowsperstrip=300, compression="zlib")
    monkeypatch.setattr("slidelens.slide.segments._MAX_SEGMENT", 1000)
    with pytest.raises(SlideError, match="convert it to a tiled TIFF"):
        open_slide(path)


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("backend", [None, "tifffile"])
def test_cut_files_are_noticed_when_opened(tmp_path, bigtiff, backend):
    path = tmp_path / "cut.tif"
    options = {"tile": (64, 64), "bigtiff": bigtiff, "photometric": "rgb"}
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as file:
        options.pop("bigtiff")
        file.write(RGB, subifds=1, **options)
        file.write(RGB[::2, ::2], subfiletype=1, **options)
    whole = path.read_bytes()
    for part in (0.1, 0.5, 0.8, 0.999):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(SlideError, match=r"cut\.tif: is truncated"):
            open_slide(path, backend=backend)
