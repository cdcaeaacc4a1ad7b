"""The demonstration runs every bundled model that is found, each over every slide."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image
from tiny_family import make_model

from slidelens.engine.demo import demo
from slidelens.engine.package import find_models, save_model
from slidelens.errors import ModelError
from slidelens.families.base import Model
from slidelens.families.magnet import FAMILY, MagNetConfig
from slidelens.settings import get_settings


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shelf whose packages are the only ones that are found."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("SLIDELENS_MODELS", str(shelf))
    monkeypatch.setattr("slidelens.__file__", str(tmp_path / "nowhere" / "__init__.py"))
    get_settings.cache_clear()
    yield shelf
    get_settings.cache_clear()


def test_all_bundled_models_run_and_share_a_picture(only, tmp_path, monkeypatch):
    monkeypatch.setattr("slidelens.engine.demo._SIZE", (768, 512))
    for name in ("demo-a", "demo-b", "mine"):
        save_model(make_model(name=name), only / name)
    assert [info.name for info in find_models()] == ["demo-a", "demo-b", "mine"]
    out = tmp_path / "out"
    made = [step.result for step in demo(out, n_slides=2) if step.result]
    assert [(r.slide.id, r.model.name) for r in made] == [
        (f"phantom_00{n}", f"demo-{letter}") for n in range(2) for letter in "ab"
    ]
    assert all((out / "geojson" / f"demo-{m}" / "phantom_001.geojson").exists() for m in "ab")
    with Image.open(out / "overview" / "phantom_001.png") as both:
        wide = both.width
    shutil.rmtree(only / "demo-b")
    list(demo(out, n_slides=2))
    with Image.open(out / "overview" / "phantom_001.png") as one:
        assert one.width < wide


def test_what_a_magnet_looked_at_is_drawn(only, tmp_path, monkeypatch):
    monkeypatch.setattr("slidelens.engine.demo._SIZE", (768, 512))
    config = MagNetConfig(
        backbone="small", auxiliary="small", patches=(2, 2), glance=32, look=32, width=4, state=8
    )
    model = Model("demo-m", "magnet", config, ("normal", "tumor"), FAMILY.build(config, 2))
    save_model(model, only / "demo-m")
    save_model(make_model(name="demo-a"), only / "demo-a")
    out = tmp_path / "out"
    made = [step.result for step in demo(out, n_slides=2) if step.result]
    assert len(made) == 4
    assert {p.name for p in (out / "windows").iterdir()} == {"demo-m"}
    with Image.open(out / "windows" / "demo-m" / "phantom_001.png") as sheet:
        assert min(sheet.size) > 300


def test_no_bundled_model_says_how_to_get_one(only, tmp_path):
    with pytest.raises(ModelError, match="make models"):
        next(demo(tmp_path / "out"))
