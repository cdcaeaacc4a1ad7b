"""Files and folders that are dropped on the window: each goes to where it belongs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QEvent, QObject

from slidelens.desktop.state.dropped import Kind, kind_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slidelens.desktop.workbench import Workbench

__all__ = ["DropFilter", "paths_of", "take"]


class DropFilter(QObject):
    """Takes what falls on napari's canvas and is no plain layer; the rest is napari's."""

    def __init__(self, bench: Workbench, canvas: QObject) -> None:
        super().__init__(bench)
        self._bench = bench
        canvas.installEventFilter(self)

    def eventFilter(  # noqa: N802  # reason: Qt's name
        self, _canvas: QObject | None, event: QEvent | None
    ) -> bool:
        """Take a drop of ours."""
        if event is None or event.type() != QEvent.Type.Drop or self._bench.closed:
            return False
        paths = paths_of(event)
        if not paths or not all(path.is_dir() or path.suffix == ".csv" for path in paths):
            return False  # slides and annotations have readers
        take(self._bench, paths)
        return True


def paths_of(event: Any) -> list[Path]:
    """Return the local files and folders of a drag or drop."""
    data = event.mimeData()
    urls = data.urls() if data.hasUrls() else []
    return [Path(url.toLocalFile()) for url in urls if url.isLocalFile()]


def take(bench: Workbench, paths: Sequence[Path]) -> None:
    """Find out what was dropped, beside the window's thread, and open it."""

    def look() -> list[tuple[Path, Kind]]:
        return [(path, kind_of(path)) for path in paths]

    bench.background.run(look, partial(_open, bench), owner=bench)


def _open(bench: Workbench, found: list[tuple[Path, Kind]]) -> None:
    slides = [path for path, kind in found if kind == "slide"]
    for path in reversed(slides[1:]):
        bench.memory.opened(path)
    if slides:
        bench.open_slide(slides[0])
        if len(slides) > 1:
            rest = f"The other {len(slides) - 1} slides are among the recent ones."
            bench.told.emit(f"{slides[0].name} is opened. {rest}", False)
    for path, kind in found:
        if kind != "slide":
            _open_one(bench, path, kind)


def _open_one(bench: Workbench, path: Path, kind: Kind) -> None:
    if kind == "result":
        bench.show_result(path.parent if path.name == "result.json" else path)
    elif kind == "results":
        bench.use_results(path)
        bench.open_panel("run")
        bench.told.emit(f"Results are read from and written to {path} now.", False)
    elif kind == "model":
        bench.memory.add_model(path)
        bench.load_models()
        bench.open_panel("run")
    elif kind == "labels":
        bench.open_panel("train").data.set_labels(path)
    elif kind == "evaluation":
        bench.open_panel("review").open(path)
    elif kind == "annotations":
        bench.viewer.open(str(path), plugin="slidelens")
    else:
        bench.told.emit(_refused(path), True)


def _refused(path: Path) -> str:
    return (
        f"{path}: nothing to open. Drop a slide, a result or a folder of them, a model's folder, "
        "an evaluation, labels (CSV with slide_id and label) or annotations (GeoJSON, XML)."
    )
