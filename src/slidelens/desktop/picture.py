"""The content of one window: which slide it shows, and which results on it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, ref

from qtpy.QtCore import QObject, QTimer

from slidelens.desktop.arranging import clear, hide_others, lay_below, put_slide, show_again
from slidelens.desktop.background import Background
from slidelens.desktop.belonging import learn_content, same_file
from slidelens.desktop.flight import CameraFlight
from slidelens.desktop.gently import put_gently
from slidelens.desktop.qt import Signal, alive
from slidelens.desktop.reading import Parcel, read_result
from slidelens.desktop.shown import (
    DRAWN,
    ShownSlide,
    current_slide,
    layers_on,
    select_map,
    shown_slides,
)
from slidelens.desktop.state.viewport import fit
from slidelens.desktop.window import canvas_size, dress
from slidelens.desktop.world import described

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    import napari

    from slidelens.desktop.layer_data import LayerData
    from slidelens.desktop.world import World
    from slidelens.geometry import Box
    from slidelens.maps.result import Result
    from slidelens.slide.base import Slide
    from slidelens.slide.open import GivenMpp

__all__ = ["Picture"]


class Picture(QObject):
    """Slides and results in the viewer of one window.

    The last request wins, in whatever order files are read.

    Signals
    -------
    slide_changed
        Another slide is current (:attr:`slide`), or none.
    result_shown
        A result's layers are in the viewer; it can be from any folder.
    told
        One sentence for the user, and whether it is an error.
    """

    slide_changed = Signal()
    result_shown = Signal()
    told = Signal(str, bool)

    def __init__(self, viewer: napari.Viewer) -> None:
        super().__init__()
        self._viewer = ref(viewer)
        self.background = Background(self)
        self.background.failed.connect(lambda text: self.told.emit(text, True))
        self.flight = CameraFlight(lambda: self.viewer, self)
        self.beside: Any = None
        """The first of several views side by side, if they are shown."""
        self.put_aside: list[Any] = []
        """Layers that were hidden all at once."""
        self._away: WeakSet[Any] = WeakSet()  # hidden with their slide, to be shown with it again
        self._slide: ShownSlide | None = None
        self._adding: dict[str, object] = {}  # model to the request whose layers are coming
        # Requests are counted, and this one brought the current slide.
        self._askings = self._brought_by = 0
        self._closed = False
        # Several layers change at once; the panels need only hear of it once.
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.timeout.connect(self._look)
        for event in (viewer.layers.events.inserted, viewer.layers.events.removed):
            event.connect(self._changed)
        viewer.layers.events.inserted.connect(self._come)
        viewer.layers.selection.events.active.connect(self._changed)
        for slide in shown_slides(viewer):
            self._learn(slide.opened)

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
        """Height and width, in screen px, of the view that is looked at."""
        return canvas_size(self.beside or self.viewer)

    @property
    def closed(self) -> bool:
        """Whether the window is gone."""
        return self._closed or self._viewer() is None

    @property
    def slide(self) -> ShownSlide | None:
        """The current slide."""
        return self._slide

    def open_slide(
        self,
        path: Path,
        *,
        mpp: GivenMpp = None,
        then: Callable[[], object] | None = None,
        failed: Callable[[str], object] | None = None,
    ) -> None:
        """Show a slide in place of the current one; annotations stay, hidden.

        Parameters
        ----------
        path, mpp
            As :func:`~slidelens.slide.open.open_slide` takes them.
        then
            Called when it is shown.
        failed
            Takes one sentence if it cannot be opened; by default all panels get it.
        """
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
            failed=failed,
            unused=lambda slide: slide.close(),
        )

    def show_nothing(self, title: str) -> None:
        """Take the slide and its maps away; ``title`` is the window's then."""
        self._replace(None, self._ask(), title)

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

        A slide of its name but other content counts only if its own cannot be opened; that is said.
        Layers of the same model on the same slide are replaced. If the slide's file is gone, the
        maps are shown alone. If another slide has been requested meanwhile, that one stays, and
        nothing is shown.

        Parameters
        ----------
        slide_file
            The slide's path now, if it has moved since the run.
        wanted
            Asked when everything is read; if it says no, nothing is shown.
        then
            Takes the result when it is shown.
        failed
            Takes one sentence if it cannot be shown; by default all panels get it.
        owner
            The panel that asks: if it is gone, nothing is shown.
        """
        asking = self._ask()

        def read() -> None:
            slide = self.slide
            self.background.run(
                lambda: read_result(folder, slide, slide_file, visible),
                partial(show, slide),
                owner=owner or self,
                failed=failed,
                unused=unused,
            )

        def show(slide: ShownSlide | None, parcel: Parcel) -> None:
            if wanted() and self._is_other_now(parcel, slide):
                unused(parcel)
                read()
            elif wanted() and self._bring_slide_of(parcel, slide, asking):
                if parcel.said:
                    self.told.emit(parcel.said, True)
                self._show_layers(parcel.result, parcel.layers, visible, then)
            else:
                unused(parcel)

        def unused(parcel: Parcel) -> None:
            if parcel.opened is not None:
                parcel.opened.close()

        read()

    def see_later(self, layers: Iterable[Any]) -> None:
        """Show hidden layers when their slide is shown."""
        for layer in layers:
            self._away.add(layer)

    def see_all(self) -> None:
        """Fit everything into view, once the window has its final size."""
        QTimer.singleShot(0, lambda: None if self.closed else self.viewer.reset_view())

    def fly_to(self, box: Box, world: World) -> None:
        """Move the camera to a box of level-0 px in ``world``."""
        self.flight.fly(fit(box, self.canvas, world))

    def close(self) -> None:
        """Stop reading and moving."""
        self._closed = True
        self.flight.stop()
        self.background.close()

    def _ask(self) -> int:
        """Count another request that may change the slide."""
        self._askings += 1
        return self._askings

    def _is_other_now(self, parcel: Parcel, asked_on: ShownSlide | None) -> bool:
        """Whether another slide of a result's name has come since its layers were made."""
        now, opened = self.slide, parcel.opened
        if now is None or now.id != parcel.result.slide.id:
            return False
        if asked_on is not None and now.layer is asked_on.layer:
            return False
        return opened is None or not same_file(now.path, opened.path)

    def _bring_slide_of(self, parcel: Parcel, asked_on: ShownSlide | None, asking: int) -> bool:
        """Have a result's slide in the window; return whether it is there, or its place is free."""
        now, opened, name = self.slide, parcel.opened, parcel.result.slide.id
        same = now is not None and asked_on is not None and now.layer is asked_on.layer
        if opened is not None and (now is None or same or not same_file(now.path, opened.path)):
            return self._replace(opened, asking)
        if opened is not None:  # another request brought it meanwhile
            opened.close()
        if now is None or now.id == name:
            return True
        return self._replace(None, asking, name)

    def _show_layers(
        self,
        result: Result,
        layers: list[LayerData],
        visible: bool,
        then: Callable[[Result], object] | None,
    ) -> None:
        """Show the layers of a result on the slide that is shown."""
        viewer = self.viewer
        slide = result.slide if self.slide is None else self.slide
        old = list(layers_on(viewer, slide, model=result.model.name))
        for layer in old:
            layer.visible = False
        if visible:
            for layer in layers_on(viewer, slide, *DRAWN):
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

        def wanted() -> bool:
            return alive(self) and not self.closed and self._adding.get(model) is token

        put_gently(viewer, layers, old, wanted, added)

    def _slides(self) -> list[ShownSlide]:
        return shown_slides(self.viewer)

    def _bring(self, path: Path) -> None:
        """Show a slide that is already in the viewer, as it was left; hide the others."""
        wanted = next(s for s in self._slides() if _is_at(s, path))
        show_again(self.viewer, wanted, self._away)
        self._look()  # before others are hidden: Compare brings back what it had covered of them
        hide_others(self.viewer, wanted, self._away)

    def _replace(self, slide: Slide | None, asking: int, title: str = "") -> bool:
        """Show a slide, or none, in place of the current one, unless that was requested later.

        Returns whether it is shown.
        """
        if asking < self._brought_by:
            return False
        self.flight.stop()
        self._adding.clear()
        clear(self.viewer, title if slide is None else slide.id)
        if slide is not None:
            put_slide(self.viewer, slide)
        self._look()
        self._brought_by = asking
        return True

    def _changed(self) -> None:
        if not self._closed:
            self._settle.start()

    def _come(self, event: Any) -> None:
        """Put a slide below its maps, which were shown without it; napari adds it on top."""
        facts = described(event.value.metadata)
        if facts.get("layer") == "slide":
            self._learn(facts.get("opened"))
            QTimer.singleShot(0, partial(self._lay_below, ref(event.value)))

    def _lay_below(self, layer: Callable[[], Any]) -> None:
        found = [] if self.closed else [s for s in self._slides() if s.layer is layer()]
        if found:
            lay_below(self.viewer, found[0])

    def _learn(self, slide: Slide | None) -> None:
        """Note what is in a slide's file, before another takes its place on the disk."""
        if slide is not None:
            self.background.run(partial(learn_content, slide), lambda _: None, owner=self)

    def _look(self) -> None:
        viewer = self._viewer()
        if viewer is None or self._closed:
            return
        now = current_slide(viewer)
        if now != self._slide:
            self._slide, self._brought_by = now, self._ask()
            self.slide_changed.emit()


def _is_at(slide: ShownSlide, path: Path) -> bool:
    return slide.path is not None and slide.path.absolute() == path.absolute()
