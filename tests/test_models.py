"""The bundled model packages: each gives its golden output, says what it is, and has a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from slidelens.engine.package import verify
from slidelens.engine.packages.card import model_card
from slidelens.engine.packages.manifest import read_manifest

HOME = Path(__file__).resolve().parents[1] / "models"
PACKAGES = sorted(path.parent for path in HOME.glob("*/model.json"))
LIMIT_MB = 3.0


def test_there_are_packages():
    families = {"mil", "abmil", "local", "magnet", "multistage", "streaming"}
    assert {f"demo-{family}" for family in families} <= {path.name for path in PACKAGES}


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda path: path.name)
def test_a_package_gives_its_golden_output(folder):
    assert verify(folder) <= 1e-4


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda path: path.name)
def test_a_package_says_what_it_is_and_how_it_was_made(folder):
    manifest = read_manifest(folder)
    assert manifest.name == folder.name
    assert manifest.licence
    assert "Not for tissue of any kind" in (manifest.intended_use or "")
    assert manifest.training_data
    assert "Not measured" not in model_card(manifest)
    assert (HOME / "recipes" / f"{folder.name.replace('-', '_')}.py").is_file()
    assert sum(path.stat().st_size for path in folder.iterdir()) < LIMIT_MB * 1e6
