"""Widgets that all panels are built from."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QEvent, QObject, QSize, Qt
from qtpy.QtWidgets import (
    QComboBox,
    QDockWidget,
    QFrame,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QLayout,
    QLineEdit,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QToolButton,
    QTreeWidget,
    QVBoxLayout,
    QWidget,
)
from superqt import QLabeledDoubleSlider

from slidelens.desktop.docks import keep
from slidelens.desktop.drops import paths_of, take
from slidelens.desktop.panels.notice import Notice
from slidelens.desktop.workbench import Workbench, workbench_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qtpy.QtGui import QDragEnterEvent, QDropEvent

    from slidelens.desktop.state.runs import RunState
    from slidelens.desktop.state.train import TrainState

__all__ = [
    "Low",
    "Panel",
    "boxed",
    "breakable",
    "button",
    "calm",
    "calm_combo",
    "caption",
    "empty",
    "heading",
    "menu_button",
    "progress_bar",
    "row",
    "show_progress",
    "slider",
    "table",
]

_ENDS = re.compile(r"(?<=\w)(?:[-_/\\]+(?=\w)|\.(?=[^\W\d]))")
_UNBROKEN = re.compile(r"[^\s\u200b]{24}(?=[^\s\u200b])")
_WIDTH = 370
_LEAST_LETTERS = 8
_UNTICKED = (
    "QTreeView::indicator:unchecked, QListView::indicator:unchecked "
    "{ border: 1px solid #7e838c; border-radius: 2px; }"
)
"""In napari's dark theme such a box has the colour of its background; this is visible in both."""


class Panel(QWidget):
    """A panel that scrolls where the window is small.

    Its notice stays in sight above what scrolls, and the content of its foot below.

    Parameters
    ----------
    napari_viewer
        Passed by napari.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.bench: Workbench = workbench_of(napari_viewer)
        self.notice = Notice()
        self.scrolled = QScrollArea()
        self.scrolled.setWidgetResizable(True)
        self.scrolled.setFrameShape(QFrame.Shape.NoFrame)
        self.scrolled.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        inner = QWidget()
        self.body = QVBoxLayout(inner)
        self.body.setContentsMargins(8, 2, 8, 6)
        self.body.setSpacing(6)
        self.scrolled.setWidget(inner)
        head = QVBoxLayout()
        head.setContentsMargins(8, 4, 8, 0)
        head.addWidget(self.notice)
        self.foot = QVBoxLayout()
        self.foot.setContentsMargins(8, 0, 8, 6)
        self.foot.setSpacing(6)
        whole = QVBoxLayout(self)
        whole.setContentsMargins(0, 0, 0, 0)
        whole.setSpacing(4)
        whole.addLayout(head)
        whole.addWidget(self.scrolled, 1)
        whole.addLayout(self.foot)
        self.setStyleSheet(_UNTICKED)
        self.setAcceptDrops(True)

    def leave(self) -> None:
        """End what makes no sense without the panel: it was closed, and comes back as it was."""

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802  # reason: Qt's name
        """Stay in the dock that napari has put the panel in."""
        super().changeEvent(event)
        dock = self.parentWidget()
        if event.type() == QEvent.Type.ParentChange and isinstance(dock, QDockWidget):
            keep(dock, self.leave)
            # The tabs of all panels must be legible side by side; the dock itself says more.
            dock.setWindowTitle(dock.windowTitle().partition(" ")[0])

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:  # noqa: N802  # reason: Qt's name
        """Take files and folders."""
        if paths_of(event):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:  # noqa: N802  # reason: Qt's name
        """Open what was dropped."""
        take(self.bench, paths_of(event))
        event.acceptProposedAction()

    def sizeHint(self) -> QSize:  # noqa: N802  # reason: Qt's name
        """Return a width at which every line fits."""
        return QSize(_WIDTH, 480)

    def minimumSizeHint(self) -> QSize:  # noqa: N802  # reason: Qt's name
        """Return the same width: there is no scrolling sideways."""
        return QSize(_WIDTH, 120)


class Low(QScrollArea):
    """As high as its content, up to a limit; beyond that it scrolls.

    Parameters
    ----------
    layout
        Of its content, which may change.
    most_high
        The limit, in px.
    """

    def __init__(self, layout: QLayout, most_high: int) -> None:
        super().__init__()
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setStyleSheet("QScrollArea { border: 0; padding: 0; }")  # napari gives it some
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self._most_high = most_high
        self.setWidget(boxed(layout))

    def sizeHint(self) -> QSize:  # noqa: N802  # reason: Qt's name
        """Return the size of its content, or less."""
        inner = self.widget()
        wanted = QSize() if inner is None else inner.sizeHint()
        return QSize(wanted.width(), min(self._most_high, wanted.height()))

    def eventFilter(  # noqa: N802  # reason: Qt's name
        self, inner: QObject | None, event: QEvent | None
    ) -> bool:
        """Change size with the content."""
        if inner is None or event is None:
            return False
        if event.type() == QEvent.Type.LayoutRequest:
            self.updateGeometry()
        return super().eventFilter(inner, event)


def heading(text: str) -> QLabel:
    """Return the title of a part of a panel."""
    label = QLabel(f"<b>{text}</b>")
    label.setContentsMargins(0, 6, 0, 0)
    return label


def breakable(text: str) -> str:
    """Let long names break where their parts end, or anywhere; not for text that is copied."""
    return _UNBROKEN.sub("\\g<0>\u200b", _ENDS.sub("\\g<0>\u200b", text))


def caption(text: str = "") -> QLabel:
    """Return a line of small print that may wrap."""
    label = QLabel(text)
    label.setWordWrap(True)
    label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
    return label


def progress_bar(name: str) -> QProgressBar:
    """Return a bar for :func:`show_progress`; ``name`` is what a screen reader calls it."""
    bar = QProgressBar()
    bar.setTextVisible(False)
    bar.setAccessibleName(name)
    return bar


def show_progress(bar: QProgressBar, status: QLabel, work: RunState | TrainState | None) -> None:
    """Show how much of a job is done and its step; nothing if none is under way."""
    bar.setVisible(work is not None)
    status.setVisible(work is not None)
    if work is None:
        return
    bar.setRange(0, 0 if work.fraction is None else 1000)
    if work.fraction is not None:
        bar.setValue(round(1000 * work.fraction))
    status.setText(work.text)


def button(text: str, help: str, then: Callable[[], object]) -> QPushButton:  # noqa: A002
    """Return a button."""
    made = QPushButton(text)
    made.setToolTip(help)
    made.clicked.connect(lambda: then())
    return made


def menu_button(made: QToolButton, text: str, help: str) -> QToolButton:  # noqa: A002
    """Make a button show its menu when pressed; return it."""
    made.setText(text)
    made.setToolTip(help)
    made.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
    made.setStyleSheet("QToolButton { padding: 3px 16px 3px 6px; }")  # space for its arrow
    return made


def calm(control: QWidget) -> QWidget:
    """Let a control take the mouse wheel only after it was clicked; otherwise the panel scrolls.

    A list of choices becomes as narrow as the panel, whatever is in it.
    """
    control.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
    if isinstance(control, QComboBox):
        policy = QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
        control.setSizeAdjustPolicy(policy)
        control.setMinimumContentsLength(_LEAST_LETTERS)
    control.installEventFilter(_Calm(control))
    return control


class _Calm(QObject):
    def eventFilter(  # noqa: N802  # reason: Qt's name
        self, control: QObject | None, event: QEvent | None
    ) -> bool:
        """Ignore the wheel if the control has no focus."""
        if event is None or event.type() != QEvent.Type.Wheel:
            return False
        if isinstance(control, QWidget) and control.hasFocus():
            return False
        event.ignore()
        return True


def boxed(layout: QLayout) -> QWidget:
    """Put a layout into a widget, so that it can be hidden as one."""
    box = QWidget()
    layout.setContentsMargins(0, 0, 0, 0)
    box.setLayout(layout)
    return box


def empty(layout: QLayout) -> None:
    """Empty a layout; its widgets go."""
    while layout.count():
        item = layout.takeAt(0)
        widget = None if item is None else item.widget()
        if widget is not None:
            widget.deleteLater()


def row(*widgets: QWidget, stretch: int = -1) -> QHBoxLayout:
    """Put widgets side by side; the one at ``stretch`` takes the remaining space."""
    layout = QHBoxLayout()
    layout.setSpacing(6)
    for number, widget in enumerate(widgets):
        layout.addWidget(widget, int(number == stretch % len(widgets)) if stretch >= 0 else 0)
    return layout


def table(columns: Sequence[str], name: str, height: int, *, wide: int = 0) -> QTreeWidget:
    """Return an empty list with columns, of a fixed height in px; column ``wide`` stretches."""
    tree = QTreeWidget()
    tree.setHeaderLabels(list(columns))
    tree.setRootIsDecorated(False)
    tree.setUniformRowHeights(True)
    tree.setAccessibleName(name)
    tree.setFixedHeight(height)
    header = tree.header()
    if header is not None:
        header.setStretchLastSection(False)
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(wide, QHeaderView.ResizeMode.Stretch)
    return tree


def slider(name: str, help: str, least: float, most: float, decimals: int) -> QLabeledDoubleSlider:  # noqa: A002
    """Return a slider with a field for its value.

    Parameters
    ----------
    name
        What a screen reader calls it.
    help
        Its tooltip.
    least, most, decimals
        Of its values.
    """
    made = QLabeledDoubleSlider(Qt.Orientation.Horizontal)
    calm(made).setToolTip(help)
    made.setRange(least, most)
    made.setDecimals(decimals)
    made.setAccessibleName(name)
    for part in made.findChildren(QWidget):
        part.setAccessibleName(f"{name}, value" if isinstance(part, QLineEdit) else name)
    return made


def calm_combo(help: str) -> QComboBox:  # noqa: A002
    """Return an empty list to choose from."""
    combo = QComboBox()
    calm(combo).setToolTip(help)
    return combo
