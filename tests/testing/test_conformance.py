"""The suites for readers, encoders and exporters hold for what is built in."""

from __future__ import annotations

import pytest

from slidelens.export import EXPORTERS
from slidelens.nn.backbones import build_features, load_weights
from slidelens.nn.encoders import EncoderFacts, EncoderSource
from slidelens.nn.pixels import IMAGENET_MEAN, IMAGENET_STD
from slidelens.slide.open import READERS, open_slide
from slidelens.testing.conformance import (
    EncoderConformance,
    ExporterConformance,
    ReaderConformance,
)
from slidelens.testing.phantom import PhantomSpec, write_phantom

TORCHVISION = EncoderSource(
    build=build_features,
    load=lambda module, variant, weights: load_weights(module, weights),
    facts=lambda variant: EncoderFacts(IMAGENET_MEAN, IMAGENET_STD, tile=64),
)


class TestSqueezeNet(EncoderConformance):
    source = TORCHVISION
    variant = "squeezenet1_1"


class _Phantom(ReaderConformance):
    @pytest.fixture
    def sample(self, tmp_path):
        write_phantom(tmp_path / "slide.tif", PhantomSpec(size=(700, 600), seed=1))
        return tmp_path / "slide.tif"


class TestOpenSlide(_Phantom):
    reader = READERS.get("openslide")


class TestTifffile(_Phantom):
    reader = READERS.get("tifffile")

    @pytest.fixture
    def sample(self, tmp_path):
        import tifffile

        write_phantom(tmp_path / "rgb.tif", PhantomSpec(size=(700, 600), seed=1))
        with open_slide(tmp_path / "rgb.tif") as slide:
            pixels = slide.read_level(0, 0, 0, 700, 600)
        tifffile.imwrite(tmp_path / "slide.ome.tif", pixels, photometric="rgb", tile=(256, 256))
        return tmp_path / "slide.ome.tif"


class TestGeoJson(ExporterConformance):
    exporter = EXPORTERS.get("geojson")


class TestWsinferCsv(ExporterConformance):
    exporter = EXPORTERS.get("wsinfer-csv")


class TestOmeZarr(ExporterConformance):
    exporter = EXPORTERS.get("ome-zarr")
