from importlib import import_module
from pathlib import Path

import pytest
from npe2 import PluginManager, PluginManifest

import slidelens

PACKAGED = Path(slidelens.__file__).with_name("napari.yaml")


@pytest.fixture(scope="module")
def manifest() -> PluginManifest:
    return PluginManifest.from_distribution("slidelens")


def test_copy_at_the_top_is_equal():
    copy = Path(__file__).parents[2] / "napari.yaml"
    assert copy.read_text() == PACKAGED.read_text()


def test_manifest_is_found_and_valid(manifest):
    assert manifest.display_name == "SlideLens"
    manifest.validate_imports()  # what `npe2 validate slidelens` does


def test_every_command_is_used_and_there(manifest):
    parts = manifest.contributions
    used = {c.command for c in [*parts.readers, *parts.writers, *parts.sample_data, *parts.widgets]}
    used |= {item.command for items in parts.menus.values() for item in items}
    assert {c.id for c in parts.commands} == used
    for command in parts.commands:
        module, _, name = command.python_name.partition(":")
        assert callable(getattr(import_module(module), name))


@pytest.mark.parametrize(
    "name",
    [
        *("a.svs", "a.SVS", "a.ndpi", "a.mrxs", "a.scn", "a.bif", "a.tif", "a.tiff", "a.ome.tif"),
        *("a.dcm", "a.qptiff", "a.vms", "a.svslide", "x.y.svs", "a.geojson", "a.xml"),
        "result.json",
    ],
)
def test_formats_reach_a_reader(manifest, name):
    manager = PluginManager()
    manager.register(manifest)
    assert list(manager.iter_compatible_readers([name]))


def test_other_files_do_not_ask_us(manifest):
    manager = PluginManager()
    manager.register(manifest)
    assert not list(manager.iter_compatible_readers(["a.png"]))
