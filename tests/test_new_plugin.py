"""A new family from nothing: ``slidelens new-plugin``, one edit, an install, and all of it works.

The plugin is installed as a user installs it, into an environment of its own that sees this one's
packages; the core is not touched.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from slidelens.engine.scaffold import new_plugin
from slidelens.errors import PluginError
from slidelens.testing.phantom import write_cohort

EDIT = (
    "torch.cat((pixels.mean(2), pixels.std(2)), 1)",
    "torch.cat((pixels.amin(2), pixels.mean(2)), 1)",
)
"""What the tutorial changes: the darkest colour of a tile instead of the spread."""

LAYERS = """
from slidelens.desktop.reader import get_result_reader
import sys
layers = get_result_reader(sys.argv[1])(sys.argv[1])
print([(kind, options["name"]) for _, options, kind in layers])
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Commands of a fresh environment that sees the packages of this one."""
    place = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    here = sysconfig.get_paths()["purelib"]
    theirs = next((place / "lib").glob("python*/site-packages"))
    (theirs / "parent.pth").write_text(f"import site; site.addsitedir({here!r})\n")

    def run(*command: object, fails: bool = False) -> str:
        done = subprocess.run(
            [str(place / "bin" / "python"), *map(str, command)],
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def test_a_new_family_trains_predicts_is_seen_in_napari_and_conforms(environment, tmp_path):
    run = environment
    plugin = tmp_path / "slidelens-colour-mil"
    run("-m", "slidelens", "new-plugin", "colour-mil", "--out", plugin)
    code = plugin / "src" / "slidelens_colour_mil" / "__init__.py"
    assert EDIT[0] in code.read_text()
    code.write_text(code.read_text().replace(*EDIT))
    install = ("-m", "uv", "pip", "install", "--quiet", "--offline", "--no-deps")
    run(
        *install,
        "--python",
        Path(run("-c", "import sys; print(sys.executable)").strip()),
        "--no-build-isolation",
        "--editable",
        plugin,
    )

    assert "colour-mil" in run("-m", "slidelens", "models")
    assert "Plugin colour-mil" in run("-m", "slidelens", "doctor")
    write_cohort(tmp_path / "cohort", 8, size=(1024, 896))
    cohort, model = tmp_path / "cohort", tmp_path / "my-model"
    run(
        "-m",
        "slidelens",
        "train",
        "colour-mil",
        "--slides",
        cohort / "slides",
        "--labels",
        cohort / "labels.csv",
        "--out",
        model,
        "--tile",
        "64",
        "--epochs",
        "2",
        "--device",
        "cpu",
    )
    assert json.loads((model / "model.json").read_text())["config"]["tile"] == 64
    slide = next((cohort / "slides").glob("*.tif"))
    results = tmp_path / "results"
    run("-m", "slidelens", "predict", slide, "--model", model, "--out", results)
    (result,) = [path.parent for path in results.glob("*/*/result.json")]
    layers = run("-c", LAYERS, result)
    assert "image" in layers
    assert "probability" in layers
    tests = run("-m", "pytest", "-q", "-p", "no:cacheprovider", plugin / "tests")
    assert "passed" in tests
    assert "failed" not in tests


@pytest.mark.parametrize("name", ["Colour", "1st", "mil", "a b", "-x", "class"])
def test_names_that_cannot_be_are_refused(tmp_path, name):
    with pytest.raises(PluginError, match=r"cannot be a plugin's name|is a family"):
        new_plugin(name, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(PluginError, match="not empty"):
        new_plugin("colour", tmp_path)


def test_no_word_of_the_example_is_left(tmp_path):
    folder = new_plugin("colour", tmp_path / "new")
    text = "".join(path.read_text() for path in folder.rglob("*") if path.is_file())
    assert "example" not in text.lower()
    assert "SLIDELENS_API = 1" in text
