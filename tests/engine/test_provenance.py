"""What a result depends on: the content of its slide and the weights of its model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import numpy as np
import pytest
import tifffile
import torch

import slidelens as sl
from slidelens.engine.package import load_model, save_model
from slidelens.engine.predict import Prediction, predict
from slidelens.engine.provenance import (
    fingerprint,
    is_done,
    is_other_content,
    weights_sha256,
)
from slidelens.maps.schema import SlideInfo
from slidelens.slide.array import from_array
from slidelens.slide.openslide import OpenSlideReader
from slidelens.tiling.tissue import TissueSettings

OME = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{own}">'


def of(path: Path) -> str:
    with sl.open_slide(path) as slide:
        return fingerprint(slide)


def write_uncompressed(path: Path, seed: int, **how) -> Path:
    """Write a slide of one length, with white margins: its beginning and end are always alike."""
    image = np.full((1400, 1400, 3), 245, np.uint8)
    rng = np.random.default_rng(seed)
    image[300:1100, 300:1100] = rng.integers(0, 255, (800, 800, 3))
    tifffile.imwrite(path, image, photometric="rgb", **how)
    return path


def write_channels(folder: Path, seeds: tuple[int, int]) -> Path:
    """Write an OME-TIFF whose two channels lie in a file each; return the first."""
    folder.mkdir(exist_ok=True)
    ids = [str(uuid4()) for _ in seeds]
    planes = "".join(
        f'<TiffData IFD="0" FirstC="{i}" PlaneCount="1">'
        f'<UUID FileName="c{i}.ome.tif">urn:uuid:{one}</UUID></TiffData>'
        for i, one in enumerate(ids)
    )
    names = "".join(f'<Channel ID="Channel:0:{i}" Name="c{i}"/>' for i in range(2))
    pixels = (
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="96" '
        f'SizeY="64" SizeC="2" SizeZ="1" SizeT="1">{names}{planes}</Pixels></Image></OME>'
    )
    for i, seed in enumerate(seeds):
        tifffile.imwrite(
            folder / f"c{i}.ome.tif",
            np.random.default_rng(seed).integers(0, 255, (64, 96), np.uint8),
            description=OME.format(own=ids[i]) + pixels,
            metadata=None,
            tile=(32, 32),
        )
    return folder / "c0.ome.tif"


@pytest.mark.parametrize("how", [{}, {"tile": (256, 256)}], ids=["strips", "tiles"])
def test_an_uncompressed_file_that_was_written_anew_is_another_slide(tmp_path, how):
    path = write_uncompressed(tmp_path / "s.tif", 0, **how)
    before, size = of(path), path.stat().st_size
    assert of(Path(shutil.copy(path, tmp_path / "copy.tif"))) == before
    assert write_uncompressed(path, 1, **how).stat().st_size == size
    assert of(path) != before


def test_another_file_of_a_slide_counts_too(tmp_path, monkeypatch):
    monkeypatch.setattr("test_provenance.uuid4", iter("abab").__next__)
    first = write_channels(tmp_path / "mf", (0, 1))
    with sl.open_slide(first) as slide:
        assert slide.other_files() == [tmp_path / "mf" / "c1.ome.tif"]
        before = fingerprint(slide)
    shutil.copytree(tmp_path / "mf", tmp_path / "copy")
    assert of(tmp_path / "copy" / "c0.ome.tif") == before
    content = first.read_bytes()
    assert write_channels(tmp_path / "mf", (0, 2)).read_bytes() == content
    assert of(first) != before


def test_the_files_of_slides_that_openslide_opens_by_one(tmp_path):
    for name in (
        "s.mrxs",
        "s/Slidedat.ini",
        "s/Data0000.dat",
        "s/sub/x",
        "a.jpg",
        "m.opt",
        "b.vms",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()

    def files(name: str, vendor: str, **properties: str) -> list[str]:
        stated = {"openslide.vendor": vendor, **properties}
        given = SimpleNamespace(path=tmp_path / name, facts=SimpleNamespace(properties=stated))
        found = OpenSlideReader.other_files(given)
        return [file.relative_to(tmp_path).as_posix() for file in found]

    named = {"hamamatsu.ImageFile": "a.jpg", "hamamatsu.MapFile": "gone", "hamamatsu.No": "b.vms"}
    assert files("s.mrxs", "mirax") == ["s/Data0000.dat", "s/Slidedat.ini"]
    assert files("b.vms", "hamamatsu", **named, **{"hamamatsu.OptimisationFile": "m.opt"}) == [
        "a.jpg",
        "m.opt",
    ]
    assert files("s.mrxs", "aperio") == files("s", "dicom") == []


@pytest.mark.realdata
def test_a_dicom_series_is_known_by_all_its_files(data, tmp_path):
    shutil.copytree(data / "wsi/CMU-1-Small-Region_dicom", tmp_path / "s")
    shutil.copy(data / "wsi/openslide_fixtures/boxes_0.dcm", tmp_path / "s")  # another series
    first, *others = sorted((tmp_path / "s").glob("1.*"))
    with sl.open_slide(first) as slide:
        assert slide.other_files() == others
    before = of(first)
    with others[0].open("ab") as file:
        file.write(b"\0")
    assert of(first) != before


def test_a_fingerprint_that_was_made_in_another_way_tells_nothing(tmp_path):
    with sl.open_slide(write_uncompressed(tmp_path / "s.tif", 0)) as slide:
        own = fingerprint(slide)
        stated = {None: False, own: False, own[2:]: False, "3:" + own[2:]: False, "2:other": True}
        for text, other in stated.items():
            assert is_other_content(slide, SlideInfo(id="s", fingerprint=text)) == other


def test_weights_that_were_changed_in_memory_are_another_model(tiny, tmp_path):
    package = save_model(tiny, tmp_path / "tiny-model", half=True)
    model = load_model(package, "cpu")
    stated = model.card["weights_sha256"]

    def run(model):
        image = np.full((64, 64, 3), (200, 90, 10), np.uint8)
        job = Prediction(
            from_array(image, mpp=1.0, name="s"),
            model,
            out=tmp_path / "out",
            tissue=TissueSettings(method="whole"),
        )
        assert list(job)[-1].stage == "done"
        return job

    first = run(model).result
    assert first.model.sha256 == stated == weights_sha256(model)
    assert run(load_model(package, "cpu")).skipped
    with torch.no_grad():
        model.module.head.weight.mul_(-3)
    changed = run(model)
    assert not changed.skipped
    assert changed.result.model.sha256 == weights_sha256(model) != stated
    assert changed.result.probabilities != first.probabilities
    other = load_model(package, "cpu")
    other.module.head = torch.nn.Linear(3, 2)
    assert weights_sha256(other) != stated


@pytest.mark.parametrize(
    ("lost", "done"),
    [
        ("tiles.csv", False),
        ("regions.geojson", False),
        ("maps.ome.zarr/**/c/**/*", False),
        ("tiles.csv cut", False),
        ("regions.geojson cut", True),
        ("sizes", True),
        (None, True),
    ],
)
def test_a_result_of_which_parts_are_gone_is_not_done(tiny, tmp_path, lost, done):
    with from_array(np.full((64, 64, 3), 90, np.uint8), mpp=1.0, name="s") as slide:
        made = predict(slide, tiny, out=tmp_path, tissue=TissueSettings(method="whole"))
    if lost == "sizes":  # an old result
        content = json.loads((made.path / "result.json").read_text())
        assert content.pop("files").keys() == {"maps.ome.zarr", "regions.geojson", "tiles.csv"}
        (made.path / "result.json").write_text(json.dumps(content))
    elif lost is not None and lost.endswith(" cut"):
        (made.path / lost[:-4]).write_text("{}")
    elif lost is not None:
        gone = [path for path in made.path.glob(lost) if path.is_file()]
        assert gone
        for path in gone:
            path.unlink()
    assert is_done(made.path, made.settings_sha256) == done


@pytest.mark.parametrize("maps", [None, [{"name": "x"}], [3], 5])
def test_a_result_that_states_no_proper_maps_is_not_done(tiny, tmp_path, maps):
    content = {"slide": {"id": "s"}, "model": {"name": "m"}, "probabilities": {"a": 1.0}}
    (tmp_path / "result.json").write_text(json.dumps({**content, "settings_sha256": "d"}))
    assert is_done(tmp_path, "d")
    assert not is_done(tmp_path, "e")
    (tmp_path / "result.json").write_text(
        json.dumps({**content, "settings_sha256": "d", "maps": maps})
    )
    assert not is_done(tmp_path, "d")
