"""What the panels of one window share: slides, workers, results, what was remembered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary, WeakSet, ref

from qtpy.QtCore import QObject, Qt, QTimer
from qtpy.QtWidgets import QApplication, QTabWidget, QWidget

from slidelens.desktop.background import Background
from slidelens.desktop.docks import PANELS, arrange, bring_forward, dock_of, keep
from slidelens.desktop.drops import DropFilter
from slidelens.desktop.flight import CameraFlight
from slidelens.desktop.gently import put_gently
from slidelens.desktop.keys import bind_keys
from slidelens.desktop.layers import slide_layer
from slidelens.desktop.preferences import Preferences, preferences
from slidelens.desktop.qt import Signal, alive
from slidelens.desktop.reading import read_result
from slidelens.desktop.shown import (
    ShownSlide,
    add_layer,
    current_slide,
    layers_of,
    remove_layers,
    select_map,
    shown_slides,
)
from slidelens.desktop.spare import SpareMemory
from slidelens.desktop.state.cards import Card, Choice, FamilyCard, cards_of, families_of
from slidelens.desktop.state.library import Trash
from slidelens.desktop.state.memory import Memory
from slidelens.desktop.state.viewport import fit
from slidelens.desktop.window import canvas_size, dress
from slidelens.desktop.worker.client import WorkerClient
from slidelens.desktop.world import described
from slidelens.maps.palette import colormap

if TYPE_CHECKING:
    from collections.abc import Callable

    import napari

    from slidelens.desktop.layer_data import LayerData
    from slidelens.desktop.worker.messages import Message
    from slidelens.desktop.world import World
    from slidelens.geometry import Box
    from slidelens.maps.result import Result
    from slidelens.slide.base import Slide
    from slidelens.slide.open import GivenMpp

__all__ = ["PANELS", "Workbench", "workbench_of"]

_benches: WeakKeyDictionary[Any, Workbench] = WeakKeyDictionary()


def workbench_of(viewer: Any) -> Workbench:
    """Return the workbench of a window; made when first asked for."""
    plain = getattr(viewer, "__wrapped__", viewer)  # napari hands plugins a proxy
    bench = _benches.get(plain)
    if bench is None:
        bench = _benches[plain] = Workbench(plain)
    return bench


class Workbench(QObject):
    """The centre of one window.

    Signals
    -------
    slide_changed
        Another slide is current (:attr:`slide`), or none.
    results_changed
        A result was written, deleted or brought back.
    result_shown
        A result's layers are in the viewer; it may be of another folder than :attr:`results`.
    models_changed
        :attr:`cards`, :attr:`families` and :attr:`devices` are read (anew).
    told
        One sentence for the person, and whether it is an error.
    """

    slide_changed = Signal()
    results_changed = Signal()
    result_shown = Signal()
    models_changed = Signal()
    told = Signal(str, bool)

    def __init__(self, viewer: napari.Viewer) -> None:
        super().__init__()
        self._viewer = ref(viewer)
        self.memory = Memory()
        self.trash = Trash()
        self.background = Background(self)
        self.background.failed.connect(lambda text: self.told.emit(text, True))
        self.told.connect(self._notify)
        self.listener: QWidget | None = None
        """The panel that shows what is told; without one, napari does."""
        self._spare = SpareMemory(self.background, self)
        self.runner = WorkerClient(self)
        self.trainer = WorkerClient(self, patience=60.0)
        self.flight = CameraFlight(lambda: self.viewer, self)
        self.cards: list[Card] = []
        self.families: list[FamilyCard] = []
        self.devices: list[Choice] = []
        self.beside: Any = None
        """The first of several pictures side by side, where they are shown."""
        self.put_aside: list[Any] = []
        """Layers that were hidden all at once."""
        self._away: WeakSet[Any] = WeakSet()  # hidden with their slide, to be seen with it again
        self._docks: dict[str, Any] = {}
        self._results: Path | None = None
        self._slide: ShownSlide | None = None
        self._plugins: dict[str, QWidget] = {}
        self._adding: dict[str, object] = {}  # model to the showing whose layers come
        # What one asks for last is what one sees, in whatever order files are read: askings are
        # counted, and this is the one that brought the current slide.
        self._askings = self._brought_by = 0
        self._closed = False
        # Several layers change at once; the panels need hear of it once.
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.timeout.connect(self._look)
        for event in (viewer.layers.events.inserted, viewer.layers.events.removed):
            event.connect(self._changed)
        viewer.layers.selection.events.active.connect(self._changed)
        self._look()
        window = viewer.window._qt_window
        window.setTabPosition(Qt.DockWidgetArea.RightDockWidgetArea, QTabWidget.TabPosition.North)
        self._drops = DropFilter(self, viewer.window._qt_viewer)
        window.destroyed.connect(self.close)
        bind_keys(self)
        cast("QApplication", QApplication.instance()).aboutToQuit.connect(self.close)
        # matplotlib's import takes a second, which the first map should not wait for
        self.background.run(lambda: colormap("probability"), lambda _: None)

    @property
    def viewer(self) -> napari.Viewer:
        """The window's viewer.

        Raises
        ------
        RuntimeError
            The window is gone.
        """
        viewer = self._viewer()
        if viewer is None or self._closed:
            raise RuntimeError("the window is closed")
        return viewer

    @property
    def canvas(self) -> tuple[float, float]:
        """Height and width, in screen px, of the picture that one looks at."""
        return canvas_size(self.beside or self.viewer)

    @property
    def closed(self) -> bool:
        """Whether the window is gone."""
        return self._closed or self._viewer() is None

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
        return Path(chosen) if chosen else self.preferences.results

    def use_results(self, folder: Path, *, remember: bool = True) -> None:
        """Keep results in another folder: from now on, or in this window only."""
        self._results = None if remember else folder
        if remember:
            self.memory.set_text("results", str(folder))
        self.results_changed.emit()

    @property
    def slide(self) -> ShownSlide | None:
        """The current slide."""
        return self._slide

    def load_models(self) -> None:
        """Have the worker list models, families and devices; :attr:`models_changed` follows."""
        folders = [*self.memory.models(), *self._own_models()]
        job = self.runner.submit("catalogue", {"folders": [str(f) for f in folders]})
        job.said.connect(self._listed)
        job.ended.connect(lambda _, error: self.told.emit(error, True) if error else None)

    def open_panel(self, name: str) -> Any:
        """Show a panel, in front of the others; return its widget."""
        dock = dock_of(self.viewer, name)
        if self._docks.get(name) is not dock:
            self._docks[name] = dock
            arrange(self.viewer.window._qt_window, self._docks)
        dock.show()
        dock.raise_()
        return dock.widget()

    def _notify(self, text: str, bad: bool) -> None:
        """Let napari say what no panel shows."""
        listener = self.listener
        if self._closed or (listener is not None and alive(listener) and listener.isVisible()):
            return
        from napari.utils.notifications import show_info, show_warning

        (show_warning if bad else show_info)(text)

    def open_plugin(self, name: str) -> Any:
        """Show the panel of a plugin, in front of the others; return its widget.

        Raises
        ------
        PluginError
            It does not work.
        """
        from slidelens.desktop.panels.more import make_plugin_panel

        widget = self._plugins.get(name)
        if widget is None or not alive(widget):
            widget, title = make_plugin_panel(name, self)
            window = self.viewer.window
            keep(window.add_dock_widget(widget, name=title, area="right", tabify=True))
            self._plugins[name] = widget
        bring_forward(widget)
        return widget

    def open_slide(
        self,
        path: Path,
        *,
        mpp: GivenMpp = None,
        then: Callable[[], object] | None = None,
    ) -> None:
        """Show a slide in the place of the one that is shown; annotations stay, hidden."""
        if any(_is_at(s, path) for s in self._slides()):
            self._bring(path)
            if then is not None:
                then()
            return

        asking = self._ask()

        def opened(slide: Slide) -> None:
            if not self._replace(slide, asking):
                slide.close()
            elif then is not None:
                then()

        from slidelens.slide.open import open_slide

        self.background.run(
            lambda: open_slide(path, mpp=mpp),
            opened,
            owner=self,
            unused=lambda slide: slide.close(),
        )

    def show_result(
        self,
        folder: Path,
        *,
        visible: bool = True,
        slide_file: Path | None = None,
        wanted: Callable[[], bool] = lambda: True,
        then: Callable[[Result], object] | None = None,
        failed: Callable[[str], object] | None = None,
        owner: QObject | None = None,
    ) -> None:
        """Show a result on its slide, which is opened if it is not the current one.

        Layers of the same model on the same slide are replaced. Where the slide's file is gone,
        the maps are shown alone. Where another slide was asked for meanwhile, that one stays, and
        nothing is shown.

        Parameters
        ----------
        slide_file
            Where the slide is now, if it has moved since the run.
        wanted
            Asked when all is read; if it says no, nothing is shown.
        then
            Takes the result when it is shown.
        failed
            Takes one sentence where it cannot be; by default all panels hear it.
        owner
            The panel that asks: when it is gone nothing is shown.
        """
        slide, asking = self.slide, self._ask()

        def show(parcel: tuple[Result, Slide | None, list[LayerData], str]) -> None:
            result, opened, layers, error = parcel
            if wanted() and self._bring_slide_of(result, opened, asking):
                if error:
                    self.told.emit(f"The maps are shown without their slide. {error}", True)
                self._show_layers(result, layers, visible, then)
            else:
                unused(parcel)

        def unused(parcel: tuple[Result, Slide | None, list[LayerData], str]) -> None:
            if parcel[1] is not None:
                parcel[1].close()

        self.background.run(
            lambda: read_result(folder, slide, slide_file, visible),
            show,
            owner=owner or self,
            failed=failed,
            unused=unused,
        )

    def close(self) -> None:
        """End workers and threads; what was deleted is gone then."""
        if self._closed:
            return
        self._closed = True
        self.flight.stop()
        self._spare.stop()
        self.runner.close()
        self.trainer.close()
        self.background.close()
        self.trash.empty()

    def _ask(self) -> int:
        """Count one more asking for what may be another slide."""
        self._askings += 1
        return self._askings

    def _bring_slide_of(self, result: Result, opened: Slide | None, asking: int) -> bool:
        """Have the slide of a result in the window; whether it is there, or its place is free."""
        now = self.slide
        if opened is not None and (now is None or now.path != opened.path):
            return self._replace(opened, asking)
        if opened is not None:  # it was brought meanwhile
            opened.close()
        if now is None or now.id == result.slide.id:
            return True
        return self._replace(None, asking, result.slide.id)

    def _show_layers(
        self,
        result: Result,
        layers: list[LayerData],
        visible: bool,
        then: Callable[[Result], object] | None,
    ) -> None:
        """Show the layers of a result on the slide that is shown."""
        viewer = self.viewer
        of_slide = {"slide": result.slide.id}
        old = list(layers_of(viewer, model=result.model.name, **of_slide))
        for layer in old:
            layer.visible = False
        if visible:
            for layer in layers_of(viewer, "map", "regions", **of_slide):
                layer.visible = False

        def added() -> None:
            dress(viewer)
            select_map(viewer)
            if self.slide is None:
                viewer.reset_view()
            self.result_shown.emit()
            if then is not None:
                then(result)

        model, token = result.model.name, object()
        self._adding[model] = token
        put_gently(self, layers, old, lambda: self._adding.get(model) is token, added)

    def _own_models(self) -> list[Path]:
        """Return what was trained here, also in another session or by the command line."""
        home = self.preferences.models
        return sorted(f.parent for f in home.glob("*/model.json")) if home.is_dir() else []

    def _listed(self, message: Message) -> None:
        facts = message.facts
        self.cards = cards_of(facts["models"])
        self.families = families_of(facts["families"])
        self.devices = [Choice(d["name"], d["title"]) for d in facts["devices"]]
        self.models_changed.emit()

    def _slides(self) -> list[ShownSlide]:
        return shown_slides(self.viewer)

    def _bring(self, path: Path) -> None:
        """Show a slide that is in the viewer already, and what was seen of it; hide the others."""
        wanted = next(s for s in self._slides() if _is_at(s, path))
        for slide in self._slides():
            slide.layer.visible = slide.layer is wanted.layer
        for layer in layers_of(self.viewer, slide=wanted.id):
            if layer in self._away:
                layer.visible = True
                self._away.discard(layer)
        self.viewer.layers.selection.active = wanted.layer
        self._look()  # before others are hidden: Compare brings back what it had covered of them
        for layer in layers_of(self.viewer):
            if layer.visible and described(layer.metadata)["slide"] not in ("", wanted.id):
                layer.visible = False
                self._away.add(layer)

    def fly_to(self, box: Box, world: World) -> None:
        """Let the camera fly to a box of level-0 px that lies in ``world``."""
        self.flight.fly(fit(box, self.canvas, world))

    def _clear(self, title: str) -> None:
        """Take away the slide and all that lies on it; annotations stay, hidden."""
        viewer = self.viewer
        self.flight.stop()
        self._adding.clear()
        kept = list(layers_of(viewer, "annotations"))
        for layer in kept:
            layer.visible = False
        remove_layers(viewer, (layer for layer in layers_of(viewer) if layer not in kept))
        viewer.title = title

    def _replace(self, slide: Slide | None, asking: int, title: str = "") -> bool:
        """Show a slide, or none, in the place of the current one, unless that was asked for later.

        Returns whether it is shown.
        """
        if asking < self._brought_by:
            return False
        viewer = self.viewer
        self._clear(title if slide is None else slide.id)
        if slide is not None:
            layer = add_layer(viewer, slide_layer(slide))
            viewer.layers.move(viewer.layers.index(layer), 0)
            viewer.reset_view()
            dress(viewer)
        self._look()
        self._brought_by = asking
        return True

    def _changed(self) -> None:
        if not self._closed:
            self._settle.start()

    def _look(self) -> None:
        viewer = self._viewer()
        if viewer is None or self._closed:
            return
        now = current_slide(viewer)
        if now != self._slide:
            self._slide, self._brought_by = now, self._ask()
            if now is not None and now.path is not None and now.path.exists():
                self.memory.opened(now.path)
            self.slide_changed.emit()


def _is_at(slide: ShownSlide, path: Path) -> bool:
    return slide.path is not None and slide.path.absolute() == path.absolute()
