"""The list of errors under review: filters, order, progress."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QSignalBlocker, Qt
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QHeaderView,
    QMenu,
    QProgressBar,
    QSizePolicy,
    QToolButton,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from slidelens.desktop.panels.parts import calm, caption, menu_button, row
from slidelens.desktop.qt import Signal
from slidelens.desktop.state.review import KINDS, Filter, decision_text

if TYPE_CHECKING:
    from slidelens.desktop.state.review import Review

__all__ = ["ErrorList"]

_SLIDE, _KIND, _METHOD, _MARGIN, _DECISION = range(5)
_LEAST_WIDE, _MOST_WIDE = 60, 110  # px for a decision
_LEAST_HIGH = 76  # px: the error under review and its neighbours


class ErrorList(QWidget):
    """Lists the errors of a review.

    Signals
    -------
    filtered
        A different :meth:`filter` is wanted.
    chosen
        Position of the error that the user clicked.
    """

    filtered = Signal()
    chosen = Signal(int)

    def __init__(self) -> None:
        super().__init__()
        self.methods = menu_button(QToolButton(), "All methods", "Whose errors are listed")
        self._menu = QMenu(self.methods)
        self.methods.setMenu(self._menu)
        self.kind = QComboBox()
        calm(self.kind).setToolTip("Which errors are listed")
        self.kind.addItem("all errors", None)
        for kind, name in KINDS.items():
            self.kind.addItem(f"{name}s", kind)
        self.only_open = QCheckBox("not decided")
        self.only_open.setToolTip("List only errors that you have not decided yet")
        self.suspects = QCheckBox("label in doubt")
        self.suspects.setToolTip("List only slides whose label every method contradicts")
        self.tree = QTreeWidget()
        self.tree.setHeaderLabels(["Slide", "", "Method", "Margin", "Decision"])
        self.tree.setRootIsDecorated(False)
        self.tree.setUniformRowHeights(True)
        self.tree.setMinimumHeight(_LEAST_HIGH)  # and what space the panel has left
        self.tree.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Ignored)
        self.tree.setAccessibleName("Errors, the most confident first")
        header = self.tree.header()
        self.tree.setTextElideMode(
            Qt.TextElideMode.ElideMiddle
        )  # names often end alike, or begin alike
        if header is not None:
            header.setStretchLastSection(False)
            header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
            header.setSectionResizeMode(_SLIDE, QHeaderView.ResizeMode.Stretch)
            for column in (_METHOD, _DECISION):
                header.setSectionResizeMode(column, QHeaderView.ResizeMode.Interactive)
        self.empty = caption()
        self.bar = QProgressBar()
        self.bar.setAccessibleName("Errors decided")
        self.bar.setToolTip("How many errors you have decided")
        self.bar.setFormat("%v of %m decided")
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(row(self.methods, self.kind, stretch=1))
        layout.addLayout(row(self.only_open, self.suspects, self.bar, stretch=2))
        layout.addWidget(self.empty)
        layout.addWidget(self.tree, 1)
        layout.addStretch()
        self.kind.activated.connect(lambda _: self.filtered.emit())
        self.only_open.clicked.connect(lambda _: self.filtered.emit())
        self.suspects.clicked.connect(lambda _: self.filtered.emit())
        self.tree.currentItemChanged.connect(self._clicked)

    def filter(self) -> Filter:
        """Return the filter."""
        actions = self._menu.actions()
        ticked = frozenset(a.text() for a in actions if a.isChecked())
        every = len(ticked) == len(actions)
        return Filter(
            None if every else ticked,
            self.kind.currentData(),
            self.only_open.isChecked(),
            self.suspects.isChecked(),
        )

    def show_methods(self, names: tuple[str, ...]) -> None:
        """Offer these methods; all are ticked."""
        self._menu.clear()
        for name in names:
            action: Any = self._menu.addAction(name)
            action.setCheckable(True)
            action.setChecked(True)
            action.triggered.connect(lambda _=False: self._methods_ticked())
        self.tree.setColumnHidden(2, len(names) == 1)
        self._name_methods()

    def show_errors(self, review: Review) -> None:
        """List a review's errors again."""
        decisions, since = review.decisions(), review.saved.since
        with QSignalBlocker(self.tree):
            self.tree.clear()
            for case in review.cases:
                own = decisions.get(case.key)
                mark = case.kind.upper() + ("?" if case.suspect else "")
                texts = [case.slide_id, mark, case.model, f"{case.margin:.3f}"]
                said = "" if own is None else decision_text(own, since)
                item = QTreeWidgetItem([*texts, said])
                for column in (_SLIDE, _METHOD, _DECISION):
                    item.setToolTip(column, item.text(column))
                item.setToolTip(
                    _KIND, KINDS[case.kind] + (", label in doubt" if case.suspect else "")
                )
                item.setTextAlignment(_MARGIN, Qt.AlignmentFlag.AlignRight)
                self.tree.addTopLevelItem(item)
        self._say_empty(review)
        self.show_current(review)

    def show_current(self, review: Review) -> None:
        """Mark the current error, and show the decision on it and how far the review is."""
        item = self.tree.topLevelItem(review.index)
        if item is not None and review.case is not None:
            own = review.decision(review.case)
            with QSignalBlocker(self.tree):
                kept = own is not None and (own.decided or own.note)  # not one that was undone
                said = decision_text(own, review.saved.since) if own and kept else ""
                item.setText(_DECISION, said)
                item.setToolTip(_DECISION, said)
                self.tree.setCurrentItem(item)
            self.tree.scrollToItem(item)
        self._share_width()
        done, total = review.progress()
        self.bar.setRange(0, max(1, total))
        self.bar.setValue(done)
        self.bar.setVisible(total > 0)

    def _share_width(self) -> None:
        """Share the space so that every column is visible; names of any length come first."""
        tree, viewport = self.tree, self.tree.viewport()
        room = 0 if viewport is None else viewport.width()
        room -= tree.columnWidth(_KIND) + tree.columnWidth(_MARGIN)
        slide, decision = map(tree.sizeHintForColumn, (_SLIDE, _DECISION))
        header = tree.header()
        title = 0 if header is None else header.sectionSizeHint(_METHOD)
        method = 0 if tree.isColumnHidden(_METHOD) else tree.sizeHintForColumn(_METHOD)
        method = max(method, title) if method else 0
        left = max(_LEAST_WIDE, room - slide - method)
        tree.setColumnWidth(_DECISION, min(left, max(_LEAST_WIDE, decision), _MOST_WIDE))
        room -= tree.columnWidth(_DECISION)
        tree.setColumnWidth(_METHOD, min(method, max(room - slide, room // 2, title)))

    def _say_empty(self, review: Review) -> None:
        text = ""
        if not review.errors:
            text = "No method is wrong at this operating point: there is nothing to review."
        elif not review.cases:
            text = "No error matches. Tick other methods, or list all errors."
        self.empty.setText(text)
        self.empty.setVisible(bool(text))
        self.tree.setVisible(not text)

    def _methods_ticked(self) -> None:
        self._name_methods()
        self.filtered.emit()

    def _name_methods(self) -> None:
        actions = self._menu.actions()
        ticked = [a.text() for a in actions if a.isChecked()]
        every = len(ticked) == len(actions)
        name = ticked[0] if len(ticked) == 1 else f"{len(ticked)} methods"
        self.methods.setText("All methods" if every and len(actions) > 1 else name)
        self.methods.setVisible(len(actions) > 1)

    def _clicked(self, item: QTreeWidgetItem | None) -> None:
        if item is not None:
            self.chosen.emit(self.tree.indexOfTopLevelItem(item))
