"""TIFF in all its kinds, written here, read back exactly."""

import os

import numpy as np
import pytest
import tifffile
from PIL import Image

from slidelens import Box, SlideError, UnsupportedSlideError, open_slide
from slidelens.slide.channels import COLOURS
from slidelens.slide.describe import describe

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (300, 420, 3)).astype(np.uint8)
GREY = RNG.integers(0, 256, (300, 420)).astype(np.uint8)
MICRONS = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}


def read_all(path, **options):
    with open_slide(path, **options) as slide:
        facts = {**describe(slide), "notes": slide.notes()}
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
        {"tile": (48, 48)},
    ],
    ids=[
        "one strip",
        "strips",
        "bigtiff lzw",
        "big endian",
        "jpeg xl",
        "deflate tiles",
        "tiles of 6912 bytes",
    ],
)
def test_rgb(tmp_path, options):
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", **MICRONS, **options)
    pixels, facts = read_all(path)
    np.testing.assert_array_equal(pixels, RGB)
    assert facts["mpp"] == 0.5
    assert facts["mpp_source"] == "TIFF resolution tags"


@pytest.mark.parametrize("colours", [None, 16])
def test_a_palette_that_is_missing_or_too_short_is_told(tmp_path, colours):
    path = tmp_path / "slide.tif"
    if colours is None:
        tifffile.imwrite(path, GREY)
        with tifffile.TiffFile(path, mode="r+b") as file:
            file.pages[0].tags["PhotometricInterpretation"].overwrite(3)
    else:
        shades = np.zeros((3, 256), np.uint16)
        tifffile.imwrite(path, GREY, photometric="palette", colormap=shades)
        with tifffile.TiffFile(path, mode="r+b") as file:
            file.pages[0].tags["ColorMap"].overwrite([0] * 3 * colours)
    with pytest.raises(SlideError, match="palette that says which is missing or too short"):
        open_slide(path)


@pytest.mark.parametrize("compression", [None, "zlib", "jpeg"])
@pytest.mark.parametrize(("orientation", "turn"), [(1, None), (3, "180°"), (6, "90° clockwise")])
def test_an_orientation_is_noted_and_not_applied(tmp_path, compression, orientation, turn):
    """Every read is of what is stored: OpenSlide would turn tiles of some compressions."""
    path = tmp_path / "slide.tif"
    tag = [(274, "H", 1, orientation, True)]
    plain = {"tile": (128, 128), "photometric": "rgb", "compression": compression}
    tifffile.imwrite(path, RGB, extratags=tag, **plain, **MICRONS)
    stored = tifffile.imread(path)
    with open_slide(path) as slide:
        for _ in range(2):
            np.testing.assert_array_equal(slide.read(Box(0, 0, 200, 99)), stored[:99, :200])
        notes = slide.notes()
    assert len(notes) == (turn is not None)
    assert all(turn in note and "Orientation" in note for note in notes)


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
    tifffile.imwrite(path, GREY > 99, photometric="miniswhite")
    np.testing.assert_array_equal(read_all(path)[0][..., 0], np.where(GREY > 99, 0, 255))
    for kind in (np.uint16, np.int16, np.float32):
        shown = {}
        for sense in ("minisblack", "miniswhite"):
            tifffile.imwrite(path, GREY.astype(kind) - 50, photometric=sense)
            shown[sense] = read_all(path)[0].astype(int)
        agree = np.corrcoef(shown["minisblack"].ravel(), shown["miniswhite"].ravel())[0, 1]
        assert agree < -0.99, kind
    colours = RNG.integers(0, 256, (3, 256)).astype(np.uint16)
    for depth in (1, 257):  # as some writers state them, and as the standard has it
        stated = colours * np.uint16(depth)
        tifffile.imwrite(path, GREY, photometric="palette", colormap=stated, tile=(64, 64))
        np.testing.assert_array_equal(read_all(path)[0], colours.T[GREY])


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("tile", [None, (64, 64)])
def test_what_was_not_measured_is_black(tmp_path, tile):
    path = tmp_path / "float.tif"
    values = np.repeat(np.arange(420, dtype=np.float32)[None], 300, 0)
    values[:100] = np.nan
    values[100, :2] = np.inf, -np.inf
    tifffile.imwrite(path, values, photometric="minisblack", tile=tile)
    pixels = read_all(path)[0][..., 0]
    assert not pixels[:100].any()
    assert (pixels[100, 0], pixels[100, 1]) == (255, 0)
    assert np.abs(pixels[200] - np.linspace(0, 255, 420)).max() < 4
    for photometric in ("minisblack", "miniswhite"):
        tifffile.imwrite(path, np.full_like(values, np.nan), photometric=photometric, tile=tile)
        assert not read_all(path)[0].any()


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


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("deep", [1, 257])
def test_transparent_grey_is_white(tmp_path, planar, deep):
    path = tmp_path / "alpha.tif"
    alpha = np.zeros_like(GREY)
    alpha[100:] = 255
    stored = np.stack([GREY, alpha], 2 if planar == "contig" else 0)
    stored = stored if deep == 1 else stored.astype(np.uint16) * 257
    options = {"photometric": "minisblack", "extrasamples": ["unassalpha"], "planarconfig": planar}
    tifffile.imwrite(path, stored, **options)
    pixels, _ = read_all(path)
    assert (pixels[:100] == 255).all()
    np.testing.assert_array_equal(pixels[100:], np.repeat(GREY[100:, :, None], 3, 2))


@pytest.mark.parametrize("compression", ["none", "lzw", "zlib"])
def test_ycbcr_without_jpeg_keeps_its_colours_or_is_refused(tmp_path, compression):
    path = tmp_path / "ycbcr.tif"
    stored = np.zeros((256, 256, 3), np.uint8)
    stored[:] = (139, 151, 171)  # a pink
    options = {"photometric": "ycbcr", "compression": compression, "subsampling": (1, 1)}
    tifffile.imwrite(path, stored, tile=(64, 64), **options)
    with open_slide(path) as slide:  # OpenSlide's, at every read
        for _ in range(3):
            np.testing.assert_allclose(slide.read(Box(0, 0, 9, 9))[0, 0], (199, 100, 180), atol=2)
    tifffile.imwrite(path, stored, rowsperstrip=64, **options)
    with pytest.raises(UnsupportedSlideError, match="YCbCr without JPEG"):
        open_slide(path)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("kind", ["unspecified", "assocalpha", None])
def test_a_fourth_sample_is_alpha_only_where_the_file_says_so(tmp_path, kind, deep):
    path = tmp_path / "four.tif"
    fourth = np.zeros((300, 420, 1), np.uint8)
    fourth[:150] = 100
    colour = np.minimum(RGB, fourth) if kind == "assocalpha" else RGB
    stored = np.concatenate([colour, fourth], 2)
    if deep:
        stored = stored.astype(np.uint16) * 257
    extra = {"extrasamples": [kind]} if kind else {}
    tifffile.imwrite(path, stored, photometric="rgb", tile=(64, 64), **extra)
    if kind is None:  # a writer that leaves the tag out
        with tifffile.TiffFile(path) as file:
            at = file.pages[0].tags["ExtraSamples"].offset
        with path.open("r+b") as file:
            file.seek(at)
            file.write((65000).to_bytes(2, "little"))  # a private tag, which nobody reads
        with tifffile.TiffFile(path) as file:
            assert file.pages[0].extrasamples == ()
    pixels, _ = read_all(path)
    want = colour + (255 - fourth) if kind == "assocalpha" else RGB
    np.testing.assert_array_equal(pixels, want)


def test_the_fourth_sample_of_an_associated_image(tmp_path):
    path = tmp_path / "two.ome.tif"
    fourth = np.zeros((300, 420, 1), np.uint8)
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(np.tile(RGB, (2, 2, 1)), photometric="rgb", tile=(64, 64))
        for kind in ("unspecified", "unassalpha"):
            file.write(
                np.concatenate([RGB, fourth], 2),
                photometric="rgb",
                extrasamples=[kind],
                metadata={"Name": kind},
            )
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read_associated("unspecified"), RGB)
        assert (slide.read_associated("unassalpha") == 255).all()


def test_associated_images_of_every_kind(tmp_path):
    """Programs that convert slides write labels and overviews in planes, too."""
    path = tmp_path / "several.ome.tif"
    small, grey = RGB[:80, :100], GREY[:80, :100]
    colours = RNG.integers(0, 256, (3, 256)).astype(np.uint16) * 257
    planes = np.moveaxis(small, 2, 0)
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(RGB, photometric="rgb", metadata={"Name": "slide"})
        for pixels, options, name, axes in (
            (planes, {"photometric": "rgb", "planarconfig": "separate"}, "planar", "SYX"),
            (planes, {"photometric": "minisblack"}, "channels", "CYX"),
            (grey, {"photometric": "palette", "colormap": colours}, "palette", "YX"),
            (grey, {"photometric": "miniswhite"}, "inverted", "YX"),
            (small, {"photometric": "rgb"}, "same", "YXS"),
            (255 - small, {"photometric": "rgb"}, "same", "YXS"),
        ):
            file.write(pixels, metadata={"Name": name, "axes": axes}, **options)
    want = {
        "planar": small,
        "channels": small,
        "palette": (colours >> 8).T[grey],
        "inverted": np.repeat(255 - grey[..., None], 3, 2),
        "same": small,
        "same (2)": 255 - small,
    }
    with open_slide(path) as slide:
        assert slide.associated_images == tuple(want)
        for name, pixels in want.items():
            np.testing.assert_array_equal(slide.read_associated(name), pixels, name)


def test_sixteen_bit_rgb_and_grey(tmp_path):
    path = tmp_path / "deep.tif"
    tifffile.imwrite(path, RGB.astype(np.uint16) * 257, photometric="rgb", tile=(64, 64))
    np.testing.assert_array_equal(read_all(path)[0], RGB)
    big = (RGB.astype(np.uint16) * 257).astype(">u2")
    tifffile.imwrite(path, big, photometric="rgb", byteorder=">")
    np.testing.assert_array_equal(read_all(path)[0], RGB)
    deep = np.linspace(1000, 3000, 300 * 420).reshape(300, 420).astype(np.uint16)
    tifffile.imwrite(path, deep, photometric="minisblack", rowsperstrip=10, compression="zlib")
    pixels, _ = read_all(path)
    assert pixels[0, 0].tolist() == [0, 0, 0]
    assert pixels[-1, -1].tolist() == [255, 255, 255]
    assert (np.diff(pixels[:, 0, 0].astype(int)) >= 0).all()


def deep_colours(bits):
    """RGB as a camera of so many bits has it: 8 bits, and copies of the upper ones below."""
    wide = RGB.astype(np.uint16)
    return wide << (bits - 8) | wide >> (16 - bits)


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("way", ["values", "packed", "tag", "xml"])
@pytest.mark.parametrize("tile", [None, (64, 64)])
def test_colours_that_use_some_bits_of_sixteen(tmp_path, bits, way, tile):
    path = tmp_path / ("deep.ome.tif" if way == "xml" else "deep.tif")
    options = {"tile": tile, "compression": "zlib"} if tile else {}
    if way == "packed":
        options = {"bitspersample": bits}
    elif way == "tag":
        options["extratags"] = [(281, 3, 3, (2**bits - 1,) * 3, True)]
    elif way == "xml":
        options["metadata"] = {"SignificantBits": bits}
    dark = deep_colours(bits) // (1 if way == "values" else 4)  # stated, whatever the values
    tifffile.imwrite(path, dark, photometric="rgb", **options)
    pixels, facts = read_all(path)
    np.testing.assert_array_equal(pixels, RGB if way == "values" else RGB // 4)
    (note,) = facts["notes"]
    assert f"{bits} bits are used" in note
    assert ("the file says so" in note) == (way != "values")


def test_colours_that_use_all_sixteen_bits_are_not_noted(tmp_path):
    path = tmp_path / "deep.tif"
    tifffile.imwrite(path, deep_colours(16), photometric="rgb", tile=(64, 64))
    pixels, facts = read_all(path)
    np.testing.assert_array_equal(pixels, RGB)
    assert facts["notes"] == []


def test_stated_bits_that_do_not_hold_the_values_are_not_believed(tmp_path):
    path = tmp_path / "deep.tif"
    most = [(281, 3, 3, (255,) * 3, True)]
    tifffile.imwrite(path, deep_colours(16), photometric="rgb", tile=(64, 64), extratags=most)
    pixels, facts = read_all(path)
    np.testing.assert_array_equal(pixels, RGB)
    assert facts["notes"] == []
    few = deep_colours(12)
    few[7, 7] = 4099  # ringing of a lossy compression
    most = [(281, 3, 3, (4095,) * 3, True)]
    tifffile.imwrite(path, few, photometric="rgb", tile=(64, 64), extratags=most)
    pixels, facts = read_all(path)
    assert (pixels[7, 7] == 255).all()
    np.testing.assert_array_equal(pixels[8:], RGB[8:])
    (note,) = facts["notes"]
    assert "12 bits are used (the file says so)" in note


@pytest.mark.parametrize(("value", "kind"), [((2, 3), 3), ("cm", 2), (2.5, 11), (99, 3)])
def test_a_damaged_unit_costs_the_resolution_alone(tmp_path, value, kind):
    path = tmp_path / "plain.tif"
    known = {"resolution": (40000, 40000), "resolutionunit": 3}
    tifffile.imwrite(path, RGB, photometric="rgb", tile=(64, 64), compression="lzw", **known)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["ResolutionUnit"].overwrite(value, dtype=kind)
    for backend in (None, "tifffile"):
        with open_slide(path, backend=backend) as slide:
            assert slide.mpp is None or backend is None  # OpenSlide may take the first of two
            np.testing.assert_array_equal(slide.read_level(0, 0, 0, *slide.size), RGB)


def test_a_largest_value_that_is_no_number_says_nothing_of_the_bits(tmp_path):
    path = tmp_path / "deep.tif"
    most = [(281, 2, 0, "255", True)]
    tifffile.imwrite(path, deep_colours(16), photometric="rgb", tile=(64, 64), extratags=most)
    pixels, _ = read_all(path)
    np.testing.assert_array_equal(pixels, RGB)


def test_tiles_that_were_never_written_say_nothing_of_the_bits(tmp_path):
    path = tmp_path / "sparse.tif"
    tiles = [np.full((64, 64, 3), 2048, np.uint16), None, None, None]
    options = {"photometric": "rgb", "tile": (64, 64), "compression": "zlib"}
    shape = {"shape": (128, 128, 3), "dtype": np.uint16, "planarconfig": "contig"}
    tifffile.imwrite(path, iter(tiles), **shape, **options)
    pixels, _ = read_all(path)
    assert (pixels[:64, :64] == 128).all()
    assert (pixels[64:] == 255).all()


def test_the_bits_are_looked_for_all_over_a_large_level(tmp_path):
    """A dark middle does not say how bright the rest is."""
    path = tmp_path / "large.tif"
    pixels = np.full((2600, 2600, 3), 60000, np.uint16)
    pixels[200:2400, 200:2400] = 100
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(256, 256), compression="zlib")
    with open_slide(path) as slide:
        assert slide.read(Box(0, 0, 1, 1))[0, 0].tolist() == [60000 >> 8] * 3
        assert slide.notes() == []


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits(tmp_path, bits):
    path = tmp_path / "grey.tif"
    few = GREY >> (8 - bits)
    options = {"bitspersample": bits} if bits > 1 else {"compression": "packbits"}
    stored = few if bits > 1 else few > 0
    for photometric in ("minisblack", "miniswhite"):
        tifffile.imwrite(path, stored, photometric=photometric, **options)
        want = np.round(few / (2**bits - 1) * 255)
        want = want if photometric == "minisblack" else 255 - want
        np.testing.assert_array_equal(read_all(path)[0][..., 1], want)


@pytest.mark.parametrize("sizes", [[(420, 300), (105, 75), (53, 38)], [(420, 300), (39, 28)]])
@pytest.mark.parametrize("subifds", [False, True])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("compression", ["zlib", "zstd"])
def test_levels_of_any_factor(tmp_path, sizes, subifds, kind, compression):
    """Fewer levels would be an overview that is made of all of level 0."""
    path = tmp_path / "pyramid.tif"
    options = {"tile": (64, 64), "photometric": "rgb", "metadata": None, "compression": compression}
    with tifffile.TiffWriter(path) as file:
        for i, (w, h) in enumerate(sizes):
            more = {"subifds": len(sizes) - 1} if subifds and not i else {}
            small = np.asarray(Image.fromarray(RGB).resize((w, h))).astype(kind)
            small *= 257 if kind == np.uint16 else 1
            file.write(small, subfiletype=int(i > 0), **more, **options)
        label = np.zeros((90, 90, 3), kind)  # called reduced too, but it is not this image
        file.write(label, subfiletype=1, **options)
    with open_slide(path, backend="tifffile") as slide:
        assert [tuple(level.size) for level in slide.levels] == sizes
    if subifds or kind == np.uint16 or compression == "zstd":
        with open_slide(path) as slide:
            assert [tuple(level.size) for level in slide.levels] == sizes
            for index, (w, h) in enumerate(sizes):
                want = np.asarray(Image.fromarray(RGB).resize((w, h)))
                np.testing.assert_array_equal(slide.read_level(index, 0, 0, w, h), want)


def test_fax_compression(tmp_path):
    path = tmp_path / "fax.tif"
    Image.fromarray(GREY > 99).save(path, compression="group4")
    np.testing.assert_array_equal(read_all(path)[0][..., 0], np.where(GREY > 99, 255, 0))


@pytest.mark.parametrize("tile", [None, (64, 64)])
@pytest.mark.parametrize(("unit", "count"), [("MILLIMETER", 2000), ("MICROMETER", 2)])
def test_resolutions_in_units_beyond_the_standard(tmp_path, tile, unit, count):
    path = tmp_path / "slide.tif"
    options = {"resolution": (count, count), "resolutionunit": unit, "tile": tile}
    tifffile.imwrite(path, RGB, photometric="rgb", **options)
    pixels, facts = read_all(path)
    np.testing.assert_array_equal(pixels, RGB)
    assert (facts["mpp"], facts["mpp_source"]) == (0.5, "TIFF resolution tags")


WHITE, RED, GREEN, BLUE = -1, -16776961, 16711935, 65535  # as OME-XML has them


@pytest.mark.parametrize(
    ("names", "shades", "kind", "colours"),
    [
        (None, None, np.uint8, True),
        (None, (WHITE, WHITE, WHITE), np.uint8, True),
        (None, (RED, GREEN, BLUE), np.uint8, True),
        (("Red", "Green", "Blue"), None, np.uint8, True),
        (("R", "G", "B"), (RED, GREEN, BLUE), np.uint8, True),
        (None, (BLUE, GREEN, RED), np.uint8, False),
        (("DAPI", "FITC", "Cy3"), None, np.uint8, False),
        (None, None, np.uint16, False),
    ],
)
def test_three_planes_of_bytes_are_colours_unless_the_file_says_otherwise(
    tmp_path, names, shades, kind, colours
):
    """raw2ometiff writes stained slides so, without ``--rgb``."""
    path = tmp_path / "planes.ome.tif"
    channel = ({"Name": names} if names else {}) | ({"Color": shades} if shades else {})
    planes = np.moveaxis(RGB, 2, 0).astype(kind)
    about = {"axes": "CYX", "Channel": channel} if channel else {"axes": "CYX"}
    options = {"photometric": "minisblack", "metadata": about, "tile": (64, 64)}
    with tifffile.TiffWriter(path) as file:
        file.write(planes, subifds=1, **options)
        file.write(planes[:, ::2, ::2], subfiletype=1, photometric="minisblack", tile=(64, 64))
    with open_slide(path) as slide:
        pixels = slide.read(Box.of_size(slide.size))
        half = slide.read_level(1, 0, 0, 210, 150)
        assert (slide.channels == ()) == colours
        assert len(slide.channels) == (0 if colours else 3)
        assert ["three channels are drawn as red" in note for note in slide.notes()] == (
            [True] if colours else []
        )
    assert np.array_equal(pixels, RGB) == colours
    assert np.array_equal(half, RGB[::2, ::2]) == colours


@pytest.mark.parametrize(
    "about",
    [{"EmissionWavelength": 461.0}, {"Fluor": "DAPI"}, {"ContrastMethod": "Fluorescence"}],
)
def test_three_planes_of_a_fluorescence_microscope_are_no_colours(tmp_path, about):
    path = tmp_path / "planes.ome.tif"
    channel = {key: [value] * 3 for key, value in about.items()}
    planes = np.moveaxis(RGB, 2, 0)
    metadata = {"axes": "CYX", "Channel": channel}
    tifffile.imwrite(path, planes, photometric="minisblack", metadata=metadata, tile=(64, 64))
    with open_slide(path) as slide:
        assert len(slide.channels) == 3


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


def write_files(folder, planes, names=("a.ome.tif", "b.ome.tif"), levels=1, **options):
    """Write an OME-TIFF of one channel a file; ``options`` of the second may be its own."""
    height, width = planes[0].shape
    files = "".join(
        f'<TiffData FirstC="{i}" IFD="0" PlaneCount="1">'
        f'<UUID FileName="{name}">urn:uuid:0000000{i}-0000-4000-8000-000000000000</UUID></TiffData>'
        for i, name in enumerate(names)
    )
    for i, (name, plane) in enumerate(zip(names, planes, strict=True)):
        xml = (
            '<?xml version="1.0"?>'
            '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:0000000{i}-0000-4000-8000-000000000000">'
            '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" '
            f'Type="{plane.dtype}" SizeX="{width}" SizeY="{height}" SizeC="{len(planes)}" '
            'SizeZ="1" SizeT="1" PhysicalSizeX="0.5" PhysicalSizeY="0.5">'
            '<Channel ID="Channel:0:0" SamplesPerPixel="1" Name="DAPI"/>'
            '<Channel ID="Channel:0:1" SamplesPerPixel="1" Name="CD3"/>'
            f"{files}</Pixels></Image></OME>"
        )
        own = {
            key: value[i] if isinstance(value, list) else value for key, value in options.items()
        }
        own |= {"photometric": "minisblack", "metadata": None}
        with tifffile.TiffWriter(folder / name) as file:
            file.write(plane, description=xml, subifds=levels - 1, **own)
            for level in range(1, levels):
                file.write(plane[:: 2**level, :: 2**level], subfiletype=1, **own)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "options",
    [
        {"tile": (64, 64), "compression": "zlib"},
        {"tile": (16, 16)},
        {"tile": (64, 64), "compression": ["zlib", "zlib"], "levels": 2},
        {"rowsperstrip": 300},
        {"rowsperstrip": 7, "compression": "lzw"},
    ],
    ids=["deflate tiles", "many tiles", "two levels", "one strip", "strips"],
)
@pytest.mark.parametrize("name", ["a", "b"])
def test_channels_in_files_of_their_own(tmp_path, options, name):
    """Each channel comes from its file, whichever of the files is opened."""
    planes = [GREY, 255 - GREY[::-1] // 2]
    write_files(tmp_path, planes, **options)
    with open_slide(tmp_path / f"{name}.ome.tif") as slide:
        assert (slide.id, slide.channels, slide.mpp) == (name, ("DAPI", "CD3"), (0.5, 0.5))
        assert slide.associated_images == ()
        for index, (_, (width, height)) in enumerate(slide.levels):
            stored = slide._reader._image._stored(index, 0, 0, width, height)
            for channel, plane in enumerate(planes):
                np.testing.assert_array_equal(stored[..., channel], plane[:: 2**index, :: 2**index])
        assert slide.read(Box.of_size(slide.size)).std() > 10


def test_files_of_an_ome_tiff_that_cannot_be_read_together(tmp_path):
    write_files(tmp_path, [GREY, GREY], tile=[(64, 64), (32, 32)])
    with pytest.raises(UnsupportedSlideError, match=r"a\.ome\.tif.*different ways.*one OME-TIFF"):
        open_slide(tmp_path / "a.ome.tif")
    write_files(tmp_path, [GREY, GREY], tile=(64, 64))
    other = tmp_path / "b.ome.tif"
    other.write_bytes(other.read_bytes()[:-5000])
    with pytest.raises(SlideError, match=r"b\.ome\.tif: is truncated"):
        open_slide(tmp_path / "a.ome.tif")
    other.unlink()
    with pytest.raises(SlideError, match=r"a\.ome\.tif: .*missing; put all files.*one folder"):
        open_slide(tmp_path / "a.ome.tif")


def test_an_image_of_another_file_is_not_taken_for_this_one(tmp_path):
    """Of two images in two files, each file shows its own, though both describe both."""
    images = [np.full((128, 128), 50, np.uint8), np.full((96, 96), 200, np.uint8)]
    ids = [f"urn:uuid:0000000{i}-0000-4000-8000-000000000000" for i in range(2)]
    described = "".join(
        f'<Image ID="Image:{i}" Name="{i}"><Pixels ID="Pixels:{i}" DimensionOrder="XYCZT" '
        f'Type="uint8" SizeX="{image.shape[1]}" SizeY="{image.shape[0]}" SizeC="1" SizeZ="1" '
        f'SizeT="1"><TiffData IFD="0" PlaneCount="1"><UUID FileName="{i}.ome.tif">{ids[i]}</UUID>'
        "</TiffData></Pixels></Image>"
        for i, image in enumerate(images)
    )
    for i, image in enumerate(images):
        xml = (
            '<?xml version="1.0"?>'
            '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="{ids[i]}">{described}</OME>'
        )
        options = {"description": xml, "metadata": None, "tile": (32, 32)}
        tifffile.imwrite(tmp_path / f"{i}.ome.tif", image, photometric="minisblack", **options)
    for i, image in enumerate(images):
        with open_slide(tmp_path / f"{i}.ome.tif") as slide:
            assert slide.associated_images == ()
            assert (slide.size.width, slide.size.height) == image.shape
            assert (slide.read(Box.of_size(slide.size)) == image[0, 0]).all()


OME = '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"'


def ome_image(number, size, mpp, data, channels=""):
    return (
        f'<Image ID="Image:{number}" Name="same"><Pixels ID="Pixels:{number}" Type="uint8" '
        f'DimensionOrder="XYCZT" SizeX="{size[0]}" SizeY="{size[1]}" SizeC="1" SizeZ="1" SizeT="1" '
        f'PhysicalSizeX="{mpp}" PhysicalSizeY="{mpp}">{channels}{data}</Pixels></Image>'
    )


def test_the_resolution_is_that_of_the_image_though_another_is_missing(tmp_path):
    """Of two images in two files one file is there; its image is not the first of the series."""
    images = [np.full((128, 128), 50, np.uint8), np.full((96, 96), 200, np.uint8)]
    ids = [f"urn:uuid:0000000{i}-0000-4000-8000-000000000000" for i in range(2)]
    places = [
        f'<TiffData IFD="0" PlaneCount="1"><UUID FileName="{i}.ome.tif">{one}</UUID></TiffData>'
        for i, one in enumerate(ids)
    ]
    described = ome_image(0, (128, 128), 4, places[0]) + ome_image(1, (96, 96), 0.5, places[1])
    xml = f'{OME} UUID="{ids[1]}">{described}</OME>'
    path = tmp_path / "1.ome.tif"
    tifffile.imwrite(path, images[1], photometric="minisblack", description=xml, metadata=None)
    with open_slide(path) as slide:
        assert (slide.size, slide.mpp) == ((96, 96), (0.5, 0.5))


def test_the_resolution_is_that_of_the_image_though_another_is_stored_unlike_its_description(
    tmp_path,
):
    path = tmp_path / "slide.ome.tif"
    label = ome_image(0, (100, 80), 20, '<TiffData IFD="0" PlaneCount="1"/>')
    colours = '<Channel ID="Channel:1:0" SamplesPerPixel="3"/>'
    main = ome_image(1, (420, 300), 0.5, '<TiffData IFD="1" PlaneCount="1"/>', colours)
    main = main.replace('SizeC="1"', 'SizeC="3"')
    with tifffile.TiffWriter(path) as file:
        options = {"photometric": "rgb", "metadata": None}
        file.write(RGB[:80, :100], description=f"{OME}>{label}{main}</OME>", **options)
        file.write(RGB, **options)
    with open_slide(path) as slide:
        assert (slide.size, slide.mpp) == ((420, 300), (0.5, 0.5))


@pytest.mark.parametrize(
    ("size", "power", "mpp", "objective"),
    [
        ("0.5", "20", 0.5, 20),
        ("0,5", "20x", 0.5, 20),
        ("half", "high", None, None),
        ("NaN", "0", None, None),
        ("", "", None, None),
    ],
)
def test_odd_numbers_in_ome_xml_cost_no_slide(tmp_path, size, power, mpp, objective):
    path = tmp_path / "slide.ome.tif"
    image = ome_image(0, (420, 300), size, '<TiffData IFD="0" PlaneCount="1"/>')
    image = image.replace("<Pixels", '<ObjectiveSettings ID="Objective:0"/><Pixels')
    objectives = f'<Objective ID="Objective:0" NominalMagnification="{power}"/>'
    xml = f'{OME}><Instrument ID="Instrument:0">{objectives}</Instrument>{image}</OME>'
    tifffile.imwrite(path, GREY, photometric="minisblack", description=xml, metadata=None)
    with open_slide(path) as slide:
        assert slide.mpp == (None if mpp is None else (mpp, mpp))
        assert slide.objective_power == objective


def test_an_ome_tiff_without_a_physical_size_may_state_it_in_tags(tmp_path):
    path = tmp_path / "slide.ome.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", **MICRONS)
    _, facts = read_all(path)
    assert (facts["mpp"], facts["mpp_source"]) == (0.5, "TIFF resolution tags")
    own = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
    tifffile.imwrite(path, RGB, photometric="rgb", metadata=own, **MICRONS)
    _, facts = read_all(path)
    assert (facts["mpp"], facts["mpp_source"]) == (0.25, "OME-XML PhysicalSize")


@pytest.mark.parametrize(
    ("unit", "mpp"),
    [
        ("micron", [0.25, 0.5]),
        ("um", [0.25, 0.5]),
        (r"\u00B5m", [0.25, 0.5]),
        ("mm", [250, 500]),
        ("pixel", None),
        ("inch", None),
        (None, None),
    ],
)
def test_imagej_names_the_unit_of_its_resolution(tmp_path, unit, mpp):
    path = tmp_path / "imagej.tif"
    named = {} if unit is None else {"unit": unit}
    tifffile.imwrite(path, GREY, imagej=True, resolution=(4, 2), metadata=named)
    _, facts = read_all(path)
    assert facts["mpp"] == (mpp if mpp is None else pytest.approx(mpp))
    assert (facts["mpp_source"] is None) == (mpp is None)


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


@pytest.mark.parametrize("kind", [{"imagej": True}, {"ome": True}, {}])
def test_uncompressed_pixels_that_are_cut_off_end_no_process(tmp_path, kind):
    """A memory map of them did: SIGBUS."""
    path = tmp_path / "stack.ome.tif" if "ome" in kind else tmp_path / "stack.tif"
    stack = np.random.default_rng(0).integers(0, 255, (2, 900, 700)).astype(np.uint8)
    about = {"metadata": {"axes": "CYX"}} if kind else {"photometric": "minisblack"}
    tifffile.imwrite(path, stack if kind else stack[0], **kind, **about)
    with open_slide(path) as slide:
        assert slide._reader._image._pixels._stores[0].array is not None
        before = slide.read(Box(650, 10, 50, 50))
        os.truncate(path, 100_000)
        np.testing.assert_array_equal(
            slide.read(Box(650, 10, 50, 50)) if not kind else before, before
        )
        with pytest.raises(SlideError, match=rf"{path.name}: ends before its pixels do"):
            slide.read(Box(0, 850, 50, 50))
    with pytest.raises(SlideError, match=r"truncated|ends before"):
        open_slide(path)


@pytest.mark.parametrize("dpi", [72, 96, 150, 300, 600, 1200])
@pytest.mark.parametrize("tile", [None, (64, 64)])
def test_print_resolutions_are_not_mpp(tmp_path, dpi, tile):
    path = tmp_path / "print.tif"
    options = {"resolution": (dpi, dpi), "resolutionunit": "INCH"}
    tifffile.imwrite(path, RGB, photometric="rgb", tile=tile, **options)
    with open_slide(path) as slide:
        assert (slide.mpp, slide.mpp_source) == (None, None)


@pytest.mark.parametrize(
    ("kind", "photometric", "empty"),
    [(np.uint8, "rgb", 255), (np.uint16, "rgb", 255), (np.uint8, "minisblack", 0)],
)
def test_a_missing_tile_is_white_in_colour(tmp_path, kind, photometric, empty):
    path = tmp_path / "sparse.tif"
    tiles = [None if i == 1 else np.full((64, 64, 3), 10 * i, kind) for i in range(4)]
    tifffile.imwrite(
        path,
        iter(tiles),
        shape=(128, 128, 3),
        dtype=kind,
        tile=(64, 64),
        photometric=photometric,
        planarconfig="contig",
        compression="zlib",
    )
    with open_slide(path, backend="tifffile") as slide:
        pixels = slide.read(Box(0, 0, 128, 128))
    assert (pixels[:64, 64:] == empty).all()
    if kind == np.uint8 and photometric == "rgb":
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


BIG, CLASSIC = b"II+\0\x08\0\0\0", b"II*\0"


def words(*values):
    return b"".join(value.to_bytes(8, "little") for value in values)


@pytest.mark.parametrize(
    "content",
    [
        CLASSIC,
        BIG + words(16)[:3],
        BIG + words(2**63 + 5),
        BIG + words(16, 2**60),
        BIG + words(16, 2**40),
        BIG + words(16, 1) + b"\x11\x01\x10\0" + words(2**62, 100, 0),
        BIG + words(16, 1) + b"\x11\x01\x10\0" + words(2, 2**63, 0),
        BIG
        + words(16, 2)
        + b"\x44\x01\x10\0"
        + words(1, 2**64 - 9)
        + b"\x45\x01\x10\0"
        + words(1, 20, 0),
    ],
    ids=[
        *("no place of a directory", "half a place", "directory beyond the end", "many entries"),
        *(
            "entries beyond memory",
            "many values",
            "values beyond the end",
            "tile that wraps around",
        ),
    ],
)
def test_damaged_directories_are_noticed_when_opened(tmp_path, content):
    path = tmp_path / "damaged.tif"
    path.write_bytes(content if len(content) < 16 else content.ljust(2000, b"\0"))
    with pytest.raises(SlideError, match=r"damaged\.tif: is truncated.*copy it again"):
        open_slide(path, backend="tifffile")
