"""The suites hold for all that is built in, and find out what breaks its promise."""

from __future__ import annotations

import dataclasses
import re
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sample_results import make_result
from slidelens.errors import ModelError, PluginError
from slidelens.export import EXPORTERS, Exporter
from slidelens.families import FAMILIES
from slidelens.families.base import Family, SlideScore
from slidelens.families.mil import FAMILY as MIL
from slidelens.families.mil_train import MilTask
from slidelens.nn.backbones import build_features, load_weights
from slidelens.nn.encoders import Encoder, EncoderFacts, EncoderSource
from slidelens.nn.pixels import IMAGENET_MEAN, IMAGENET_STD
from slidelens.registry import API_VERSION
from slidelens.slide.open import READERS, open_slide
from slidelens.slide.tiff import TiffReader
from slidelens.testing.conformance import (
    EncoderConformance,
    ExporterConformance,
    FamilyConformance,
    ReaderConformance,
)
from slidelens.testing.phantom import PhantomSpec, truth, write_phantom
from slidelens.testing.results import make_result as make_known_result
from slidelens.testing.trial import trial_encoder, trial_model

PAGE = Path(__file__).resolve().parents[2] / "docs" / "plugins.md"
TORCHVISION = EncoderSource(
    build=build_features,
    load=lambda module, variant, weights: load_weights(module, weights),
    facts=lambda variant: EncoderFacts(IMAGENET_MEAN, IMAGENET_STD, tile=64),
)


class TestSqueezeNet(EncoderConformance):
    source = TORCHVISION
    variant = "squeezenet1_1"


SPEC = PhantomSpec(size=(700, 600), seed=1)


def phantom(folder):
    write_phantom(folder / "slide.tif", SPEC)
    return folder / "slide.tif"


def ome_tiff(folder):
    import tifffile

    with open_slide(phantom(folder)) as slide:
        pixels = slide.read_level(0, 0, 0, 700, 600)
    tifffile.imwrite(folder / "slide.ome.tif", pixels, photometric="rgb", tile=(256, 256))
    return folder / "slide.ome.tif"


def ome_zarr(folder):
    import zarr

    with open_slide(phantom(folder)) as slide:
        pixels = np.moveaxis(slide.read_level(0, 0, 0, 700, 600), 2, 0)
    group = zarr.open_group(folder / "slide.ome.zarr", mode="w", zarr_format=3)
    for level, step in enumerate((1, 2)):
        group.create_array(str(level), data=pixels[:, ::step, ::step], chunks=(3, 128, 128))
    axes = [{"name": "c", "type": "channel"}, *({"name": a, "type": "space"} for a in "yx")]
    datasets = [
        {
            "path": str(level),
            "coordinateTransformations": [{"type": "scale", "scale": [1.0, 0.5 * f, 0.5 * f]}],
        }
        for level, f in enumerate((1, 2))
    ]
    multiscales = [{"name": "slide", "axes": axes, "datasets": datasets}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
    return folder / "slide.ome.zarr"


SAMPLES = {"openslide": phantom, "tifffile": ome_tiff, "omezarr": ome_zarr}


def reader_suite(name: str) -> type[ReaderConformance]:
    class Suite(ReaderConformance):
        reader = READERS.get(name)

        @pytest.fixture
        def sample(self, tmp_path):
            return SAMPLES[name](tmp_path)

    return Suite


def exporter_suite(name: str) -> type[ExporterConformance]:
    class Suite(ExporterConformance):
        exporter = EXPORTERS.get(name)

        @pytest.fixture
        def result(self, tmp_path_factory):
            if name != "contact-sheet":
                return make_result()
            place = phantom(tmp_path_factory.mktemp("slide"))  # shows where a model looked
            return make_known_result(truth(SPEC), "slide", "magnet", 0.8, path=place)

    return Suite


for _name in SAMPLES:
    globals()[f"TestReader{_name}"] = reader_suite(_name)
EXPORTED = [name for name in EXPORTERS if name not in EXPORTERS.plugins()]
for _name in EXPORTED:
    globals()[f"TestExporter{_name}"] = exporter_suite(_name)


def shown(title: str) -> dict[str, object]:
    """What the code of that title on the plugins' page defines."""
    code = re.search(rf'```python title="{title}"\n(.*?)```', PAGE.read_text(), re.DOTALL)[1]
    module: dict[str, object] = {}
    exec(compile(code, PAGE.name, "exec"), module)
    assert module["SLIDELENS_API"] == API_VERSION
    return module


class TestEncoderOfTheDocumentation(EncoderConformance):
    source = shown("encoder")["SOURCE"]
    variant = source.sample

    def test_its_own_weights_come_back(self, tmp_path):
        one, other = (trial_encoder(self.source, self.variant) for _ in range(2))
        save_file(one.state_dict(), tmp_path / "own.safetensors")
        report = self.source.load(other, self.variant, tmp_path / "own.safetensors")
        assert report.loaded == len(one.state_dict())
        tiles = torch.rand(2, 3, 64, 64)
        torch.testing.assert_close(one(tiles), other(tiles))


class TestExporterOfTheDocumentation(ExporterConformance):
    exporter = shown("exporter")["EXPORTER"]


def test_every_built_in_reader_is_among_them():
    assert set(SAMPLES) == set(READERS) - set(READERS.plugins())


# What breaks its promise. Each suite is asked for the test that must find it out.


class Shifted(TiffReader):
    """Reads boxes a pixel beside where they are, unless they begin at the edge."""

    def read(self, level, x, y, w, h):
        return super().read(level, max(x - 1, 0) if w < 200 else x, y, w, h)


class Greedy(TiffReader):
    @classmethod
    def sniff(cls, path, head):
        return True


class Racing(TiffReader):
    """Keeps what it reads in one place for all threads."""

    def read(self, level, x, y, w, h):
        import time

        self.place = (level, x, y, w, h)
        self.calls = getattr(self, "calls", 0) + 1
        mine = self.calls
        time.sleep(0.02)
        pixels = super().read(*self.place)
        return pixels if mine == self.calls else 255 - pixels


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (Shifted, "test_boxes_are_crops_of_one_picture"),
        (Racing, "test_many_threads_read_the_same_pixels"),
    ],
)
def test_a_reader_that_gives_other_pixels_is_found_out(tmp_path, kind, check):
    suite, opened = ReaderConformance(), kind(ome_tiff(tmp_path))
    with pytest.raises(AssertionError):
        getattr(suite, check)(opened)
    opened.close()


def test_a_reader_that_wants_every_file_is_found_out(tmp_path):
    suite = type("Suite", (ReaderConformance,), {"reader": Greedy})()
    with pytest.raises(AssertionError):
        suite.test_knows_its_own_files_and_no_others(ome_tiff(tmp_path), tmp_path)
    with pytest.raises(PluginError, match=r"takes text\.txt for a slide"):
        suite.test_is_whole_and_leaves_other_files_alone()


class Averaging(Encoder):
    """Its vectors depend on the other tiles of the batch, as live batch statistics do."""

    dim = 3

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(3))
        self.unused = torch.nn.Parameter(torch.ones(3))

    def forward(self, images):
        vectors = images.mean((2, 3)) * self.scale
        return vectors - vectors.mean(0)


class Keeping(Encoder):
    """Keeps its batch in the module, for all threads."""

    dim = 3

    def forward(self, images):
        import time

        self.images = images
        time.sleep(0.02)
        return self.images.mean((2, 3))


@pytest.mark.parametrize(
    ("kind", "check", "message"),
    [
        (Averaging, "test_the_same_tile_gives_the_same_vector", "not close"),
        (Keeping, "test_threads_do_not_disturb_each_other", "not close"),
        (Averaging, "test_every_parameter_learns", "no gradient reaches .*unused"),
    ],
)
def test_an_encoder_that_breaks_its_promise_is_found_out(kind, check, message):
    source = dataclasses.replace(TORCHVISION, build=lambda variant: kind())
    suite = type("Suite", (EncoderConformance,), {"source": source, "variant": "any"})()
    with pytest.raises(AssertionError, match=message):
        getattr(suite, check)()


def test_an_exporter_that_breaks_its_promise_is_found_out(tmp_path):
    def once(result, path):
        if path.exists():
            raise FileExistsError(path)
        path.write_text("done")

    exporter = Exporter("once", "Writes once.", ".txt", once)
    suite = type("Suite", (ExporterConformance,), {"exporter": exporter})()
    with pytest.raises(FileExistsError):
        suite.test_writes_the_same_again_in_its_place(make_result(), tmp_path)


@pytest.fixture
def mil(monkeypatch):
    """Make the suite of a changed MIL, installed in the place of the real one."""

    def make(**changes: object) -> FamilyConformance:
        family: Family = dataclasses.replace(MIL, **changes)
        monkeypatch.setitem(FAMILIES._loaded, "mil", family)
        config = {"backbone": "squeezenet1_1", "tile": 64, "mpp": 1.0}
        return type("Suite", (FamilyConformance,), {"family": family, "config": config})()

    return make


def test_a_family_that_draws_what_it_did_not_declare_is_found_out(mil):
    suite = mil(maps=lambda config, classes: ())
    with pytest.raises(ModelError, match="drew a map 'probability'"):
        suite.test_runs_and_what_it_draws_is_what_it_declares(
            trial_model(suite.family, suite.config)
        )


def test_a_family_that_remembers_the_last_slide_is_found_out(mil):
    seen = []

    def infer(model, view):
        seen.append(view)
        for event in MIL.infer(model, view):
            again = len(seen) > 1 and isinstance(event, SlideScore)
            yield SlideScore((0.5, 0.5)) if again else event

    suite = mil(infer=infer)
    with pytest.raises(AssertionError):
        suite.test_gives_the_same_answer_twice(trial_model(suite.family, suite.config))


@pytest.mark.usefixtures("without_curves")
def test_a_training_that_keeps_what_no_checkpoint_holds_is_found_out(mil, monkeypatch, tmp_path):
    steps, step = count(1), MilTask.step

    def forgetful(self, work, epoch, backward):
        weight = next(steps)
        return step(self, work, epoch, lambda loss: backward(loss * weight))

    monkeypatch.setattr(MilTask, "step", forgetful)
    suite = mil()
    suite.training = {"warm_steps": "1", "train_batch": "4"}
    with pytest.raises(AssertionError, match="resumed ended in other weights"):
        suite.test_learns_from_slide_labels(tmp_path)


def test_a_family_whose_field_says_nothing_is_found_out(mil):
    class Mute(MIL.config):
        silent: int = 3

    with pytest.raises(AssertionError, match="silent has no description"):
        mil(config=Mute).test_every_field_is_described_and_has_a_default()


def test_a_family_that_is_not_the_installed_one_is_found_out():
    class Suite(FamilyConformance):
        family = dataclasses.replace(MIL, title="Another")

    with pytest.raises(AssertionError, match="another family is installed as 'mil'"):
        Suite().test_is_the_family_that_is_installed()
