"""Conformance suites for plugins, and the short trial that ``doctor`` runs.

A plugin's test file subclasses a suite, states what to test, and pytest runs the rest::

    from slidelens.testing.conformance import FamilyConformance

    class TestMine(FamilyConformance):
        family = FAMILY
        config = {"tile": 64, "mpp": 1.0}

There is one for each extension point: families, backbones, slides, exporters and panels. SlideLens
tests its own implementations with the same suites.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
import torch

from slidelens.geometry import Box
from slidelens.testing.trial import (
    trial_encoder,
    trial_export,
    trial_model,
    trial_predict,
    trial_result,
    trial_sniff,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    from slidelens.desktop.workbench import Workbench
    from slidelens.export.base import Exporter
    from slidelens.families.base import Family, Model
    from slidelens.maps.result import Result
    from slidelens.nn.encoders import EncoderSource
    from slidelens.panels import PanelPlugin
    from slidelens.slide.reader import Reader

__all__ = [
    "EncoderConformance",
    "ExporterConformance",
    "FamilyConformance",
    "PanelConformance",
    "ReaderConformance",
]


class FamilyConformance:
    """Runs a family as ``predict`` and ``train`` run it, on a small phantom."""

    family: ClassVar[Family[Any]]
    config: ClassVar[Mapping[str, Any]] = {}
    """Fields of a configuration small enough for a test."""
    training: ClassVar[Mapping[str, str]] = {}
    """Training fields that are short enough for a test, as ``train --set`` takes them."""

    @pytest.fixture
    def model(self) -> Model[Any]:
        """A model with random weights."""
        return trial_model(self.family, self.config)

    def test_is_the_family_that_is_installed(self) -> None:
        """The tests below run the installed family of that name, as ``predict`` does."""
        from slidelens.engine.package import family_of

        assert family_of(self.family.name) is self.family, (
            f"another family is installed as {self.family.name!r}: does the entry point in "
            "pyproject.toml have that name, and is the project installed (pip install -e .)?"
        )

    def test_every_field_is_described_and_has_a_default(self) -> None:
        for name, field in self.family.config.model_fields.items():
            assert field.description, f"{name} has no description: forms and help show it"
            assert not field.is_required(), f"{name} has no default"
        unknown = self.family.config.run_fields - set(self.family.config.model_fields)
        assert not unknown, f"run_fields names {unknown}"

    def test_runs_and_what_it_draws_is_what_it_declares(self, model: Model[Any]) -> None:
        trial_predict(model)

    def test_gives_the_same_answer_twice(self, model: Model[Any]) -> None:
        one, two = trial_predict(model), trial_predict(model)
        assert one.probabilities == two.probabilities
        for name, map_ in one.maps.items():
            np.testing.assert_array_equal(map_.read(), two.maps[name].read())

    def test_a_package_gives_the_answer_of_the_model(
        self, model: Model[Any], tmp_path: Path
    ) -> None:
        from slidelens.engine.package import load_model, save_model

        again = load_model(save_model(model, tmp_path / model.name), "cpu")
        assert again.config == model.config
        assert trial_predict(again).probabilities == pytest.approx(
            trial_predict(model).probabilities, abs=1e-5
        )

    def test_a_result_is_saved_and_read_back(self, model: Model[Any], tmp_path: Path) -> None:
        from slidelens.maps.result import Result

        result = trial_predict(model)
        result.save(tmp_path / "result")
        again = Result.load(tmp_path / "result")
        assert again.probabilities == pytest.approx(result.probabilities)
        assert set(again.maps) == set(result.maps)

    def test_learns_from_slide_labels(self, tmp_path: Path) -> None:
        """A short training run gives a package whose weights have changed.

        A second one is stopped after its first step, resumed, and ends in the same weights.
        """
        if self.family.trainer is None:
            pytest.skip(f"family {self.family.name} only runs")
        from safetensors.torch import load_file

        from slidelens.engine.package import load_model
        from slidelens.engine.train import train
        from slidelens.engine.training.start import task_of
        from slidelens.testing.phantom import write_cohort

        write_cohort(tmp_path / "cohort", 6, size=(640, 512))
        annotated = task_of(self.family.name).annotated

        def steps(out: str, resume: bool = False) -> Generator[str]:
            training = train(
                self.family.name,
                tmp_path / "cohort" / "slides",
                tmp_path / "cohort" / "labels.csv",
                tmp_path / out,
                resume=resume,
                weights="none",
                epochs=1,
                config=dict(self.config),
                overrides={"precision": "fp32", **self.training},
                annotations=tmp_path / "cohort" / "annotations" if annotated else None,
                device="cpu",
            )
            with closing(training):
                yield from (step.doing for step in training)

        seen = list(steps("model"))
        assert seen[-1] == "done"
        assert "train" in seen
        trial_predict(load_model(tmp_path / "model", "cpu"))
        with closing(steps("stopped")) as stopped:
            assert "train" in stopped  # which goes no further
        list(steps("stopped", resume=True))
        whole, resumed = (
            load_file(tmp_path / out / "weights.safetensors") for out in ("model", "stopped")
        )
        assert all(torch.equal(resumed[name], value) for name, value in whole.items()), (
            "a training run that was stopped and resumed ended in other weights: derive everything "
            "random from seed, epoch and slide_key alone, and keep what a step leaves for later "
            "ones in state()"
        )


class ReaderConformance:
    """Reads a sample file as :class:`~slidelens.slide.base.Slide` does."""

    reader: ClassVar[type[Reader]]

    @pytest.fixture
    def sample(self, tmp_path: Path) -> Path:
        """A file in the format; override it."""
        raise NotImplementedError("override the fixture 'sample' with a file of the format")

    @pytest.fixture
    def opened(self, sample: Path) -> Any:
        """The reader of the sample, closed at the end."""
        reader = self.reader(sample)
        yield reader
        reader.close()
        reader.close()  # harmless twice

    def test_knows_its_own_files_and_no_others(self, sample: Path, tmp_path: Path) -> None:
        head = b"" if sample.is_dir() else sample.read_bytes()[:4096]
        assert self.reader.sniff(sample, head)
        other = tmp_path / f"text{sample.suffix}"
        other.write_text("no slide\n" * 100)
        assert not self.reader.sniff(other, other.read_bytes())

    def test_is_whole_and_leaves_other_files_alone(self) -> None:
        trial_sniff(self.reader)

    def test_levels_are_finest_first_and_begin_at_one(self, opened: Reader) -> None:
        downsamples = [level.downsample for level in opened.facts.levels]
        assert downsamples[0] == 1
        assert downsamples == sorted(downsamples)
        assert all(w > 0 and h > 0 for _, (w, h) in opened.facts.levels)

    def test_boxes_are_crops_of_one_picture(self, opened: Reader) -> None:
        for number, (_, (width, height)) in enumerate(opened.facts.levels):
            w, h = min(width, 257), min(height, 129)
            whole = opened.read(number, width - w, height - h, w, h)
            assert whole.shape == (h, w, 3)
            assert whole.dtype == np.uint8
            part = opened.read(number, width - w // 2, height - h // 2, w // 2, h // 2)
            np.testing.assert_array_equal(part, whole[h - h // 2 :, w - w // 2 :])

    def test_many_threads_read_the_same_pixels(self, opened: Reader) -> None:
        _, (width, height) = opened.facts.levels[0]
        w, h = min(width, 64), min(height, 64)
        expected, found = opened.read(0, 0, 0, w, h), []
        threads = [
            threading.Thread(target=lambda: found.append(opened.read(0, 0, 0, w, h)))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == len(threads)
        assert all(np.array_equal(pixels, expected) for pixels in found)

    def test_associated_images_are_pictures(self, opened: Reader) -> None:
        for name in opened.facts.associated_images:
            pixels = opened.read_associated(name)
            assert pixels.dtype == np.uint8, name
            assert pixels.ndim == 3, name
            assert pixels.shape[2] == 3, name

    def test_opens_as_a_slide(self, sample: Path, opened: Reader) -> None:
        from slidelens.slide.base import Slide

        slide = Slide(opened, sample)
        w, h = slide.size
        pixels = slide.read(Box(0, 0, min(w, 64), min(h, 64)))
        assert pixels.shape == (min(h, 64), min(w, 64), 3)


class EncoderConformance:
    """Runs one of a plugin's encoders as MIL runs it, on noise, and keeps its weights."""

    source: ClassVar[EncoderSource]
    variant: ClassVar[str]
    """A small one that needs no network access to be built."""

    def test_tiles_become_vectors_of_the_stated_length(self) -> None:
        trial_encoder(self.source, self.variant)

    def test_the_same_tile_gives_the_same_vector(self) -> None:
        encoder = trial_encoder(self.source, self.variant)
        tile = torch.rand(1, 3, *2 * [self.source.facts(self.variant).tile or 224])
        with torch.inference_mode():
            torch.testing.assert_close(encoder(tile), encoder(tile), rtol=0, atol=0)
            both = encoder(torch.cat((tile, 1 - tile)))  # nor does it depend on its neighbours
            torch.testing.assert_close(both[:1], encoder(tile), rtol=1e-4, atol=1e-4)

    def test_threads_do_not_disturb_each_other(self) -> None:
        encoder = trial_encoder(self.source, self.variant)
        tiles = torch.rand(8, 1, 3, *2 * [self.source.facts(self.variant).tile or 224])

        def encoded(tile: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                return encoder(tile).clone()  # type: ignore[no-any-return]

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(encoded, tiles))
        for tile, vector in zip(tiles, found, strict=True):
            torch.testing.assert_close(vector, encoded(tile), rtol=1e-4, atol=1e-4)

    def test_every_parameter_learns(self) -> None:
        encoder = trial_encoder(self.source, self.variant)
        side = self.source.facts(self.variant).tile or 224
        encoder(torch.rand(2, 3, side, side)).square().sum().backward()
        without = [name for name, p in encoder.named_parameters() if p.grad is None]
        assert not without, f"no gradient reaches {without}"

    def test_a_file_that_is_no_weights_is_refused(self, tmp_path: Path) -> None:
        from slidelens.errors import ModelError

        (tmp_path / "weights.safetensors").write_bytes(b"text")
        with pytest.raises(ModelError):
            self.source.load(
                self.source.build(self.variant), self.variant, tmp_path / "weights.safetensors"
            )


class ExporterConformance:
    """Writes a result."""

    exporter: ClassVar[Exporter]

    @pytest.fixture
    def result(self) -> Result:
        """The result to write: probabilities, tiles and regions; override it for more."""
        return trial_result()

    def test_writes_one_file_or_folder(self, result: Result, tmp_path: Path) -> None:
        assert trial_export(self.exporter, tmp_path, result) is not None, (
            "the result lacks what the format holds: override the fixture 'result'"
        )

    def test_writes_the_same_again_in_its_place(self, result: Result, tmp_path: Path) -> None:
        once = trial_export(self.exporter, tmp_path, result)
        assert once == trial_export(self.exporter, tmp_path, result)


class PanelConformance:
    """Opens a panel in a real window, shows it slides, and closes it.

    It needs ``slidelens[desktop]``, pytest-qt and a display; on Linux pytest-xvfb provides one.
    """

    panel: ClassVar[PanelPlugin]

    @pytest.fixture
    def bench(
        self, make_napari_viewer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Workbench]:
        """The workbench of a new window, which remembers nothing; closed at the end."""
        from qtpy.QtCore import QCoreApplication, QEvent

        from slidelens.desktop.workbench import workbench_of

        for name in ("HOME", "XDG_CONFIG_HOME", "APPDATA"):
            monkeypatch.setenv(name, str(tmp_path))
        viewer = make_napari_viewer(show=True)
        bench = workbench_of(viewer)
        yield bench
        viewer.close()
        bench.close()
        QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete.value)

    def make(self, bench: Workbench) -> Any:
        """Make the widget, as *More panels* does."""
        from slidelens.desktop.plugin_panels import make_widget

        return make_widget(self.panel, bench)

    def test_says_what_it_is_for(self) -> None:
        for field in ("name", "title", "about"):
            assert getattr(self.panel, field), f"{field} is empty: the list of panels shows it"
        self.panel.load()

    def test_works_in_a_window(self, bench: Workbench, qtbot: Any, tmp_path: Path) -> None:
        """It opens without a slide, follows the slides that come and go, and closes."""
        from slidelens.testing.panel_trial import trial_panel

        trial_panel(self.make, bench, qtbot, tmp_path)
