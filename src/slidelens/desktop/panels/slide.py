"""The Slide panel: the file's facts and associated images, recent slides."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt
from qtpy.QtGui import QPixmap
from qtpy.QtWidgets import (
    QApplication,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QListWidget,
    QListWidgetItem,
    QTreeWidgetItem,
    QWidget,
)

from slidelens.desktop.panels.drawing import to_image
from slidelens.desktop.panels.parts import Panel, boxed, button, caption, empty, heading, row, table
from slidelens.desktop.panels.start import SlideLine
from slidelens.desktop.state.about import About, about

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["SlidePanel"]

_PICTURE = 150  # px: height of label and macro


class SlidePanel(Panel):
    """Shows the facts of a slide, and goes back to earlier ones."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self._path: Path | None = None
        self.about: About | None = None
        self._build()
        self.bench.slide_changed.connect(self._slide_changed)
        self._slide_changed()

    def _build(self) -> None:
        self.slide = SlideLine(self.bench)
        self.facts = table(["", ""], "Facts about the slide", 210, wide=1)
        self.facts.setHeaderHidden(True)
        self.facts.setWordWrap(True)
        self.copy = button("Copy", "Copy these facts as text", self._copy)
        self.pictures = QWidget()
        self._buttons = QHBoxLayout(self.pictures)
        self._buttons.setContentsMargins(0, 0, 0, 0)
        self.picture = QLabel()
        self.picture.setAccessibleName("Picture in the file")
        self.picture.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.private = caption(
            "A label may show the patient's name, so it is shown only when you ask."
        )
        self.search = QLineEdit()
        self.search.setPlaceholderText("Search the properties")
        self.search.setAccessibleName("Search the properties")
        self.search.setClearButtonEnabled(True)
        self.search.textChanged.connect(self._filter)
        self.properties = table(["Property", "Value"], "Properties of the file", 180, wide=1)
        self.recent = QListWidget()
        self.recent.setAccessibleName("Recent slides")
        self.recent.setToolTip("Double-click a slide to open it")
        self.recent.setFixedHeight(130)
        self.recent.itemActivated.connect(self._open)
        self.forget = button("Forget", "Clear this list; the files stay", self._forget)
        self.no_recent = caption("Slides that you open are listed here.")
        self._of_slide = [
            boxed(row(heading("This slide"), self.copy, stretch=0)),
            self.facts,
            heading("Pictures in the file"),
            self.pictures,
            self.private,
            self.picture,
            heading("All properties"),
            self.search,
            self.properties,
        ]
        self.drop = caption(
            "Drop on any panel or the picture: slides, results, labels, annotations, models."
        )
        for widget in (self.slide, self.drop, *self._of_slide):
            self.body.addWidget(widget)
        self.body.addLayout(row(heading("Recent slides"), self.forget, stretch=0))
        for widget in (self.no_recent, self.recent):
            self.body.addWidget(widget)
        self.body.addStretch()

    def _slide_changed(self) -> None:
        self._fill_recent()
        slide = self.bench.slide
        path = None if slide is None else slide.path
        for widget in self._of_slide:
            widget.setVisible(False)
        self._path, self.about = path, None
        if slide is None or path is None or not path.exists():
            return
        mpp = slide.world.mpp if slide.world.unit != "pixel" else None
        self.bench.background.run(partial(about, path, mpp), partial(self._take, path), owner=self)

    def _take(self, path: Path, found: About) -> None:
        if path != self._path:
            return
        self.about = found
        for widget in self._of_slide:
            widget.setVisible(True)
        _fill(self.facts, found.facts)
        self.facts.setFixedHeight(8 + self.facts.sizeHintForRow(0) * len(found.facts))
        _fill(self.properties, found.properties)
        self._filter(self.search.text())
        self._fill_pictures(found)

    def _fill_pictures(self, found: About) -> None:
        empty(self._buttons)
        for name in found.pictures:
            made = button(name, f"Show the file's {name} image", partial(self.show_picture, name))
            self._buttons.addWidget(made)
        if not found.pictures:
            self._buttons.addWidget(QLabel("none"))
        self._buttons.addStretch()
        self.private.setVisible("label" in found.pictures)
        self.picture.setVisible(False)

    def show_picture(self, name: str) -> None:
        """Show one of the file's own pictures, such as the macro image."""
        found, path = self.about, self._path
        if found is None:
            return

        def show(pixels: NDArray[np.uint8]) -> None:
            if path != self._path:
                return
            image = QPixmap.fromImage(to_image(pixels[..., :3]))
            mode = Qt.TransformationMode.SmoothTransformation
            wide = max(100, self.width() - 40)
            keep = Qt.AspectRatioMode.KeepAspectRatio
            self.picture.setPixmap(image.scaled(wide, _PICTURE, keep, mode))
            self.picture.setToolTip(name)
            self.picture.setVisible(True)

        self.bench.background.run(partial(found.read_picture, name), show, owner=self)

    def _filter(self, text: str) -> None:
        """Show the properties that contain the text."""
        wanted = text.strip().lower()
        for number in range(self.properties.topLevelItemCount()):
            item = self.properties.topLevelItem(number)
            if item is not None:
                item.setHidden(wanted not in f"{item.text(0)} {item.text(1)}".lower())

    def _copy(self) -> None:
        board = QApplication.clipboard()
        if self.about is not None and board is not None:
            board.setText("\n".join(f"{name}: {value}" for name, value in self.about.facts))

    def _fill_recent(self) -> None:
        paths = self.bench.memory.recent_slides()
        self.recent.clear()
        for path in paths:
            item = QListWidgetItem(path.name)
            item.setToolTip(str(path))
            item.setData(Qt.ItemDataRole.UserRole, str(path))
            self.recent.addItem(item)
        self.recent.setVisible(bool(paths))
        self.forget.setVisible(bool(paths))
        self.no_recent.setVisible(not paths)

    def _open(self, item: QListWidgetItem) -> None:
        self.bench.open_slide(Path(item.data(Qt.ItemDataRole.UserRole)))

    def _forget(self) -> None:
        before = self.bench.memory.forget_slides()

        def undo() -> None:
            self.bench.memory.restore_slides(before)
            self._fill_recent()

        self._fill_recent()
        self.notice.say("The list of recent slides was cleared.", action="Undo", then=undo)


def _fill(tree: Any, rows: tuple[tuple[str, str], ...]) -> None:
    tree.clear()
    for name, value in rows:
        item = QTreeWidgetItem([name, value])
        item.setToolTip(1, value)
        tree.addTopLevelItem(item)
