"""OME-Zarr, written here in both versions."""

import json
import os
import pickle
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from zipfile import ZIP_DEFLATED, ZipFile

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


@pytest.mark.parametrize("end", [None, 4095, 4000, 65535, "much", float("nan")])
def test_colours_that_use_twelve_bits_of_sixteen(tmp_path, end):
    """As the windows of `omero` say; where they say nothing, as the values show."""
    path = tmp_path / "slide.ome.zarr"
    wide = np.moveaxis(RGB, 2, 0).astype(np.uint16)
    said = end in (4095, 4000)
    stored = (wide << 4 | wide >> 4) // (4 if said else 1)
    shades = [{"color": c} for c in ("FF0000", "00FF00", "0000FF")]
    if end is not None:
        shades = [{**shade, "window": {"start": 0, "end": end}} for shade in shades]
    write(path, "0.4", "cyx", [stored], omero={"channels": shades})
    with open_slide(path) as slide:
        pixels = slide.read(Box(0, 0, 420, 300))
        np.testing.assert_array_equal(pixels, RGB // 4 if said else RGB)
        (note,) = slide.notes()
        assert "12 bits are used" in note
        assert ("the file says so" in note) == said


@pytest.mark.parametrize("end", [0, -1, 255, 4095])
def test_what_omero_shows_in_full_need_not_be_all_there_is(tmp_path, end):
    """Its windows are what a person looked at last: those of 8 bits whiten no slide of 16."""
    path = tmp_path / "slide.ome.zarr"
    stored = np.moveaxis(RGB, 2, 0).astype(np.uint16) * 257
    shades = [{"color": c, "window": {"end": end}} for c in ("FF0000", "00FF00", "0000FF")]
    write(path, "0.4", "cyx", [stored], omero={"channels": shades})
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(Box(0, 0, 420, 300)), RGB)
        assert slide.notes() == []


def test_omero_may_name_no_channels(tmp_path):
    path = tmp_path / "slide.ome.zarr"
    stored = np.moveaxis(RGB, 2, 0).astype(np.uint16) * 257
    write(path, "0.4", "cyx", [stored], omero={"channels": None})
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(Box(0, 0, 420, 300)), RGB)


def test_levels_come_in_the_order_of_their_size(tmp_path):
    path = tmp_path / "slide.ome.zarr"
    levels = [np.moveaxis(RGB[::step, ::step], 2, 0) for step in (2, 1)]
    write(path, "0.5", "cyx", levels)
    with pytest.raises(SlideError, match=r"order of their resolution.*level 1 of 420 x 300 px"):
        open_slide(path)


def test_a_level_of_another_size_than_its_scale_is_noted(tmp_path):
    path = tmp_path / "slide.ome.zarr"
    levels = [np.moveaxis(RGB[::step, ::step], 2, 0) for step in (1, 3)]  # stated as a half
    write(path, "0.5", "cyx", levels)
    with open_slide(path) as slide:
        (note,) = slide.notes()
        assert note.startswith("level 1 states a scale of 2 but is 3 times as small")
        assert slide.levels[1].downsample == 3
    odd = [np.moveaxis(part, 2, 0) for part in (RGB[:299, :419], RGB[:298:2, :418:2])]
    write(path, "0.5", "cyx", odd)
    with open_slide(path) as slide:
        assert slide.notes() == []  # rounded


def chunks_of(folder):
    files = (f for f in folder.rglob("*") if f.is_file())
    return sorted(f for f in files if f.name not in (".zarray", ".zattrs", "zarr.json"))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_level_without_any_chunk_is_an_incomplete_copy(tmp_path, version):
    path = tmp_path / "slide.ome.zarr"
    levels = [np.moveaxis(RGB[::step, ::step], 2, 0) for step in (1, 2)]
    for level in (0, 1):
        write(path, version, "cyx", levels)
        for file in chunks_of(path / str(level)):
            file.unlink()
        (path / str(level) / ".DS_Store").write_bytes(b"of a Mac, no chunk")
        with pytest.raises(SlideError, match=rf"level {level} has no pixels: .*copy it again"):
            open_slide(path)
    masks = [np.zeros((2, 200, 200), np.uint8), np.zeros((2, 100, 100), np.uint8)]
    for content in (0, 1):  # nothing, or what is too small to be seen from afar
        masks[0][:, 7, 7] = content
        write(path, version, "cyx", masks)
        with open_slide(path) as slide:
            assert not slide.read_level(1, 0, 0, 100, 100).any()
    masks[1][:] = 1
    write(path, version, "cyx", masks)
    for file in chunks_of(path / "0"):
        file.unlink()
    with pytest.raises(SlideError, match="level 0 has no pixels"):
        open_slide(path)


@pytest.mark.parametrize(
    ("dtype", "white", "channels"),
    [("u1", 255, 3), ("u2", 4095, 3), ("u2", 65535, 3), ("u1", 0, 4)],
)
@pytest.mark.parametrize("blank", [True, False])
def test_glass_need_not_be_stored_where_it_is_the_fill_value(
    tmp_path, dtype, white, channels, blank
):
    path = tmp_path / "slide.ome.zarr"
    side = 400
    levels = [np.full((channels, side // s, side // s), white, dtype) for s in (1, 2)]
    group = write(path, "0.4", "cyx", levels)
    for number, level in enumerate(levels):
        if not blank:  # tissue; a fourth channel is of alpha: 0 is transparent, thus white
            level[:, 10:20, 10:20] = white // 4 or 255
        del group[str(number)]
        array = group.create_array(
            str(number),
            shape=level.shape,
            dtype=dtype,
            chunks=(channels, 100, 100),
            fill_value=white,
            config={"write_empty_chunks": False},
        )
        array[:] = level
    stored = chunks_of(path / "0")
    assert len(stored) == (0 if blank else 1)
    (path / "0" / ".DS_Store").write_bytes(b"of a Mac, no chunk")
    with open_slide(path) as slide:
        assert not [note for note in slide.notes() if "chunks" in note]
        assert (slide.read(Box(300, 300, 50, 50)) == 255).all()


@pytest.mark.parametrize("shards", [None, (1, 200, 200)])
def test_missing_chunks_and_shards_are_counted(tmp_path, shards):
    path = tmp_path / "slide.ome.zarr"
    group = write(path, "0.5", "cyx", [np.moveaxis(RGB, 2, 0)])
    del group["0"]
    group.create_array("0", data=np.moveaxis(RGB, 2, 0), chunks=(1, 100, 100), shards=shards)
    with open_slide(path) as slide:
        assert slide.notes() == []
    files = chunks_of(path / "0")
    assert len(files) == (45 if shards is None else 18)
    for file in files[:5]:
        file.unlink()
    with open_slide(path) as slide:
        (note,) = slide.notes()
        assert note.startswith(f"5 of {len(files)} chunks of level 0 are not there")
        assert (slide.read(Box(0, 0, 50, 50))[..., 0] == 0).all()


@pytest.mark.parametrize("name", ["slide.ome.zarr", "slide.ozx"])
@pytest.mark.parametrize("fill", [0, 255])
def test_reading_where_chunks_are_missing_warns_once_of_what_is_drawn_dark(
    tmp_path, caplog, name, fill
):
    folder = tmp_path / "slide.ome.zarr"
    levels = [np.moveaxis(RGB[::step, ::step], 2, 0) for step in (1, 2)]
    group = write(folder, "0.5", "cyx", levels)
    for number, level in enumerate(levels):
        del group[str(number)]
        group.create_array(str(number), data=level, chunks=(3, 50, 50), fill_value=fill)
    lost = [folder / str(level) / "c" / "0" / "0" / "0" for level in (0, 1)]
    for chunk in lost:
        chunk.unlink()
    zipped(folder, tmp_path / "slide.ozx")
    with open_slide(tmp_path / name) as slide:
        slide.read_level(0, 310, 10, 10, 10)
        assert not caplog.messages  # what is not read does no harm
        for _ in range(2):
            assert (slide.read_level(0, 0, 0, 50, 50) == fill).all()
        warned = [f"{tmp_path / name}: 1 of 54 chunks of level 0 are not there"]
        assert [text.split(": they")[0] for text in caplog.messages] == warned[: fill == 0]
        assert len(slide.notes()) == 2 * (fill == 0)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_what_is_gone_while_it_is_open_is_no_black_slide(tmp_path, monkeypatch, version):
    (tmp_path / "share").mkdir()
    path = tmp_path / "share" / "slide.ome.zarr"
    write(path, version, "cyx", [np.moveaxis(RGB, 2, 0)])
    monkeypatch.chdir(tmp_path)
    with open_slide("share/slide.ome.zarr") as slide:
        monkeypatch.chdir(tmp_path / "share")
        np.testing.assert_array_equal(slide.read(Box(0, 0, 50, 50)), RGB[:50, :50])
        with pickle.loads(pickle.dumps(slide)) as copied:
            np.testing.assert_array_equal(copied.read(Box(0, 0, 50, 50)), RGB[:50, :50])
        path.rename(tmp_path / "elsewhere")
        with pytest.raises(SlideError, match=r"share/slide\.ome\.zarr: its array '0' is no longer"):
            slide.read(Box(400, 200, 20, 20))
        (tmp_path / "elsewhere").rename(path)
        np.testing.assert_array_equal(slide.read(Box(400, 200, 20, 20)), RGB[200:220, 400:])


def test_plates_and_wells_say_what_to_open(tmp_path, monkeypatch):
    plate = tmp_path / "plate.zarr"
    group = zarr.open_group(plate, mode="w", zarr_format=2)
    group.attrs["plate"] = {"wells": [{"path": "A/1"}, {"path": "A/2"}]}
    well = group.create_group("A/1")
    well.attrs["well"] = {"images": [{"path": "7"}]}
    write(plate / "A" / "1" / "7", "0.4", "cyx", [np.moveaxis(RGB, 2, 0)])
    for path, what in ((plate, "plate of 2 wells"), (plate / "A" / "1", "well of 1 images")):
        with pytest.raises(UnsupportedSlideError, match=f"OME-Zarr {what}: open one .*A/1/7"):
            open_slide(path)
    with open_slide(plate / "A" / "1" / "7") as slide:
        assert slide.id == "plate_A_1_7"
    monkeypatch.chdir(plate / "A")
    with open_slide("1/7") as slide:
        assert slide.id == "plate_A_1_7"
    with pytest.raises(UnsupportedSlideError, match=r"part of the OME-Zarr image .*/7: open"):
        open_slide(plate / "A" / "1" / "7" / "0")
    group.attrs["plate"] = {"wells": ["A"]}
    with pytest.raises(UnsupportedSlideError, match="holds no DICOM or OME-Zarr slide"):
        open_slide(plate)


@pytest.mark.parametrize("version", ["0.1", "0.3", "0.6"])
def test_other_versions_of_ngff_are_named(tmp_path, version):
    path = tmp_path / "slide.zarr"
    group = write(path, "0.4", "cyx", [np.moveaxis(RGB, 2, 0)])
    multiscale = dict(group.attrs["multiscales"][0])
    group.attrs["multiscales"] = [{**multiscale, "version": version, "axes": ["c", "y", "x"]}]
    with pytest.raises(UnsupportedSlideError, match=rf"NGFF {version}; .* reads 0\.4 and 0\.5"):
        open_slide(path)


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


def test_colours_of_an_unusual_type_are_refused_and_stains_are_not(tmp_path):
    path = tmp_path / "slide.zarr"
    level = np.moveaxis(RGB, 2, 0).astype(np.float32) / 255
    write(path, "0.5", "cyx", [level])
    with pytest.raises(UnsupportedSlideError, match=r"\.zarr: its colours are of type float32"):
        open_slide(path)
    stains = {"channels": [{"label": name} for name in ("DAPI", "CD3", "CD8")]}
    write(path, "0.5", "cyx", [level], omero=stains)
    with open_slide(path) as slide:
        assert slide.channels == ("DAPI", "CD3", "CD8")


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
    with pytest.raises(SlideError, match=r"does not follow NGFF 0\.5 \(axes: must be given\)"):
        open_slide(path)
    multiscale = meta["attributes"]["ome"]["multiscales"][0]
    multiscale["axes"] = [{"name": name, "type": "space"} for name in ("y", "x", "x")]
    (path / "zarr.json").write_text(json.dumps(meta))
    with pytest.raises(SlideError, match=r"does not follow NGFF 0\.5 \((?!.*Value error)"):
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


def zipped(folder, archive, within=""):
    """As Python's and other tools zip it: files in any order, compressed, below a folder or not."""
    with ZipFile(archive, "w", ZIP_DEFLATED) as made:
        for file in sorted(folder.rglob("*"), reverse=True):
            made.write(file, PurePath(within, file.relative_to(folder)))
    return archive


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("name", ["slide.ome.zarr.zip", "slide.ozx", "slide.zip"])
@pytest.mark.parametrize("within", ["", "slide.ome.zarr"])
def test_a_zip_archive_is_read_in_place(tmp_path, version, name, within):
    levels = [np.moveaxis(RGB[::step, ::step], 2, 0) for step in (1, 2)]
    folder = tmp_path / "slide.ome.zarr"
    write(folder, version, "cyx", levels)
    path = zipped(folder, tmp_path / name, within)
    chunks_of(folder / "0")[3].unlink()
    shutil.rmtree(folder / "1")
    with open_slide(path) as slide, ThreadPoolExecutor(4) as pool:
        assert (slide.id, slide.backend, slide.mpp) == ("slide", "omezarr", (0.5, 0.5))
        assert [level.downsample for level in slide.levels] == [1.0, 2.0]
        boxes = [Box(x, y, 111, 77) for x in range(0, 300, 60) for y in range(0, 200, 60)]
        for box, pixels in zip(boxes, pool.map(slide.read, boxes), strict=True):
            x, y = int(box.x), int(box.y)
            np.testing.assert_array_equal(pixels, RGB[y : y + 77, x : x + 111])
        np.testing.assert_array_equal(slide.read(Box(0, 0, 420, 300), 1.0), RGB[::2, ::2])
        assert slide.notes() == []
        copied = pickle.loads(pickle.dumps(slide))
    with copied:
        np.testing.assert_array_equal(copied.read(Box(0, 0, 50, 50)), RGB[:50, :50])


@pytest.mark.parametrize("shards", [None, (1, 200, 200)])
def test_missing_chunks_of_a_zip_archive_are_counted(tmp_path, shards):
    folder = tmp_path / "slide.ome.zarr"
    group = write(folder, "0.5", "cyx", [np.moveaxis(RGB, 2, 0)])
    del group["0"]
    group.create_array("0", data=np.moveaxis(RGB, 2, 0), chunks=(1, 100, 100), shards=shards)
    files = chunks_of(folder / "0")
    for file in files[:5]:
        file.unlink()
    with open_slide(zipped(folder, tmp_path / "slide.ozx")) as slide:
        (note,) = slide.notes()
        assert note.startswith(f"5 of {len(files)} chunks of level 0 are not there")


def test_zip_archives_that_are_damaged_or_hold_no_image(tmp_path):
    folder = tmp_path / "slide.ome.zarr"
    write(folder, "0.5", "cyx", [np.moveaxis(RGB, 2, 0)])
    whole = zipped(folder, tmp_path / "slide.ozx").read_bytes()
    cut = tmp_path / "cut.ozx"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SlideError, match=r"cut\.ozx: cannot be read as a zip archive of OME-Zarr"):
        open_slide(cut)
    for name in ("other.zip", "other.ozx"):
        with ZipFile(tmp_path / name, "w") as made:
            made.writestr("a/text.txt", "no slide")
    with pytest.raises(UnsupportedSlideError, match="a zip archive: unpack it"):
        open_slide(tmp_path / "other.zip")
    with pytest.raises(UnsupportedSlideError, match=r"other\.ozx: holds .*no `multiscales`"):
        open_slide(tmp_path / "other.ozx")
    (tmp_path / "other.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnsupportedSlideError, match="a zip archive: unpack it"):
        open_slide(tmp_path / "other.zip")


@pytest.mark.parametrize("part", ["zarr.json", "0/c/0/0/0"])
def test_what_would_unpack_to_fill_the_memory_is_refused(tmp_path, monkeypatch, part):
    folder = tmp_path / "slide.ome.zarr"
    write(folder, "0.5", "cyx", [np.moveaxis(RGB, 2, 0)])
    path = tmp_path / "slide.ozx"
    with ZipFile(path, "w", ZIP_DEFLATED) as made:
        for file in sorted(folder.rglob("*")):
            name = file.relative_to(folder).as_posix()
            if file.is_file() and name != part:
                made.write(file, name)
        made.writestr(part, bytes(10_000_000))
    monkeypatch.setattr("slidelens.slide.zarr_place.LARGEST", 1_000_000)
    said = rf"slide\.ozx: {part} in it unpacks to 10,000,000 bytes"
    with pytest.raises(SlideError, match=said), open_slide(path) as slide:
        slide.read(Box(0, 0, 16, 16))


def endless(blocks):
    """Return a frame of zstd that states no size: blocks of 128 kB of one byte."""
    block = (131072 << 3 | 1 << 1).to_bytes(3, "little") + b"\x07"
    return b"\x28\xb5\x2f\xfd\x00\x58" + block * blocks + (1).to_bytes(3, "little")


@pytest.mark.parametrize(
    ("name", "codec", "shards"),
    [
        ("slide.ome.zarr", "zstd", None),
        ("slide.ome.zarr", "blosc", None),
        ("slide.ome.zarr", "endless", None),
        ("slide.ome.zarr", "zstd", 2),
        ("slide.ome.zarr", "blosc", 4),
        ("slide.ozx", "zstd", 4),
    ],
)
def test_a_chunk_that_would_fill_the_memory_is_not_unpacked(tmp_path, name, codec, shards):
    """Blocks are of 256 px: the 4 chunks of a shard are read at once, or 4 of its 16."""
    path = tmp_path / "slide.ome.zarr"
    group = write(path, "0.5", "cyx", [np.moveaxis(RGB, 2, 0)])
    del group["0"]
    files = {}
    for array, side, shape in (("0", 128, (3, 512, 512)), ("large", 512, (1, 2048, 2048))):
        files[array] = path / array / "c" / "0" / "0" / "0"
        group.create_array(
            array,
            data=np.ones(shape, np.uint8),
            chunks=(1, side, side),
            shards=None if shards is None else (1, side * shards, side * shards),
            compressors=zarr.codecs.BloscCodec() if codec == "blosc" else zarr.codecs.ZstdCodec(),
        )
    with open_slide(path) as slide:
        assert slide.read(Box(0, 0, 16, 16)).any()
    large = endless(8) if codec == "endless" else files["large"].read_bytes()
    files["0"].write_bytes(large)
    zipped(path, tmp_path / "slide.ozx")
    said = rf"{name}: its chunk .*c/0/0/0 unpacks to [\d,]+ bytes or more, .*; copy it again"
    with open_slide(tmp_path / name) as slide, pytest.raises(SlideError, match=said):
        slide.read(Box(0, 0, 16, 16))


def test_a_chunk_of_no_stated_size_is_unpacked(tmp_path):
    path = tmp_path / "slide.ome.zarr"
    group = write(path, "0.5", "yx", [np.zeros((256, 512), np.uint8)])
    del group["0"]
    packed = zarr.codecs.ZstdCodec()
    group.create_array(
        "0", data=np.ones((256, 512), np.uint8), chunks=(256, 512), compressors=packed
    )
    (path / "0" / "c" / "0" / "0").write_bytes(endless(1))
    with open_slide(path) as slide:
        assert (slide.read_level(0, 0, 0, 512, 256) == 7).all()


@pytest.mark.parametrize("within", ["", "a/"])
def test_a_zip_archive_that_is_refused_is_not_left_open(tmp_path, within):
    """Windows would let nobody replace it."""
    for name, match in (("bad.ozx", "cannot be read as a zip"), ("bad.zip", "unpack it")):
        path = tmp_path / name
        with ZipFile(path, "w") as made:
            made.writestr(f"{within}zarr.json", "{")
        with pytest.raises(SlideError, match=match):
            open_slide(path)
        assert not is_open(path)
        path.unlink()


def is_open(path):
    fds = Path("/proc/self/fd").iterdir() if sys.platform == "linux" else ()
    return path in [fd.readlink() for fd in fds if fd.is_symlink()]


@pytest.mark.parametrize("name", ["slide.ome.zarr", "slide.ozx"])
def test_closing_ends_what_is_being_read(tmp_path, name):
    """A read that was under way opened the archive again, which then stayed open."""
    folder = tmp_path / "slide.ome.zarr"
    write(folder, "0.5", "cyx", [np.moveaxis(RGB, 2, 0)])
    zipped(folder, tmp_path / "slide.ozx")
    slide = open_slide(tmp_path / name)
    (under_way,) = slide._reader._arrays
    slide.close()
    slide.close()
    with pytest.raises(SlideError, match="was closed while it was read"):
        slide._reader.read(0, 0, 0, 50, 50)
    if name == "slide.ozx":
        with pytest.raises(SlideError, match=r"ozx: was closed while it was read"):
            under_way[:]
        assert not is_open(tmp_path / name)


def test_damage_is_told_without_the_bytes_that_are_damaged(tmp_path):
    """Python's zip reader shows the name that it read, of up to 64 kB."""
    folder = tmp_path / "slide.ome.zarr"
    write(folder, "0.5", "cyx", [np.moveaxis(RGB, 2, 0)])
    path = zipped(folder, tmp_path / "slide.ozx")
    content = bytearray(path.read_bytes())
    with ZipFile(path) as made:
        for one in made.infolist():
            if "/c/" in one.filename:
                length = one.header_offset + 26
                content[length : length + 2] = b"\xff\x7f"
    path.write_bytes(content)
    with open_slide(path) as slide, pytest.raises(SlideError) as found:
        slide.read(Box(0, 0, 50, 50))
    assert "cannot be decoded" in str(found.value)
    assert len(str(found.value)) < 800


@pytest.mark.parametrize("name", ["../other.zarr/0", "/{}/other.zarr/0", "..\\other.zarr\\0"])
@pytest.mark.parametrize("of", ["level", "image"])
def test_metadata_lead_to_nothing_outside(tmp_path, name, of):
    """A slide that was sent shows its own pixels, not those of what else lies on the disk."""
    write(tmp_path / "other.zarr", "0.4", "cyx", [np.moveaxis(RGB, 2, 0)])
    name = name.format(tmp_path)
    path = tmp_path / "sent.zarr"
    group = write(path, "0.4", "cyx", [np.moveaxis(RGB, 2, 0)])
    if of == "level":
        multiscale = dict(group.attrs["multiscales"][0])
        multiscale["datasets"][0]["path"] = name
        group.attrs["multiscales"] = [multiscale]
    else:
        del group.attrs["multiscales"]
        group.attrs["bioformats2raw.layout"] = 3
        group.create_group("OME").attrs["series"] = [name.rpartition("0")[0]]
    with pytest.raises(SlideError, match=r"sent\.zarr: its OME-Zarr metadata name .* outside"):
        open_slide(path)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("shape", [3, 0, 100], "has no pixels"),
        ("chunks", [3, 0, 0], "has no pixels"),
        ("shape", [1 << 30, 300, 420], "fewer channels if there are thousands"),
        ("chunks", [3, 1 << 20, 1 << 20], "too large to read in pieces"),
        ("omero", {"channels": 5}, "`omero` metadata cannot be understood"),
        ("omero", {"channels": ["a"]}, "`omero` metadata cannot be understood"),
    ],
)
def test_absurd_metadata_are_told(tmp_path, key, value, match):
    path = tmp_path / "slide.zarr"
    group = write(path, "0.4", "cyx", [np.moveaxis(RGB, 2, 0)])
    if key == "omero":
        group.attrs["omero"] = value
    else:
        header = path / "0" / ".zarray"
        header.write_text(json.dumps({**json.loads(header.read_text()), key: value}))
    with pytest.raises(SlideError, match=match):
        open_slide(path)


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_that_leads_back_to_itself_is_told(tmp_path):
    path = tmp_path / "slide.zarr"
    write(path, "0.4", "cyx", [np.moveaxis(RGB, 2, 0)])
    (path / "0" / "loop").symlink_to(path / "0")
    # Opening looks at the first file that the file system lists: a chunk, or the link.
    with pytest.raises(SlideError, match="chunks cannot be listed"), open_slide(path) as slide:
        slide.notes()
