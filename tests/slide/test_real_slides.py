"""Every real slide opens by the right backend with the right facts; every broken one says why."""

import shutil
import sys
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from slidelens import Box, MissingMppError, SlideError, UnsupportedSlideError, open_slide
from slidelens.engine.package import load_model
from slidelens.engine.provenance import settings_sha256
from slidelens.slide.describe import describe
from slidelens.tiling.tissue import TissueSettings

pytestmark = pytest.mark.realdata

DICOM = "CMU-1-Small-Region_dicom"
SVS_FACTS = ("openslide", (2220, 2967), [1.0], 0.499)
PYRAMID = [1.0, 2.0, 4.016129032258064, 8.086312118570184]
GOOD = {
    "CMU-1-Small-Region.svs": (*SVS_FACTS, 20, "label macro thumbnail"),
    DICOM: (*SVS_FACTS, None, "label macro thumbnail"),
    "TCGA-CR-7395-01A-01-TS1.svs": (
        *("openslide", (4443, 3567), [1.0, 2.0005055500659967], None, None),
        "thumbnail",
    ),
    "test3-DAPI-2-387.ndpi": (
        *("openslide", (3968, 4864), [2.0**i for i in range(7)], 0.2281750559028887, 40),
        "macro",
    ),
    "google_camelyon_jpeg.dcm": ("openslide", (1152, 700), [1.0], (28.969, 28.968), None, ""),
    "small_vectra.qptiff": ("tifffile", (1920, 1440), [1.0], 0.49653463, 10, "thumbnail"),
    "colon_polyp_203mp.tif": ("openslide", (15872, 12800), [1.0, 4.0, 16.0], 0.5, None, ""),
    "colon_polyp_203mp_tissue_mask_ds4.tif": ("tifffile", (3968, 3200), [1.0], 2.0, None, ""),
    "pathml_small_HE_levels.tiff": ("openslide", (300, 250), PYRAMID, None, None, ""),
    "openslide_fixtures/boxes.tiff": ("openslide", (300, 250), PYRAMID, None, None, ""),
    "openslide_fixtures/boxes_0.dcm": ("openslide", (16, 16), [1.0], 0.499, 20, "thumbnail"),
    "openslide_fixtures/boxes_1.dcm": ("openslide", (16, 16), [1.0], 0.499, 20, "thumbnail"),
    "openslide_fixtures/small.svs": ("openslide", (16, 16), [1.0], 0.499, 20, "thumbnail"),
    "openslide_fixtures/😐.svs": ("openslide", (16, 16), [1.0], 0.499, 20, "thumbnail"),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_slides(data, name):
    backend, size, downsamples, mpp, power, associated = GOOD[name]
    with open_slide(data / "wsi" / name) as slide:
        facts = describe(slide)
        assert (slide.backend, tuple(slide.size)) == (backend, size)
        assert [level.downsample for level in slide.levels] == pytest.approx(downsamples, rel=1e-12)
        assert slide.objective_power == power
        assert sorted(slide.associated_images) == associated.split()
        for name in slide.associated_images:
            assert slide.read_associated(name).shape[2] == 3
        if mpp is None:
            assert facts["mpp"] is None
            assert slide.mpp_source is None
        else:
            assert facts["mpp"] == pytest.approx(list(mpp) if isinstance(mpp, tuple) else mpp)
            assert slide.mpp_source
        for index, level in enumerate(slide.levels):
            w, h = level.size
            corner = slide.read_level(index, w - 8, h - 8, 16, 16)
            assert (corner[8:] == 255).all()
        assert facts["levels"][0] == {"downsample": 1.0, "width": size[0], "height": size[1]}
        assert len(facts["properties"]) > 0 or backend == "tifffile"


def test_any_instance_of_a_dicom_series_opens_the_slide(data):
    files = sorted((data / "wsi" / DICOM).iterdir())
    pixels = []
    for path in files:
        with open_slide(path) as slide:
            assert slide.size == (2220, 2967)
            pixels.append(slide.read(Box(700, 900, 64, 64)))
    assert len(files) == 4
    assert all(np.array_equal(pixels[0], other) for other in pixels)


def test_what_lies_beside_the_files_of_a_dicom_series(data, tmp_path):
    """An index of a medium, and what file browsers leave, are no part of the slide."""
    shutil.copytree(data / "wsi" / DICOM, tmp_path / "slide")
    (tmp_path / "slide" / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(99))
    (tmp_path / "slide" / "Thumbs.db").write_bytes(b"pictures")
    with open_slide(tmp_path / "slide") as slide:
        assert slide.size == (2220, 2967)


def test_a_header_that_names_a_patient_is_noted_without_the_name(data, tmp_path):
    files = tmp_path / "slide"
    shutil.copytree(data / "wsi" / DICOM, files, copy_function=shutil.copyfile)
    with open_slide(files) as slide:
        assert slide.notes() == []
    empty, filled = b"\x10\0\x10\0PN\0\0", b"\x10\0\x10\0PN\x08\0Doe^Jane"
    for file in files.iterdir():
        file.write_bytes(file.read_bytes().replace(empty, filled, 1))
    with open_slide(files) as slide:
        assert slide.properties["dicom.PatientName"] == "Doe^Jane"
        (note,) = slide.notes()
    assert "(dicom.PatientName)" in note
    assert "Doe" not in note


def test_a_folder_of_two_dicom_series_is_not_guessed(data, tmp_path):
    shutil.copy(data / "wsi/google_camelyon_jpeg.dcm", tmp_path / "a.dcm")
    shutil.copy(data / "wsi/openslide_fixtures/boxes_0.dcm", tmp_path / "b.dcm")
    with pytest.raises(SlideError, match=r"2 DICOM series.*a\.dcm, b\.dcm"):
        open_slide(tmp_path)


BAD = {
    "openslide_fixtures": r"more than DICOM files: open one of these, such as boxes_0\.dcm",
    "openslide_fixtures/boxes.png": "PNG picture",
    "openslide_fixtures/unopenable.tiff": "TIFF method 52479.*convert",
    "openslide_fixtures/unreadable.svs": "cannot be decoded",
    "vsi-ets-test-jpg2k.vsi": "Olympus VSI.*OME-TIFF",
    "_vsi-ets-test-jpg2k_/stack1/frame_t_0.ets": "not a slide format",
    "nothing-here.svs": "no such file",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_slides_give_one_sentence(data, name):
    path = data / "wsi" / name
    with pytest.raises(SlideError, match=BAD[name]) as caught, open_slide(path) as slide:
        describe(slide)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    assert text.endswith(".")


@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "small_vectra.qptiff"])
def test_a_truncated_file_is_an_error(data, tmp_path, name, part):
    whole = (data / "wsi" / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(whole[: int(len(whole) * part)])
    with (
        pytest.raises(SlideError, match="truncated" if part > 0.05 else name),
        open_slide(path) as slide,
    ):
        describe(slide)


def test_text_with_a_slides_extension(tmp_path):
    path = tmp_path / "notes.svs"
    path.write_text("this is not a slide")
    with pytest.raises(UnsupportedSlideError, match="looks like text"):
        open_slide(path)


def test_tcga_without_mpp_asks_for_it_and_works_with_it(data, tmp_path):
    path = data / "wsi/TCGA-CR-7395-01A-01-TS1.svs"
    with open_slide(path) as slide:
        with pytest.raises(MissingMppError, match=r"TCGA-CR-7395.*--mpp X"):
            slide.read(Box(0, 0, 512, 512), 0.5)
        assert slide.read(Box(0, 0, 64, 64)).shape == (64, 64, 3)
    with pytest.raises(MissingMppError, match="objective power"):
        open_slide(path, mpp="from-objective")
    with open_slide(path, mpp=0.25) as slide:
        assert (slide.mpp, slide.mpp_source) == ((0.25, 0.25), "given")
        assert slide.read(Box(0, 0, 512, 512), 0.5).shape == (256, 256, 3)
    table = tmp_path / "mpp.csv"
    table.write_text("slide,mpp\nother,1\nTCGA-CR-7395-01A-01-TS1,0.26\n")
    with open_slide(path, mpp=table) as slide:
        assert (slide.mpp, slide.mpp_source) == ((0.26, 0.26), "table mpp.csv")


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs"])
def test_fast_tiles_are_the_pixels_of_openslide(data, name):
    path = data / "wsi" / name
    with openslide.OpenSlide(path) as plain, open_slide(path) as slide:
        for _ in range(2):  # first by OpenSlide itself, then by the tile decoder
            want = np.asarray(plain.read_region((300, 500), 0, (700, 600)).convert("RGB"))
            np.testing.assert_array_equal(slide.read(Box(300, 500, 700, 600)), want)


def test_levels_at_fractional_downsamples_have_no_interpolation(data):
    path = data / "wsi/TCGA-CR-7395-01A-01-TS1.svs"
    with open_slide(path) as slide:
        first = slide.read_level(1, 1500, 703, 90, 80)
    with open_slide(path) as slide:
        slide.read_level(0, 0, 0, 1, 1)
        whole = slide.read_level(1, 0, 0, 2221, 1783)
        part = slide.read_level(1, 1500, 703, 90, 80)
        np.testing.assert_array_equal(part, whole[703:783, 1500:1590])
        np.testing.assert_array_equal(part, first)  # whatever was read before


def test_icc_profiles_are_kept(data):
    with open_slide(data / "wsi" / DICOM) as slide:
        assert len(slide.icc_profile) == 588
    with open_slide(data / "wsi/CMU-1-Small-Region.svs", icc=True) as without:
        assert without.icc_profile is None
        assert without.read(Box(0, 0, 8, 8)).shape == (8, 8, 3)


def test_an_icc_profile_is_applied_when_asked_for(data, tmp_path):
    with open_slide(data / "wsi" / DICOM) as slide:
        srgb = slide.icc_profile
    # A profile that takes red for blue and blue for red.
    swapped = srgb.replace(b"rXYZ", b"tmp_").replace(b"bXYZ", b"rXYZ").replace(b"tmp_", b"bXYZ")
    path = tmp_path / "swapped.tif"
    orange = np.broadcast_to(np.array([230, 120, 40], np.uint8), (64, 64, 3))
    tifffile.imwrite(path, orange, tile=(64, 64), photometric="rgb", iccprofile=swapped)
    with open_slide(path) as slide:
        assert slide.icc_profile == swapped
        np.testing.assert_array_equal(slide.read(Box(0, 0, 9, 9)), orange[:9, :9])
    with open_slide(path, icc=True) as slide:
        assert np.abs(slide.read(Box(0, 0, 9, 9)).astype(int) - (40, 120, 230)).max() <= 3
        assert (slide.read(Box(-9, 0, 9, 9)) == 255).all()
    # What is computed of one is not taken for the other's.
    model, how = load_model("demo-mil"), {"region": None, "precision": "fp32"}
    digests = set()
    for icc in (False, True):
        with open_slide(path, icc=icc, mpp=0.5) as slide:
            assert slide.color_managed is icc
            digests.add(settings_sha256(slide, model, tissue=TissueSettings(), **how))
    assert len(digests) == 2
    tifffile.imwrite(path, orange, tile=(64, 64), photometric="rgb", iccprofile=b"nonsense")
    with pytest.raises(SlideError, match="ICC profile cannot be used"):
        open_slide(path, icc=True)


def test_fluorescence_channels_are_named_and_told_apart(data):
    with open_slide(data / "wsi/small_vectra.qptiff") as slide:
        assert slide.channels == ("DAPI", "FITC", "Cy3")
        box = Box(400, 300, 512, 512)
        whole = slide.read(box)
        assert whole.max() > 200
        assert whole.std() > 10
        np.testing.assert_array_equal(slide.read(Box(500, 400, 64, 64)), whole[100:164, 100:164])


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_files_are_closed(data):
    def held():
        links = [link for link in Path("/proc/self/fd").iterdir() if link.exists()]
        return sum("wsi" in link.readlink().parts for link in links)

    most = 0
    for name in ("CMU-1-Small-Region.svs", "small_vectra.qptiff", DICOM, "test3-DAPI-2-387.ndpi"):
        before = held()
        with open_slide(data / "wsi" / name) as slide:
            for _ in range(3):
                slide.read(Box(0, 0, 100, 100))
            most = max(most, held())
        assert held() == before
    assert most > 0
    for name in ("openslide_fixtures/unopenable.tiff", "vsi-ets-test-jpg2k.vsi"):
        with pytest.raises(SlideError):
            open_slide(data / "wsi" / name)
    assert held() == before
