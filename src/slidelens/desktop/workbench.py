"""What the panels of one window share: slides, workers, results, what was remembered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary, ref

from qtpy.QtCore import QObject, Qt, QTimer
from qtpy.QtWidgets import QApplication, QTabWidget

from slidelens.desktop.background import Background
from slidelens.desktop.layers import check_same_slide, result_layers, slide_layer
from slidelens.desktop.preferences import Preferences, preferences
from slidelens.desktop.qt import Signal, alive
from slidelens.desktop.shown import (
    ShownSlide,
    add_layer,
    current_slide,
    layers_of,
    remove_layers,
    select_map,
    shown_slides,
)
from slidelens.desktop.state.cards import Card, Choice, FamilyCard, cards_of, families_of
from slidelens.desktop.state.library import Trash
from slidelens.desktop.state.memory import Memory
from slidelens.desktop.window import dress
from slidelens.desktop.worker.client import WorkerClient
from slidelens.errors import SlideError
from slidelens.maps.result import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import napari

    from slidelens.desktop.layer_data import LayerData
    from slidelens.desktop.worker.messages import Message
    from slidelens.slide.base import Slide
    from slidelens.slide.open import GivenMpp

__all__ = ["PANELS", "Workbench", "workbench_of"]

PANELS = {
    "run": "Run",
    "maps": "Maps",
    "compare": "Compare",
    "review": "Review",
    "train": "Train",
    "navigator": "Navigator",
    "slide": "Slide",
}
"""Key of each panel and the name that the manifest gives it."""

_ABOVE = ("navigator",)  # stays in sight; the others lie behind one another

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
    models_changed
        :attr:`cards`, :attr:`families` and :attr:`devices` are read (anew).
    told
        One sentence for the person, and whether it is an error.
    """

    slide_changed = Signal()
    results_changed = Signal()
    models_changed = Signal()
    told = Signal(str, bool)

    def __init__(self, viewer: napari.Viewer) -> None:
        super().__init__()
        self._viewer = ref(viewer)
        self.memory = Memory()
        self.trash = Trash()
        self.background = Background(self)
        self.background.failed.connect(lambda text: self.told.emit(text, True))
        self.runner = WorkerClient(self)
        self.trainer = WorkerClient(self, patience=60.0)
        self.cards: list[Card] = []
        self.families: list[FamilyCard] = []
        self.devices: list[Choice] = []
        self._slide: ShownSlide | None = None
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
        window.destroyed.connect(self.close)
        cast("QApplication", QApplication.instance()).aboutToQuit.connect(self.close)

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
        chosen = self.memory.text("results")
        return Path(chosen) if chosen else self.preferences.results

    @property
    def slide(self) -> ShownSlide | None:
        """The current slide."""
        return self._slide

    def load_models(self) -> None:
        """Have the worker list models, families and devices; :attr:`models_changed` follows."""
        folders = [*self.memory.models(), *self._own_models()]
        job = self.runner.submit("catalogue", {"folders": [str(f) for f in folders]})
        job.event.connect(self._listed)
        job.ended.connect(lambda _, error: self.told.emit(error, True) if error else None)

    def open_panel(self, name: str) -> Any:
        """Show a panel, in front of the others; return its widget."""
        # napari's own way: the panel is then the one of the Plugins menu.
        add = self.viewer.window.add_plugin_dock_widget
        dock, widget = add("slidelens", PANELS[name], tabify=name not in _ABOVE)
        dock.show()
        dock.raise_()
        return widget

    def open_slide(
        self,
        path: Path,
        *,
        mpp: GivenMpp = None,
        then: Callable[[], object] | None = None,
    ) -> None:
        """Show a slide in the place of the one that is shown; annotations stay, hidden."""
        if any(s.path is not None and s.path.absolute() == path.absolute() for s in self._slides()):
            self._bring(path)
            if then is not None:
                then()
            return

        def opened(slide: Slide) -> None:
            self._replace(slide)
            self.memory.opened(path)
            if then is not None:
                then()

        from slidelens.slide.open import open_slide

        self.background.run(lambda: open_slide(path, mpp=mpp), opened, owner=self)

    def show_result(
        self,
        folder: Path,
        *,
        visible: bool = True,
        then: Callable[[Result], object] | None = None,
    ) -> None:
        """Show a result on its slide, which is opened if it is not the current one.

        Layers of the same model on the same slide are replaced.
        """
        slide = self.slide

        def work() -> tuple[Result, Slide | None, list[LayerData]]:
            result = Result.load(folder)
            if slide is not None and slide.id == result.slide.id:
                check_same_slide(result, slide.id, slide.size)
                return result, None, result_layers(result, world=slide.world, visible=visible)
            opened, error = _slide_of(result)
            if error:
                self.background.failed.emit(f"The maps are shown without their slide. {error}")
            return result, opened, result_layers(result, opened, visible=visible)

        def show(parcel: tuple[Result, Slide | None, list[LayerData]]) -> None:
            result, opened, layers = parcel
            if opened is not None:
                self._replace(opened)
                self.memory.opened(opened.path)
            viewer = self.viewer
            of_slide = {"slide": result.slide.id}
            remove_layers(viewer, layers_of(viewer, model=result.model.name, **of_slide))
            if visible:
                for layer in layers_of(viewer, "map", "regions", **of_slide):
                    layer.visible = False
            self.add_gently(layers, lambda: None if then is None else then(result))

        self.background.run(work, show, owner=self)

    def add_gently(self, layers: Sequence[LayerData], then: Callable[[], object]) -> None:
        """Add layers one at a time, so that the window stays free between them."""
        if self._closed:
            return
        if not layers:
            dress(self.viewer)
            select_map(self.viewer)
            then()
            return
        add_layer(self.viewer, layers[0])
        QTimer.singleShot(0, lambda: self.add_gently(layers[1:], then) if alive(self) else None)

    def close(self) -> None:
        """End workers and threads; what was deleted is gone then."""
        if self._closed:
            return
        self._closed = True
        self.runner.close()
        self.trainer.close()
        self.background.close()
        self.trash.empty()

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
        """Show a slide that is in the viewer already."""
        for slide in self._slides():
            here = slide.path is not None and slide.path.absolute() == path.absolute()
            slide.layer.visible = here
            if here:
                self.viewer.layers.selection.active = slide.layer

    def _replace(self, slide: Slide) -> None:
        viewer = self.viewer
        kept = list(layers_of(viewer, "annotations"))
        for layer in kept:
            layer.visible = False
        remove_layers(viewer, (layer for layer in layers_of(viewer) if layer not in kept))
        layer = add_layer(viewer, slide_layer(slide))
        viewer.layers.move(viewer.layers.index(layer), 0)
        viewer.title = slide.id
        viewer.reset_view()
        dress(viewer)
        self._look()

    def _changed(self) -> None:
        if not self._closed:
            self._settle.start()

    def _look(self) -> None:
        viewer = self._viewer()
        if viewer is None or self._closed:
            return
        now = current_slide(viewer)
        if now != self._slide:
            self._slide = now
            self.slide_changed.emit()


def _slide_of(result: Result) -> tuple[Slide | None, str]:
    """Open the slide that a result names, or say why not."""
    from slidelens.slide.open import open_slide

    if result.slide.path is None:
        return None, f"{result.path} does not say where slide {result.slide.id!r} lies."
    try:
        return open_slide(result.slide.path, mpp=result.slide.resolution), ""
    except SlideError as error:
        return None, str(error)
