"""Edit the categories of errors, one per line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtWidgets import QDialog, QDialogButtonBox, QPlainTextEdit, QVBoxLayout, QWidget

from slidelens.desktop.panels.parts import caption, heading
from slidelens.desktop.state.review import KINDS
from slidelens.errors import ResultError
from slidelens.review.taxonomy import read_taxonomy, save_taxonomy

if TYPE_CHECKING:
    from pathlib import Path

    from slidelens.review.taxonomy import Kind

__all__ = ["CategoriesDialog", "edit_categories"]


class CategoriesDialog(QDialog):
    """Two lists to edit; stays open until their content can be saved."""

    def __init__(self, folder: Path, parent: QWidget) -> None:
        super().__init__(parent)
        self._folder = folder
        self.setWindowTitle("Categories of errors")
        self.texts: dict[Kind, QPlainTextEdit] = {}
        layout = QVBoxLayout(self)
        layout.addWidget(caption("One category per line, in the order of the keys 1 to 9."))
        for kind, names in read_taxonomy(folder).items():
            text = QPlainTextEdit("\n".join(names))
            text.setAccessibleName(f"Categories of {KINDS[kind]}s")
            text.setFixedHeight(130)
            self.texts[kind] = text
            layout.addWidget(heading(f"{KINDS[kind].capitalize()}s"))
            layout.addWidget(text)
        self.fault = caption()
        layout.addWidget(self.fault)
        buttons = QDialogButtonBox(
            QDialogButtonBox.StandardButton.Save | QDialogButtonBox.StandardButton.Cancel
        )
        buttons.accepted.connect(self.save)
        buttons.rejected.connect(self.reject)
        layout.addWidget(buttons)

    def save(self) -> None:
        """Write the lists and close, or say what is wrong with them."""
        lines = {
            kind: [line.strip() for line in text.toPlainText().splitlines() if line.strip()]
            for kind, text in self.texts.items()
        }
        try:
            save_taxonomy(self._folder, lines)
        except ResultError as error:
            self.fault.setText(str(error))
            return
        self.accept()


def edit_categories(folder: Path, parent: QWidget) -> bool:
    """Let the user edit the categories of an evaluation; return whether they changed.

    Raises
    ------
    ResultError
        The existing file is damaged.
    """
    dialog = CategoriesDialog(folder, parent)
    changed = dialog.exec() == QDialog.DialogCode.Accepted
    dialog.deleteLater()
    return changed
