"""The developers' tutorial, word by word: a plugin from an empty folder, the core untouched.

Its commands are run and its files are written in the order in which the page has them, in a fresh
environment that the plugin is installed into as a user installs it.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from slidelens.testing.phantom import write_cohort
from warm import run_warm

pytestmark = pytest.mark.slow  # a minute and a half

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tutorial-developer.md"
BLOCK = re.compile(r'^```(\w+)(?: title="(.+?)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
NAPARI = """
import os, sys
from slidelens.testing.display import virtual_display
with virtual_display():
    from slidelens.desktop.launch import view
    viewer = view([sys.argv[1]], results=sys.argv[2], show=False)
    print([layer.name for layer in viewer.layers], flush=True)
    os._exit(0)  # Qt, of which no event loop has run, would miss its display
"""
"""What ``slidelens view`` does, without waiting for a person to close the window."""
INSTALL = "uv pip install --quiet --offline --no-deps --no-build-isolation --python"


class Outsider:
    """Somebody in a folder of their own, with a fresh environment and this page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: dict[str, str] = {}
        """What the commands of the page printed."""
        place = folder.parent / "environment"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
        self.python = place / "bin" / "python"
        self.packages = next((place / "lib").glob("python*/site-packages"))
        here = sysconfig.get_paths()["purelib"]  # the packages that SlideLens needs are there
        (self.packages / "parent.pth").write_text(f"import site; site.addsitedir({here!r})\n")

    def python_runs(self, *words: object) -> str:
        """Run Python as it is in this environment, with what is installed into it."""
        done = run_warm(*words, cwd=self.folder, packages=self.packages)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def types(self, command: str) -> None:
        program, *words = shlex.split(command)
        if words[0] == "view":
            slide, _, results = words[1:]
            said = self.python_runs("-c", NAPARI, slide, results)
        elif (program, words[0]) == ("pip", "install"):
            said = self.python_runs("-m", *shlex.split(INSTALL), self.python, *words[1:])
        elif program == "pytest":
            said = self.python_runs("-m", "pytest", "-q", "-p", "no:cacheprovider", *words)
        else:
            assert program == "slidelens"
            short = ["--epochs", "2", "--device", "cpu"] if words[0] == "train" else []
            said = self.python_runs("-m", "slidelens", *words, *short)
        self.said[command] = self.said.get(command, "") + said

    def edits(self, name: str, kind: str, text: str) -> None:
        file = self.folder / name
        if kind == "diff":
            old, new = (
                "\n".join(line[1:] for line in text.splitlines() if line[0] == sign)
                for sign in "-+"
            )
            assert file.read_text().count(old) == 1
            file.write_text(file.read_text().replace(old, new))
        elif kind == "toml":
            file.write_text(f"{file.read_text()}\n{text}")
        else:
            assert not file.exists()
            file.write_text(text)


@pytest.fixture(scope="module")
def outsider(tmp_path_factory):
    """Whoever has followed the page to its end."""
    folder = tmp_path_factory.mktemp("outsider") / "home"
    write_cohort(folder, 8, size=(1024, 896))
    shutil.copy(next((folder / "slides").glob("*.tif")), folder / "slide.svs")
    someone = Outsider(folder)
    for kind, name, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if kind == "console":
            for line in text.splitlines():
                someone.types(line.removeprefix("$ "))
        else:
            someone.edits(name, kind, text)
    return someone


def test_doctor_has_tried_what_the_page_wrote(outsider):
    said = outsider.said["slidelens doctor"]
    assert re.search(r"ok +Plugin colour-mil +.*runs; training steps load", said)
    assert re.search(r"ok +Plugin deepzoom ", said)
    assert re.search(r"ok +Plugin top-tiles ", said)
    assert "BROKEN   Plugin" not in said


def test_the_family_was_trained_with_its_own_field_and_run(outsider):
    manifest = json.loads((outsider.folder / "my-model" / "model.json").read_text())
    assert manifest["family"] == "colour-mil"
    assert manifest["config"]["tile"] == 64
    result = json.loads((outsider.folder / "results/my-model/slide/result.json").read_text())
    assert sum(result["probabilities"].values()) == pytest.approx(1)


def test_napari_shows_its_map(outsider):
    (said,) = [text for command, text in outsider.said.items() if " view " in command]
    assert "slide" in said
    assert "my-model" in said
    assert "probability" in said


def test_every_suite_of_the_page_passed(outsider):
    runs = {c: text for c, text in outsider.said.items() if c.startswith("pytest")}
    assert len(runs) == 3
    for command, text in runs.items():
        assert re.search(r"^\d+ passed", text, re.MULTILINE), f"{command}: {text}"
        assert "skipped" not in text


def test_a_slide_of_the_new_format_goes_through_the_whole_program(outsider):
    sys.path.insert(0, str(outsider.folder / "slidelens-colour-mil" / "src"))
    sys.path.insert(0, str(outsider.folder / "slidelens-colour-mil" / "tests"))
    try:
        from test_deepzoom import write_deepzoom
    finally:
        del sys.path[:2]
    path = write_deepzoom(outsider.folder)
    facts = json.loads(outsider.python_runs("-m", "slidelens", "info", path, "--json"))
    assert (facts["backend"], facts["width"], len(facts["levels"])) == ("deepzoom", 900, 3)
    options = ["--model", "my-model", "--mpp", "0.5", "--out", "zoomed", "--device", "cpu"]
    outsider.python_runs("-m", "slidelens", "predict", path, *options)
    assert (outsider.folder / "zoomed/my-model/slide/result.json").is_file()
