"""The cache of feature bags: keyed by content, whole or absent, shared by runs side by side."""

from __future__ import annotations

import json
import signal
import threading
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from slidelens.engine import bags
from slidelens.engine.bags import BagCache, bag_file, find_bags, fitted, read_bag
from slidelens.engine.loader import SlideView
from slidelens.errors import LabelError, ModelError, ResultError, SlideError
from slidelens.export.clam import ClamBag, write_clam
from slidelens.families.mil import MilConfig
from slidelens.families.training import Encoding
from slidelens.slide.array import from_array
from slidelens.slide.open import open_slide
from slidelens.tiling.grid import GridSpec
from slidelens.tiling.tissue import TissueSettings
from train_cohort import TILE, make_cohort
from warm import Warm

SPEC = GridSpec(TILE, 0.5, 0, 0)
WHOLE = TissueSettings(method="whole")


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("cohort")) / "slides"


class Counting:
    """Encodes a tile to its mean colour and counts the tiles."""

    def __init__(self):
        self.tiles = 0

    def __call__(self, images):
        self.tiles += len(images)
        return images.float().mean((2, 3))


def _encoder(encode=None, **fields) -> Encoding:
    return Encoding(encode or Counting(), 4, {"weights": "w"}, "fp32", **fields)


def _get(folder, path, encoder, *, slide_id="s", spec=SPEC, tissue=WHOLE, stain="none", mpp=None):
    with open_slide(path, mpp=mpp) as slide, SlideView(slide, tissue=tissue) as view:
        cache = BagCache(folder)
        return cache.get(slide_id, lambda: view, spec, encoder, tissue=tissue, stain=stain)


def test_a_bag_is_made_once_and_then_mapped(tmp_path, slides):
    encoder, path = _encoder(), slides / "s1.tif"
    bag = _get(tmp_path, path, encoder)
    assert encoder.encode.tiles == 9
    assert bag.vectors.shape == (9, 3)
    assert bag.vectors.dtype == np.float16
    assert isinstance(bag.vectors, np.memmap)
    with open_slide(path) as slide, SlideView(slide, tissue=WHOLE) as view:
        grid = view.grid(SPEC)
        (batch,) = view.batches(grid, 9)
    expected = batch.images.float().mean((2, 3)).half().numpy()
    np.testing.assert_array_equal(bag.vectors, expected)
    np.testing.assert_array_equal(bag.boxes, grid.boxes)
    assert bag.facts == {"tile": "32", "mpp": "0.5", "overlap": "0"}
    again = _encoder()
    np.testing.assert_array_equal(_get(tmp_path, path, again).vectors, expected)
    assert again.encode.tiles == 0
    (facts,) = tmp_path.glob("*/*/bag.json")
    assert json.loads(facts.read_text())["encoder"] == {"weights": "w"}


def test_a_run_opens_a_slide_once(tmp_path, slides):
    opened = []
    with open_slide(slides / "s0.tif") as slide, SlideView(slide, tissue=WHOLE) as view:
        cache = BagCache(tmp_path)
        for _ in range(3):
            cache.get(
                "s0",
                lambda: opened.append(1) or view,
                SPEC,
                _encoder(),
                tissue=WHOLE,
                stain="none",
            )
    assert len(opened) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"path": "s2.tif"},
        {"spec": replace(SPEC, overlap=8)},
        {"spec": replace(SPEC, mpp=0.25)},
        {"spec": replace(SPEC, min_tissue=0.1)},
        {"tissue": TissueSettings(method="whole", mpp=4)},
        {"stain": "macenko"},
        {"mpp": 0.4},
        {"encoder": {"facts": {"weights": "v"}}},
        {"encoder": {"facts": {"weights": "w", "augmented": [1]}}},
        {"encoder": {"dtype": "fp32"}},
        {"encoder": {"precision": "bf16"}},
    ],
    ids=str,
)
def test_whatever_changes_makes_another_bag(tmp_path, slides, change):
    change = dict(change)
    encoder = replace(_encoder(), **change.pop("encoder", {}))
    path = slides / change.pop("path", "s1.tif")
    _get(tmp_path, slides / "s1.tif", _encoder())
    _get(tmp_path, path, encoder, **change)
    assert encoder.encode.tiles > 0
    assert len(list(tmp_path.glob("*/*/bag.json"))) == 2


def test_a_slide_of_the_same_name_and_other_pixels_has_its_own_bag(tmp_path, slides):
    other = tmp_path / "other" / "s1.tif"
    other.parent.mkdir()
    other.write_bytes((slides / "s3.tif").read_bytes())
    _get(tmp_path / "cache", slides / "s1.tif", _encoder())
    encoder = _encoder()
    _get(tmp_path / "cache", other, encoder)
    assert encoder.encode.tiles == 9


_CHILD = """
import sys
sys.path[:0] = {tests!r}
from pathlib import Path
import test_bags as t

class Slow(t.Counting):
    def __call__(self, images):
        print("batch", flush=True)
        return super().__call__(images)

encoder = t._encoder(Slow())
t._get(Path({folder!r}), Path({slide!r}), encoder, slide_id="killed")
"""


@pytest.mark.parametrize("batches", [1, 3])
def test_a_killed_extraction_leaves_nothing_half(tmp_path, slides, batches):
    folder, path = tmp_path / "cache", slides / "s1.tif"
    tests = [str(folder) for folder in Path(__file__).parents[:2]]
    code = _CHILD.format(tests=tests, folder=str(folder), slide=str(path))
    child = Warm("-c", code)
    for _ in range(batches):
        assert child.stdout.readline() == "batch\n"
    child.kill()
    assert child.wait() == -signal.SIGKILL
    child.close()
    encoder = _encoder()
    bag = _get(folder, path, encoder)
    assert encoder.encode.tiles in (0, 9)  # all of it was there, or nothing
    assert bag.vectors.any(1).all()
    (left,) = (p for p in folder.glob("*/*"))  # what the dead run began is cleared away
    assert sorted(p.name for p in left.iterdir()) == ["bag.json", "boxes.npy", "vectors.npy"]


def test_runs_side_by_side_get_the_same_bag(tmp_path, slides, monkeypatch):
    ready, make = threading.Barrier(4, timeout=60), BagCache._make

    def together(self, *args):
        ready.wait()  # no one has found a bag
        make(self, *args)

    monkeypatch.setattr(BagCache, "_make", together)
    found, errors = [], []

    def run():
        try:
            found.append(np.array(_get(tmp_path, slides / "s1.tif", _encoder()).vectors))
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(np.array_equal(one, found[0]) for one in found)
    assert len(found) == 4
    assert len([p for p in tmp_path.glob("*/*") if not p.name.startswith(".")]) == 1


def test_a_damaged_bag_is_made_anew(tmp_path, slides, caplog):
    _get(tmp_path, slides / "s1.tif", _encoder())
    (vectors,) = tmp_path.glob("*/*/vectors.npy")
    vectors.write_bytes(vectors.read_bytes()[:100])
    encoder = _encoder()
    bag = _get(tmp_path, slides / "s1.tif", encoder)
    assert encoder.encode.tiles == 9
    assert bag.vectors.shape == (9, 3)
    assert "damaged and is made again" in caplog.text


def test_a_slide_without_tissue_has_an_empty_bag(tmp_path):
    white = from_array(np.full((96, 96, 3), 255, np.uint8), mpp=0.5)
    view = SlideView(white)
    settings = TissueSettings()
    for _ in range(2):
        bag = BagCache(tmp_path).get(
            "white",
            lambda: view,
            replace(SPEC, min_tissue=0.5),
            _encoder(None),
            tissue=settings,
            stain="none",
        )
        assert bag.boxes.shape == (0, 4)
        assert len(bag.vectors) == 0


def test_vectors_of_another_shape_are_told(tmp_path, slides):
    encoder = replace(_encoder(), encode=lambda images: images.float().mean((2, 3))[None])
    with pytest.raises(ValueError, match=r"shape \(1, \d+, 3\) for \d+ tiles, expected a vector"):
        _get(tmp_path, slides / "s1.tif", encoder)


def test_vectors_too_large_for_fp16_are_told(tmp_path, slides):
    def large(images):
        return torch.full((len(images), 2), 1e5)

    with pytest.raises(SlideError, match=r"exceed fp16.*bag_dtype=fp32"):
        _get(tmp_path, slides / "s1.tif", _encoder(large))
    assert not list(tmp_path.glob("*/*"))
    bag = _get(tmp_path, slides / "s1.tif", _encoder(large, dtype="fp32"))
    assert bag.vectors.max() == 1e5
    with pytest.raises(SlideError, match=r"not finite"):
        _get(tmp_path, slides / "s1.tif", _encoder(lambda x: torch.full((len(x), 2), torch.nan)))


def test_a_full_disk_says_what_to_do(tmp_path, slides, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bags.np.lib.format, "open_memmap", full)
    with pytest.raises(ResultError, match=r"No space left on device.*bag_cache=DIR"):
        _get(tmp_path, slides / "s1.tif", _encoder())
    assert not list(tmp_path.glob("*/*"))


def test_bags_made_elsewhere(tmp_path):
    with pytest.raises(LabelError, match=r"expected files <slide id>\.h5"):
        find_bags(tmp_path)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"], file["coords"] = np.ones((4, 20)), np.zeros((4, 2), np.int64)
        file["coords"].attrs.update(patch_size=256, target_magnification=10.0)
    assert find_bags(tmp_path) == {"a": tmp_path / "a.h5"}
    bag = read_bag(tmp_path / "a.h5")
    assert (bag.vectors.shape, bag.vectors.dtype) == ((4, 20), np.float32)
    config = fitted(MilConfig(pooling="abmil"), tmp_path / "a.h5")
    assert (config.bag_dim, config.tile, config.mpp) == (20, 256, 1.0)
    assert fitted(MilConfig(bag_dim=7), tmp_path / "a.h5").bag_dim == 7
    (tmp_path / "b.h5").write_text("no")
    with pytest.raises(SlideError, match="cannot be read as HDF5"):
        read_bag(tmp_path / "b.h5")


def test_a_model_reads_slides_as_its_bags_were_read(tmp_path):
    facts = {"tile": "64", "overlap": "8", "mpp": "0.25", "orientations": "8"}
    read = MilConfig(tile=64, overlap=8, mpp=0.25, orientations=8)
    bag = ClamBag(np.zeros((1, 4)), np.zeros((1, 2)), {**facts, "backbone_sha256": "a"})
    write_clam(tmp_path / "old.h5", bag, "old", (1, 1), 0.5)
    assert fitted(MilConfig(), tmp_path / "old.h5") == read
    stained = {**bag.facts, "stain_normalization": "macenko"}
    write_clam(tmp_path / "new.h5", replace(bag, facts=stained), "new", (1, 1), 0.5)
    wanted = read.model_copy(update={"stain_normalization": "macenko"})
    assert fitted(MilConfig(), tmp_path / "new.h5") == wanted


def test_a_bag_that_contradicts_what_was_asked_for_is_refused(tmp_path):
    facts = {"tile": "224", "orientations": "2", "stain_normalization": "macenko"}
    bag = ClamBag(np.zeros((1, 4)), np.zeros((1, 2)), {**facts, "backbone_sha256": "a"})
    write_clam(tmp_path / "a.h5", bag, "a", (1, 1), 0.5)
    asked = MilConfig(orientations=4)
    given = ("orientations", "stain_normalization", "tile")
    told = r"a\.h5: .* orientations 2 \(not 4\), stain_normalization macenko \(not none\), and"
    with pytest.raises(ModelError, match=told):
        fitted(asked, tmp_path / "a.h5", given)
    assert fitted(asked, tmp_path / "a.h5", ("tile",)).orientations == 2


@pytest.mark.parametrize("name", ["M\u00fc1.h5", "Mu\u03081.h5", "M\u00fc1.H5"])
def test_a_bag_is_found_however_its_name_is_written(tmp_path, name):
    (tmp_path / name).touch()
    (tmp_path / f"._{name}").touch()  # what a Mac puts beside it
    assert find_bags(tmp_path) == {"M\u00fc1": tmp_path / name}
    assert bag_file(tmp_path, "M\u00fc1") == tmp_path / name
    with pytest.raises(SlideError, match=r"Mu1\.h5: no such feature bag"):
        bag_file(tmp_path, "Mu1")
    (tmp_path / "Mu\u03081.H5").touch()
    with pytest.raises(LabelError, match="two feature bags for one slide"):
        find_bags(tmp_path)
