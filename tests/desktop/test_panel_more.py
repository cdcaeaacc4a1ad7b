"""Panels of plugins, as a user installs them: one that works, and broken ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hands import close_panel, press
from known_slides import make_slide

from slidelens.desktop.layers import slide_layer
from slidelens.desktop.shown import add_layer
from slidelens.desktop.window import camera
from slidelens.errors import PluginError
from slidelens.panels import PANELS
from slidelens.registry import Registry

CORNERS = '''
from qtpy.QtWidgets import QLabel, QPushButton, QVBoxLayout, QWidget

from slidelens.panels import PanelPlugin

SLIDELENS_API = 1


class Corners(QWidget):
    """Fly to the corners of the slide."""

    def __init__(self, bench):
        super().__init__()
        self.bench = bench
        self.text = QLabel()
        button = QPushButton("Fly to the upper left corner")
        button.clicked.connect(self.fly)
        layout = QVBoxLayout(self)
        layout.addWidget(self.text)
        layout.addWidget(button)
        bench.slide_changed.connect(self.show_slide)
        self.show_slide()

    def show_slide(self):
        slide = self.bench.slide
        self.text.setText("No slide is open." if slide is None else slide.id)

    def fly(self):
        slide = self.bench.slide
        if slide is not None:
            corner = slide.box._replace(w=slide.box.w / 8, h=slide.box.h / 8)
            self.bench.fly_to(corner, slide.world)


PANEL = PanelPlugin(
    "corners", "Corners", "Flies to the corners of the slide.", "panel_corners:Corners"
)
'''
PANEL = """
SLIDELENS_API = {version}
from slidelens.panels import PanelPlugin
PANEL = PanelPlugin("{name}", "Title of {name}", "About {name}.", "{widget}")
"""
BROKEN = {
    "raises": ("raise RuntimeError('at import')", "at import"),
    "old": (PANEL.format(version=0, name="old", widget="os:PathLike"), "version 0"),
    "gone": (PANEL.format(version=1, name="gone", widget="no_such_module:Class"), "no_such_module"),
    "plain": (PANEL.format(version=1, name="plain", widget="builtins:len"), "expected a class"),
}
WORSE = {
    "angry": "module_of_angry:Angry",
    "thing": "module_of_thing:Thing",
}


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder where Python finds packages, and a registry that has not looked yet."""
    monkeypatch.syspath_prepend(tmp_path)
    fresh = Registry(PANELS.group, "slidelens.panels:PanelPlugin", {})
    monkeypatch.setattr("slidelens.panels.PANELS", fresh)
    monkeypatch.setattr("slidelens.desktop.panels.more.PANELS", fresh)
    monkeypatch.setattr("slidelens.desktop.plugin_panels.PANELS", fresh)
    return tmp_path


def install(site: Path, name: str, code: str) -> None:
    module = f"panel_{name}"
    (site / f"{module}.py").write_text(code)
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[slidelens.panels]\n{name} = {module}:PANEL\n")


def test_doctor_names_what_is_broken_and_why(site):
    install(site, "corners", CORNERS)
    for name, (code, _) in BROKEN.items():
        install(site, name, code)
    # In a process of its own: trying all plugins imports PyTorch's compiler, which may crash in one
    # that has drawn with Mesa's software OpenGL.
    code = f"""
import json, sys
from slidelens.engine.plugins import try_plugins
panels = [one for one in try_plugins() if one.group == {PANELS.group!r}]
json.dump({{one.name: (one.tried, one.fault) for one in panels}}, sys.stdout)"""
    paths = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["corners"] == ["loads, and its widget", ""]
    for name, (_, reason) in BROKEN.items():
        assert reason in found[name][1]


@pytest.mark.gui
def test_a_panel_works_and_a_broken_one_harms_nothing(bench, site, qtbot):
    install(site, "corners", CORNERS)
    install(site, "raises", BROKEN["raises"][0])
    for name, widget in WORSE.items():
        code = PANEL.format(version=1, name=name, widget=widget)
        install(site, name, code)
    (site / "module_of_angry.py").write_text(
        "class Angry:\n    def __init__(self, bench):\n        raise ValueError('when made')\n"
    )
    (site / "module_of_thing.py").write_text(
        "class Thing:\n    def __init__(self, bench):\n        pass\n"
    )
    panel = bench.open_panel("more")
    assert sorted(panel.buttons) == ["angry", "corners", "thing"]
    press(qtbot, panel.buttons["angry"])
    assert "ValueError: when made" in panel.notice.text
    press(qtbot, panel.buttons["thing"])
    assert "expected a QWidget" in panel.notice.text
    with pytest.raises(PluginError, match="at import"):
        bench.open_plugin("raises")
    press(qtbot, panel.buttons["corners"])
    corners = bench.open_plugin("corners")
    close_panel(qtbot, corners)
    assert corners is bench.open_plugin("corners")
    assert corners.isVisible()
    assert corners.text.text() == "No slide is open."
    add_layer(bench.viewer, slide_layer(make_slide(0.5)))
    qtbot.waitUntil(lambda: corners.text.text() == "square", timeout=5000)
    corners.fly()
    qtbot.waitUntil(lambda: not bench.flight.flying, timeout=10_000)
    assert camera(bench.viewer).center[-1] == pytest.approx(1000 * 0.5 / 16, abs=1)
