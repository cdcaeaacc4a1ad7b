"""Open files and folders that are dropped on the window."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from weakref import ref

from napari.plugins.utils import get_preferred_reader
from npe2 import PluginManager
from qtpy.QtCore import QEvent, QObject, QTimer

from slidelens.desktop.gently import put_gently
from slidelens.desktop.reader import (
    get_annotation_reader,
    get_result_reader,
    get_slide_reader,
)
from slidelens.desktop.reading import read_outlines
from slidelens.desktop.shown import layers_on, share_unit, slide_for
from slidelens.desktop.state.dropped import Kind, kind_of
from slidelens.desktop.window import dress
from slidelens.engine.annotations import slides_named
from slidelens.errors import listed
from slidelens.slide.open import is_slide

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from slidelens.desktop.layer_data import LayerData
    from slidelens.desktop.workbench import Workbench

__all__ = ["DropFilter", "ask_no_reader", "paths_of", "take"]

_OURS = "slidelens"
_NAMED = 5  # files that are refused, in one sentence


class DropFilter(QObject):
    """Takes what is dropped on napari's canvas and is no plain layer; the rest is napari's."""

    def __init__(self, bench: Workbench, canvas: QObject) -> None:
        super().__init__(bench)
        self._bench = bench
        canvas.installEventFilter(self)

    def eventFilter(  # noqa: N802  # reason: Qt's name
        self, _canvas: QObject | None, event: QEvent | None
    ) -> bool:
        """Take a drop that is ours."""
        if event is None or event.type() != QEvent.Type.Drop or self._bench.closed:
            return False
        paths = paths_of(event)
        if not paths or not all(map(_may_be_ours, paths)):
            return False  # slides and annotations have readers
        take(self._bench, paths, self._leave)
        return True

    def _leave(self, path: Path) -> None:
        """Have napari open a folder that we do not know, as if it had been dropped on napari."""
        canvas: Any = self._bench.viewer.window._qt_viewer
        QTimer.singleShot(0, lambda: canvas._qt_open([str(path)], stack=False))


def _may_be_ours(path: Path) -> bool:
    """Return whether it is a table of labels, or a folder that is not a slide."""
    if path.is_dir():
        return not is_slide(path)
    return path.suffix.lower() == ".csv" and kind_of(path) == "labels"


def ask_no_reader(bench: Workbench, canvas: Any) -> None:
    """Open our files, dropped or chosen in the menu, without asking which reader to use.

    napari's own reader would take slides too, and read them whole. napari still asks if a third
    reader could open them, or if the user wants to choose; a reader chosen for good is used.
    Annotations are read off the window's thread, which napari's readers are not.
    """
    window, workbench = ref(canvas), ref(bench)

    def opened(
        filenames: list[str],
        stack: Any = False,
        choose_plugin: bool = False,
        plugin: str | None = None,
        **more: Any,
    ) -> None:
        drawn = list[str]()
        alone = plugin is None and not stack and not choose_plugin
        alive, at_hand = cast("Any", window()), workbench()
        if alone and all(map(_only_ours, filenames)):
            plugin = _OURS
            drawn = [name for name in filenames if get_annotation_reader(name)]
            filenames = [name for name in filenames if name not in drawn]
        more |= {"stack": stack, "choose_plugin": choose_plugin, "plugin": plugin}
        if filenames:
            type(alive)._qt_open(alive, filenames, **more)
        if drawn and at_hand is not None:  # napari handles events while it opens their slides
            take(at_hand, list(map(Path, drawn)))

    canvas._qt_open = opened


def _only_ours(path: str) -> bool:
    """Return whether we read a path and, besides us, only napari itself could."""
    found = PluginManager.instance().iter_compatible_readers([path])
    if {reader.plugin_name for reader in found} - {_OURS, "napari"}:
        return False
    readers = (get_slide_reader, get_result_reader, get_annotation_reader)
    return get_preferred_reader(path) is None and any(reader(path) for reader in readers)


def paths_of(event: Any) -> list[Path]:
    """Return the local files and folders of a drag or drop."""
    data = event.mimeData()
    urls = data.urls() if data.hasUrls() else []
    return [Path(url.toLocalFile()) for url in urls if url.isLocalFile()]


def take(
    bench: Workbench, paths: Sequence[Path], leave: Callable[[Path], object] | None = None
) -> None:
    """Find out what was dropped, off the window's thread, and open it.

    ``leave`` takes folders of unknown content; by default they are refused.
    """

    def look() -> list[tuple[Path, Kind]]:
        return [(path, kind_of(path)) for path in paths]

    bench.background.run(look, partial(_open, bench, leave), owner=bench)


def _open(
    bench: Workbench, leave: Callable[[Path], object] | None, found: list[tuple[Path, Kind]]
) -> None:
    slides = [path for path, kind in found if kind == "slide"]
    for path in reversed(slides[1:]):
        bench.memory.opened(path)
    said, refused = list[str](), []

    def late(text: str, bad: bool = True) -> None:
        """Repeat earlier messages with the new one: a panel shows only the last."""
        said.append(text)
        bench.told.emit("\n".join(said), bad)

    drawn = [path for path, kind in found if kind == "annotations"]
    draw = partial(_draw_all, bench, drawn, late)
    if slides:  # which the annotations may be of
        bench.open_slide(slides[0], then=draw, failed=draw)
    else:
        draw()
    if len(slides) > 1:
        rest = f"The other {len(slides) - 1} slides are under Recent."
        said.append(f"{slides[0].name} was opened. {rest}")
    for path, kind in found:
        if kind == "folder" and leave is not None:
            leave(path)
        elif kind in ("folder", "other"):
            refused.append(path)
        elif kind not in ("slide", "annotations") and (text := _open_one(bench, path, kind, late)):
            said.append(text)
    said += [_refused(refused)] if refused else []
    if said:
        bench.told.emit("\n".join(said), bool(refused))


def _open_one(bench: Workbench, path: Path, kind: Kind, late: Callable[[str], object]) -> str:
    """Open what is not a slide; return the message about it, or send it ``late``."""
    if kind == "result":
        bench.show_result(path.parent if path.name == "result.json" else path, failed=late)
    elif kind == "results":
        bench.use_results(path)
        bench.open_panel("run")
        return f"Results are now read from and written to {bench.results}."
    elif kind == "model":
        bench.memory.add_model(path)
        bench.load_models()
        bench.open_panel("run")
    elif kind == "labels":
        bench.open_panel("train").data.set_labels(path)
    else:
        bench.open_panel("review").open(path)
    return ""


def _draw_all(
    bench: Workbench, paths: Sequence[Path], say: Callable[[str, bool], object], fault: str = ""
) -> None:
    """Draw annotations; ``fault`` is why the slide that was dropped with them is not shown."""
    if fault:
        say(fault, True)
    for path in paths:
        _draw(bench, path, say)


def _draw(bench: Workbench, path: Path, say: Callable[[str, bool], object]) -> None:
    """Read annotations off the window's thread, and draw them on their slide."""
    names = slides_named(path)
    slide = slide_for(bench.viewer, names)

    def take(found: tuple[list[LayerData], list[str]]) -> None:
        now = slide_for(bench.viewer, names)
        if now is not None and (slide is None or (slide.id not in names and now.id in names)):
            _draw(bench, path, say)  # its slide was being opened
            return
        layers, said = found
        if said:
            say("\n".join(said), False)
        before = set(bench.viewer.layers)
        put_gently(bench.viewer, layers, [], lambda: not bench.closed, partial(drawn, before))

    def drawn(before: set[Any]) -> None:
        viewer, now = bench.viewer, bench.slide
        dress(viewer)
        if slide is None or (slide.layer in viewer.layers and slide.layer.visible):
            return
        made = [one for one in layers_on(viewer, slide, "annotations") if one not in before]
        for layer in made:
            layer.visible = False
        bench.see_later(made)
        if now is not None:
            share_unit(viewer, now, now.world)
        say(f"{path.name} is drawn on {slide.id}, and hidden while another slide is shown.", False)

    def failed(text: str) -> None:
        say(text.replace(f"{path.parent}{os.sep}", "", 1), True)  # napari shows a few words

    bench.background.run(lambda: read_outlines(path, slide), take, owner=bench, failed=failed)


def _refused(paths: Sequence[Path]) -> str:
    named = listed([str(path) for path in paths], _NAMED)
    return (
        f"{named}: nothing to open. Drop a slide, a result or a folder of them, a model's "
        "folder, an evaluation, labels (CSV with slide_id and label) or annotations (GeoJSON, XML)."
    )
