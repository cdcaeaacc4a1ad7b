"""What the panels of one window share: slide, workers, results, preferences."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication, QTabWidget, QWidget

from slidelens.desktop.docks import PANELS, arrange, bring_forward, dock_of, keep
from slidelens.desktop.drops import DropFilter, ask_no_reader
from slidelens.desktop.keys import bind_keys
from slidelens.desktop.picture import Picture
from slidelens.desktop.plugin_panels import make_plugin_panel
from slidelens.desktop.preferences import Preferences, preferences
from slidelens.desktop.qt import Signal, alive
from slidelens.desktop.spare import SpareMemory
from slidelens.desktop.state.cards import Card, Choice, FamilyCard, cards_of, families_of
from slidelens.desktop.state.library import Trash
from slidelens.desktop.state.memory import Memory
from slidelens.desktop.worker.client import WorkerClient
from slidelens.maps.palette import colormap
from slidelens.maps.result import results_root

if TYPE_CHECKING:
    import napari

    from slidelens.desktop.worker.messages import Message

__all__ = ["PANELS", "Workbench", "workbench_of"]

_benches: WeakKeyDictionary[Any, Workbench] = WeakKeyDictionary()


def workbench_of(viewer: Any) -> Workbench:
    """Return the workbench of a window; made on first request."""
    plain = getattr(viewer, "__wrapped__", viewer)  # napari hands plugins a proxy
    bench = _benches.get(plain)
    if bench is None:
        bench = _benches[plain] = Workbench(plain)
    return bench


class Workbench(Picture):
    """The hub of one window: its picture, and what its panels share.

    Signals
    -------
    results_changed
        A result was written, deleted or restored.
    models_changed
        :attr:`cards`, :attr:`families` and :attr:`devices` have been read (again).
    """

    results_changed = Signal()
    models_changed = Signal()

    def __init__(self, viewer: napari.Viewer) -> None:
        super().__init__(viewer)
        self.memory = Memory()
        self.trash = Trash()
        self.told.connect(self._notify)
        self.listener: QWidget | None = None
        """The panel that shows messages; without one, napari does."""
        self._spare = SpareMemory(self.background, self)
        self.runner = WorkerClient(self)
        self.trainer = WorkerClient(self, patience=60.0)
        self.cards: list[Card] = []
        self.families: list[FamilyCard] = []
        self.devices: list[Choice] = []
        self._docks: dict[str, Any] = {}
        self._results: Path | None = None
        self._roots: dict[Path, Path] = {}
        self._plugins: dict[str, QWidget] = {}
        self.slide_changed.connect(self._remember)
        self._look()
        window = viewer.window._qt_window
        window.setTabPosition(Qt.DockWidgetArea.RightDockWidgetArea, QTabWidget.TabPosition.North)
        self._drops = DropFilter(self, viewer.window._qt_viewer)
        ask_no_reader(self, viewer.window._qt_viewer)
        window.destroyed.connect(self.close)
        bind_keys(self)
        cast("QApplication", QApplication.instance()).aboutToQuit.connect(self.close)
        # importing matplotlib takes a second, which the first map should not wait for
        self.background.run(lambda: colormap("probability"), lambda _: None)

    @property
    def preferences(self) -> Preferences:
        """The plugin's settings as they are now."""
        return preferences()

    @property
    def results(self) -> Path:
        """Folder where results go."""
        if self._results is not None:
            return self._results
        chosen = self.memory.text("results")
        folder = Path(chosen) if chosen else self.preferences.results
        if folder not in self._roots:  # looked up once: it may be on a slow disk
            self._roots[folder] = results_root(folder)
        return self._roots[folder]

    def use_results(self, folder: Path, *, remember: bool = True) -> None:
        """Keep results in another folder, from now on or only in this window.

        If it is one model's folder, or one result, take the folder that contains it.
        """
        folder = results_root(folder)
        self._results = None if remember else folder
        if remember:
            self.memory.set_text("results", str(folder))
        self.results_changed.emit()

    def load_models(self) -> None:
        """Have the worker list models, families and devices; :attr:`models_changed` follows."""
        folders = [*self.memory.models(), *self._own_models()]
        job = self.runner.submit("catalogue", {"folders": [str(f) for f in folders]})
        job.said.connect(self._listed)
        warnings = job.warnings  # not the job: it would be kept by its own signal

        def ended(_status: str, error: str) -> None:
            if said := "\n".join(filter(None, [error, *warnings])):
                self.told.emit(said, bool(error))

        job.ended.connect(ended)

    def open_panel(self, name: str) -> Any:
        """Show a panel, in front of the others; return its widget."""
        dock = dock_of(self.viewer, name)
        if self._docks.get(name) is not dock:
            self._docks[name] = dock
            arrange(self.viewer.window._qt_window, self._docks)
        dock.show()
        dock.raise_()
        return dock.widget()

    def open_plugin(self, name: str) -> Any:
        """Show the panel of a plugin, in front of the others; return its widget.

        Raises
        ------
        PluginError
            It does not work.
        """
        widget = self._plugins.get(name)
        if widget is None or not alive(widget):
            widget, title = make_plugin_panel(name, self)
            window = self.viewer.window
            keep(window.add_dock_widget(widget, name=title, area="right", tabify=True))
            self._plugins[name] = widget
        bring_forward(widget)
        return widget

    def close(self) -> None:
        """End workers and threads; what was deleted is then gone."""
        if self._closed:
            return
        super().close()
        self._spare.stop()
        self.runner.close()
        self.trainer.close()
        self.trash.empty()

    def _remember(self) -> None:
        """Keep the current slide's file among the recent ones."""
        path = None if self.slide is None else self.slide.path
        if path is not None and path.exists():
            self.memory.opened(path)

    def _notify(self, text: str, bad: bool) -> None:
        """Show messages in napari if no panel shows them."""
        listener = self.listener
        if self._closed or (listener is not None and alive(listener) and listener.isVisible()):
            return
        from napari.utils.notifications import show_info, show_warning

        (show_warning if bad else show_info)(text)

    def _own_models(self) -> list[Path]:
        """Return the models trained here, also in another session or on the command line."""
        home = self.preferences.models
        return sorted(f.parent for f in home.glob("*/model.json")) if home.is_dir() else []

    def _listed(self, message: Message) -> None:
        if message.name != "catalogue":
            return
        facts = message.facts
        self.cards = cards_of(facts["models"])
        self.families = families_of(facts["families"])
        self.devices = [Choice(d["name"], d["title"]) for d in facts["devices"]]
        self.models_changed.emit()
