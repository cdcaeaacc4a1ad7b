"""Every panel holds what a plugin's panel must hold, and one that does not is found out."""

from __future__ import annotations

import pytest
from npe2 import PluginManifest
from qtpy.QtWidgets import QLabel, QPushButton, QVBoxLayout, QWidget

import slidelens
from slidelens.desktop.docks import PANELS
from slidelens.errors import PluginError
from slidelens.panels import PanelPlugin
from slidelens.testing.conformance import PanelConformance

pytestmark = pytest.mark.gui


def built_in() -> dict[str, PanelPlugin]:
    """The panels of napari's manifest, as a plugin would describe them."""
    manifest = PluginManifest.from_file(f"{slidelens.__path__[0]}/napari.yaml")
    commands = {command.id: command for command in manifest.contributions.commands}
    found = {}
    for widget in manifest.contributions.widgets:
        key = next(key for key, title in PANELS.items() if title == widget.display_name)
        command = commands[widget.command]
        found[key] = PanelPlugin(key, widget.display_name, command.title, command.python_name)
    assert set(found) == set(PANELS)
    return found


class BuiltIn(PanelConformance):
    """napari makes these itself, of its viewer; here they share the worker that is warm."""

    @pytest.fixture
    def bench(self, bench):
        return bench

    def make(self, bench):
        return self.panel.load()(bench.viewer)


for _key, _panel in built_in().items():
    _name = f"Test{_key.title()}"
    globals()[_name] = type(_name, (BuiltIn,), {"panel": _panel})


class Panel(QWidget):
    def __init__(self, bench):
        super().__init__()
        QVBoxLayout(self)
        self.bench = bench


class Raising(Panel):
    def __init__(self, bench):
        super().__init__(bench)
        bench.slide_changed.connect(lambda: self.bench.slide.path.stem)  # there may be none


class Deaf(Panel):
    def __init__(self, bench):
        super().__init__(bench)
        self.text = QLabel()
        self.layout().addWidget(self.text)
        # The lambda outlives the label, which Qt deletes with the panel.
        bench.slide_changed.connect(lambda: self.text.setText("changed"))


class Nameless(Panel):
    def __init__(self, bench):
        super().__init__(bench)
        self.layout().addWidget(QPushButton())


class Wide(Panel):
    def __init__(self, bench):
        super().__init__(bench)
        self.setMinimumWidth(900)
        self.layout().addWidget(QLabel("x" * 200))


class Loud(Panel):
    def __init__(self, bench):
        super().__init__(bench)
        bench.slide_changed.connect(self.say)

    def say(self):
        self.bench.told.emit("no reason", True)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Raising, "raised AttributeError"),
        (Deaf, "raised RuntimeError"),
        (Nameless, "a QAbstractButton has no name"),
        (Wide, "px wide at least"),
        (Loud, "told an error"),
    ],
)
def test_a_panel_that_breaks_its_promise_is_found_out(bench, qtbot, tmp_path, kind, message):
    suite = PanelConformance()
    suite.panel = PanelPlugin("bad", "Bad", "Bad.", f"{__name__}:{kind.__name__}")
    with pytest.raises(PluginError, match=message):
        suite.test_works_in_a_window(bench, qtbot, tmp_path)
