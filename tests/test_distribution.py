"""What is given away: the wheel has all that the program needs, the sdist all of the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import slidelens

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Names in the wheel and in the sdist, as the build backend makes them of this checkout."""
    place = tmp_path_factory.mktemp("dist")
    program = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist"]
    subprocess.run([*program, "-d", place], cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(place.glob("*.whl"))) as wheel:
        inside = set(wheel.namelist())
    with tarfile.open(next(place.glob("*.tar.gz"))) as sdist:
        source = {name.partition("/")[2] for name in sdist.getnames()}
    return inside, source


def kept(folder: str) -> set[str]:
    """Files below a folder of this checkout, without what Python and tests leave behind."""
    paths = (path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file())
    return {
        str(path)
        for path in paths
        if path.suffix not in (".pyc", ".log") and not {".pytest_cache", "build"} & {*path.parts}
    }


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert project["version"] == slidelens.__version__ == citation["version"]
    assert project["license"] == citation["license"]


def test_the_wheel_holds_package_models_and_template(built):
    wheel, _ = built
    expected = {name.removeprefix("src/") for name in kept("src/slidelens")}
    models = [name for name in kept("models") if name.count("/") == 2 and "recipes" not in name]
    assert models
    expected |= {name.replace("models/", "slidelens/_models/", 1) for name in models}
    template = "plugins/slidelens-example/"
    expected |= {name.replace(template, "slidelens/_template/") for name in kept(template)}
    own = {name for name in wheel if ".dist-info/" not in name}
    assert expected - own == set(), "missing from the wheel"
    assert {name for name in own - expected if not name.endswith("/")} == set(), "too much"


def test_the_sdist_can_build_check_and_test_itself(built):
    _, sdist = built
    folders = ("src", "tests", "benchmarks", "docs", "plugins", "models", ".ci")
    missing = {name for folder in folders for name in kept(folder)} - sdist
    assert missing - {name for name in missing if "_pictures" in name} == set()
    words = set((ROOT / "README.md").read_text().replace("(", " ").replace(")", " ").split())
    named = {word for word in words if word.endswith((".md", ".toml")) and (ROOT / word).is_file()}
    needed = {"Makefile", "LICENSE", "pyproject.toml", "constraints.txt", "mkdocs.yml"}
    assert needed | named | {path.name for path in ROOT.glob("*.md")} <= sdist


def test_a_system_package_that_has_a_new_name_is_not_installed_again(tmp_path):
    """Debian 13 knows only libglib2.0-0t64: each `make test` asked for root and the network."""
    known = "for name; do case $name in -* | libglib2.0-0) ;; *) echo installed ;; esac; done"
    for program, body in (("dpkg-query", known), ("apt-get", "exit 1"), ("id", "echo 1000")):
        (tmp_path / program).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / program).chmod(0o755)
    done = subprocess.run(
        ["bash", ROOT / ".ci" / "system-packages", "test"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
