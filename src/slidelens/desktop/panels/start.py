"""Which slide is open, and how to open one."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtWidgets import QFileDialog, QMenu, QToolButton, QVBoxLayout, QWidget

from slidelens.desktop.panels.parts import breakable, button, caption, menu_button, row
from slidelens.slide.open import SLIDE_SUFFIXES

if TYPE_CHECKING:
    from slidelens.desktop.workbench import Workbench

__all__ = ["SlideLine"]

_PATTERNS = f"Slides ({' '.join(f'*{suffix}' for suffix in SLIDE_SUFFIXES)});;All files (*)"


class SlideLine(QWidget):
    """The current slide in one line, with buttons to open another."""

    def __init__(self, bench: Workbench) -> None:
        super().__init__()
        self._bench = bench
        self.text = caption()
        self.open = button("Open slide…", "Open a slide in place of this one", self._ask)
        self.recent = menu_button(QToolButton(), "Recent", "Recently opened slides")
        self._menu = QMenu(self.recent)
        self._menu.aboutToShow.connect(self._fill_recent)
        self.recent.setMenu(self._menu)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.text)
        layout.addLayout(row(self.open, self.recent, QWidget(), stretch=2))
        bench.slide_changed.connect(self._show)
        self._show()

    def _show(self) -> None:
        slide = self._bench.slide
        if slide is None:
            self.text.setText("<b>Open a slide to begin.</b><br>Or drop one on the picture.")
            return
        mpp = slide.world.mpp
        known = slide.world.unit != "pixel"
        scale = f"{mpp.mean:.4g} µm/px" if known else "no resolution stated"
        size = f"{slide.size.width} × {slide.size.height} px"
        self.text.setText(f"<b>{escape(breakable(slide.id))}</b><br>{size}, {scale}")

    def _ask(self) -> None:
        last = self._bench.memory.text("slides_folder", str(Path.home()))
        path, _ = QFileDialog.getOpenFileName(self, "Open a slide", last, _PATTERNS)
        if path:
            self._bench.memory.set_text("slides_folder", str(Path(path).parent))
            self._bench.open_slide(Path(path))

    def _fill_recent(self) -> None:
        self._menu.clear()
        for path in self._bench.memory.recent_slides():
            action = self._menu.addAction(path.name)
            action.setToolTip(str(path))
            action.triggered.connect(lambda _=False, p=path: self._bench.open_slide(p))
        if self._menu.isEmpty():
            self._menu.addAction("nothing opened yet").setEnabled(False)
