"""Where models run: the slide, a region of it, all open slides, or a folder."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QComboBox, QFileDialog

from slidelens.desktop.panels.parts import calm

__all__ = ["Where"]

_WHERE = {
    "slide": "the whole slide",
    "region": "a region that I draw",
    "open": "all open slides",
    "folder": "a folder of slides…",
}


class Where(QComboBox):
    """The choices; the data of each is a word of ``slide``, ``region``, ``open`` and ``folder``.

    Attributes
    ----------
    folder
        The folder of slides, once it is chosen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder: Path | None = None
        calm(self).setToolTip("The part of the slide, or the slides, to run on")
        for key, title in _WHERE.items():
            self.addItem(title, key)

    def ask_folder(self) -> None:
        """Ask which folder is run, also when it is chosen again; its name is in the list then."""
        if self.currentData() != "folder":
            return
        folder = QFileDialog.getExistingDirectory(self, "Folder of slides", str(self.folder or ""))
        if folder:
            self.folder = Path(folder)
            number = self.currentIndex()
            self.setItemText(number, f"the slides in {self.folder.name}…")
            self.setItemData(number, folder, Qt.ItemDataRole.ToolTipRole)
        elif self.folder is None:
            self.setCurrentIndex(0)
