"""A panel's message to the user."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtGui import QTextOption
from qtpy.QtWidgets import QFrame, QHBoxLayout, QPushButton, QTextEdit, QToolButton

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qtpy.QtGui import QResizeEvent, QTextDocument

__all__ = ["Notice"]

_MOST_HIGH = 140  # px of message: the panel needs the space
_MOST = 5
"""Lines, and warnings, that are shown at first: a cohort may give one for each of its slides."""
_COLORS = {"info": "#2d6e7e", "error": "#8c2f39", "good": "#2f6f4f"}


class Notice(QFrame):
    """One sentence at the top of a panel, with a button for what can be done about it."""

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("notice")
        layout = QHBoxLayout(self)
        layout.setContentsMargins(8, 4, 4, 4)
        self._text = QTextEdit()
        self._text.setReadOnly(True)
        self._text.setFocusPolicy(Qt.FocusPolicy.ClickFocus)
        self._text.setFrameShape(QFrame.Shape.NoFrame)
        self._text.setWordWrapMode(QTextOption.WrapMode.WrapAtWordBoundaryOrAnywhere)  # long names
        self._text.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._text.setAccessibleName("Message")
        self._text.setFixedHeight(0)
        self._lines.setDocumentMargin(0)
        self._action = QPushButton()
        self._action.clicked.connect(self._act)
        self._more = QToolButton()
        self._more.setText("All")
        self._more.setToolTip("Show all of this message")
        self._more.setAutoRaise(True)
        self._more.clicked.connect(self._show_all)
        close = QToolButton()
        close.setText("×")
        close.setToolTip("Close this message")
        close.setAutoRaise(True)
        close.clicked.connect(self.hide)
        layout.addWidget(self._text, 1)
        layout.addWidget(self._action)
        layout.addWidget(self._more, 0, Qt.AlignmentFlag.AlignTop)
        layout.addWidget(close, 0, Qt.AlignmentFlag.AlignTop)
        self._then: Callable[[], object] | None = None
        self._all = ""
        self.hide()

    @property
    def text(self) -> str:
        """Its text; empty while it is hidden."""
        return "" if self.isHidden() else self._text.toPlainText()

    def say(
        self,
        text: str,
        kind: str = "info",
        action: str = "",
        then: Callable[[], object] | None = None,
        warnings: Sequence[str] = (),
    ) -> None:
        """Show a sentence, and warnings below it; nothing to say hides it.

        Of many lines or warnings the first are shown, with a button for all.

        Parameters
        ----------
        kind
            ``info``, ``good`` or ``error``.
        action, then
            Label of a button, and what it does.
        warnings
            What a job warned of; what is ``good`` is ``info`` then.
        """
        lines = text.splitlines()
        self._all = "\n".join([*lines, *warnings])
        text = "\n".join([*_first(lines, "more"), *_first(warnings, "more warnings")])
        kind = "info" if warnings and kind == "good" else kind
        self._text.setPlainText(text)
        self._then = then
        self._action.setText(action)
        self._action.setVisible(bool(action))
        self._more.setVisible(text != self._all)
        self.setStyleSheet(
            f"#notice {{ background: {_COLORS[kind]}; border-radius: 4px; }} "
            "#notice QTextEdit { color: white; background: transparent; border: 0; padding: 0; }"
        )
        self._fit()
        self.setVisible(bool(text))

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802  # reason: Qt's name
        """Take the space that the text needs at the new width."""
        super().resizeEvent(event)
        self._fit()

    def _show_all(self) -> None:
        self._text.setPlainText(self._all)
        self._more.hide()
        self._fit()

    def _fit(self) -> None:
        """Be as high as the text; a very long one is scrolled."""
        self._lines.setTextWidth(max(self._text.width(), 1))
        high = ceil(self._lines.size().height())
        # A scroll bar that appears while the notice is still low would take the space it was for.
        bar = Qt.ScrollBarPolicy
        self._text.setVerticalScrollBarPolicy(
            bar.ScrollBarAsNeeded if high > _MOST_HIGH else bar.ScrollBarAlwaysOff
        )
        self._text.setFixedHeight(min(_MOST_HIGH, high))

    @property
    def _lines(self) -> QTextDocument:
        return self._text.document()

    def _act(self) -> None:
        then, self._then = self._then, None
        self.hide()
        if then is not None:
            then()


def _first(lines: Sequence[str], more: str) -> list[str]:
    """Return the first lines, and how many more there are; one more takes no more space."""
    if len(lines) <= _MOST + 1:
        return list(lines)
    return [*lines[:_MOST], f"and {len(lines) - _MOST} {more}"]
