"""Set up a viewer for slides: scale bar, magnification, readable messages."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, ref

from slidelens.desktop.outlines import thin_outlines
from slidelens.desktop.world import described

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import napari
    from napari.components import ViewerModel

    from slidelens.desktop.state.viewport import Look

__all__ = [
    "camera",
    "canvas_size",
    "dress",
    "look_at",
    "magnification",
    "notify",
    "open_viewer",
    "overlays",
    "photograph",
    "put_in_box",
    "slide_layers",
]

_log = logging.getLogger(__name__)
_dressed: WeakSet[Any] = WeakSet()


def magnification(um_per_pixel: float) -> str:
    """Return a resolution as pathologists write it: ``20x · 0.5 µm/px``.

    The magnification is that of the objective that gives the same resolution, at 10 µm/px for 1x.
    """
    times, um = (f"{float(f'{v:.2g}'):g}" for v in (10 / um_per_pixel, um_per_pixel))
    return f"{times}x · {um} µm/px"


def dress(viewer: ViewerModel) -> None:
    """Show scale bar and magnification, keep outlines thin, tie shapes to their slide.

    Harmless when called again.
    """
    bar, text = overlays(viewer)
    text.position = "bottom_left"
    put_in_box(text, True)
    _show_magnification(viewer)
    if viewer in _dressed:
        return  # a user who has hidden the scale bar does not want it back with every slide
    _dressed.add(viewer)
    bar.visible = True
    put_in_box(bar, True)
    weak = ref(viewer)

    def inserted(event: Any) -> None:
        from slidelens.desktop.tied import tie

        alive = weak()
        if alive is not None:
            tie(alive, event.value)
            _say_drawn(event.value)

    def on_change() -> None:
        alive = weak()
        if alive is not None:
            _show_magnification(alive)
            thin_outlines(alive.layers, camera(alive).zoom)

    camera(viewer).events.zoom.connect(on_change)
    viewer.layers.events.inserted.connect(inserted)
    viewer.layers.events.inserted.connect(on_change)
    viewer.layers.events.removed.connect(on_change)


def _say_drawn(layer: Any) -> None:
    """Say that outlines are shown as a picture, if they are."""
    count = described(layer.metadata).get("outlines")
    if count and layer.visible:
        notify(
            f"{layer.name}: {count:,} outlines are shown as a picture, since napari is slow with "
            "so many; they cannot be edited here, and small ones may not be seen."
        )


def camera(viewer: ViewerModel) -> Any:
    """Return a viewer's camera, wherever this napari has it."""
    return viewer.scene.camera if hasattr(viewer, "scene") else viewer.camera  # napari < 0.9


def canvas_size(viewer: ViewerModel) -> tuple[float, float]:
    """Return height and width of a viewer's canvas in screen pixels."""
    size = viewer.canvas.size if hasattr(viewer, "scene") else viewer._canvas_size  # napari < 0.9
    return float(size[0]), float(size[1])


def look_at(viewer: ViewerModel, look: Look) -> None:
    """Move a viewer's camera to a place."""
    own = camera(viewer)
    own.center = (*own.center[:-2], look.y, look.x)
    own.zoom = look.zoom


def photograph(viewer: napari.Viewer, path: Path, size: tuple[int, int] = (1280, 800)) -> None:
    """Save a picture of a viewer's whole window, with all layers in view.

    Parameters
    ----------
    viewer
        Its window must be shown: hidden ones have no pixels.
    path
        PNG file to write.
    size
        Of the window, in px.
    """
    from qtpy.QtWidgets import QApplication

    viewer.window.resize(*size)
    for _ in range(2):  # the canvas takes its new size, then draws in it
        QApplication.processEvents()
        viewer.reset_view()
    QApplication.processEvents()
    viewer.screenshot(str(path), canvas_only=False, flash=False)


def slide_layers(viewer: ViewerModel) -> Iterator[Any]:
    """Yield the layers of a viewer that show a slide, topmost first."""
    for layer in reversed(viewer.layers):
        if described(layer.metadata).get("layer") == "slide":
            yield layer


def open_viewer() -> ViewerModel | None:
    """Return the viewer whose window is in front, if there is one."""
    from napari import current_viewer

    return current_viewer()


def notify(message: str, *, error: bool = False) -> None:
    """Show a message: in napari's window if there is one, else in the log."""
    if open_viewer() is None:
        (_log.error if error else _log.warning)(message)
        return
    from napari.utils.notifications import show_error, show_warning

    (show_error if error else show_warning)(message)


def _show_magnification(viewer: ViewerModel) -> None:
    _, text = overlays(viewer)
    # Hidden outlines of another slide say nothing about the visible one.
    seen = [layer for layer in viewer.layers if layer.visible] or viewer.layers
    text.visible = any(described(layer.metadata).get("mpp") for layer in seen)
    # napari's zoom is screen pixels per world unit.
    text.text = magnification(1 / camera(viewer).zoom) if text.visible else ""


def put_in_box(overlay: Any, on: bool) -> None:
    """Draw an overlay on a dark box, legible on anything; text has none before napari 0.7."""
    if hasattr(overlay, "box"):
        overlay.box = on


def overlays(viewer: ViewerModel) -> tuple[Any, Any]:
    """Return a viewer's scale bar and text, wherever this napari has them."""
    if hasattr(viewer, "scene"):
        overlays = viewer.canvas.overlays
        return overlays.scale_bar, overlays.text
    return viewer.scale_bar, viewer.text_overlay  # napari < 0.9
