"""Try a panel in a real window, and watch for anything that a user would notice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtWidgets import QAbstractButton, QApplication, QComboBox, QLineEdit

from slidelens.desktop.qt import alive
from slidelens.errors import PluginError
from slidelens.testing.phantom import PhantomSpec, write_phantom

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from qtpy.QtWidgets import QWidget

    from slidelens.desktop.workbench import Workbench

__all__ = ["trial_panel"]

_WIDEST = 480
"""px that a panel may need at least: the slide needs the rest of a laptop's window."""
_PATIENCE_MS = 20_000


def trial_panel(
    make: Callable[[Workbench], QWidget], bench: Workbench, qtbot: Any, folder: Path
) -> None:
    """Open a panel without a slide, show it two slides, take them away, close it.

    Parameters
    ----------
    make
        Makes the panel's widget for a workbench.
    bench
        Of a shown window without a slide.
    qtbot
        Of pytest-qt.
    folder
        Empty; two small slides are written into it.

    Raises
    ------
    PluginError
        There was an exception in a slot (also after the panel was gone) or an error message to the
        user, or the panel is invisible, too wide, or has a control without a name.
    """
    told: list[str] = []
    bench.told.connect(lambda text, is_error: told.append(text) if is_error else None)
    with qtbot.captureExceptions() as raised:
        widget = make(bench)
        area = {"area": "right", "tabify": True}
        dock = bench.viewer.window.add_dock_widget(widget, name="trial", **area)
        qtbot.waitExposed(widget.window())
        dock.raise_()
        QApplication.processEvents()
        _look_at(widget)
        for seed in (1, 2):
            path = folder / f"slide-{seed}.tif"
            write_phantom(path, PhantomSpec(size=(640, 512), seed=seed))
            bench.open_slide(path)
            qtbot.waitUntil(lambda name=path.stem: _shows(bench, name), timeout=_PATIENCE_MS)
            _settle(bench, qtbot)
        _look_at(widget)
        bench.viewer.layers.clear()
        qtbot.waitUntil(lambda: bench.slide is None, timeout=_PATIENCE_MS)
        _settle(bench, qtbot)
        bench.viewer.window.remove_dock_widget(widget)
        widget.close()
        widget.deleteLater()
        qtbot.waitUntil(lambda: not alive(widget), timeout=_PATIENCE_MS)
        for signal in (bench.slide_changed, bench.results_changed, bench.models_changed):
            signal.emit()  # to a panel that is gone
        QApplication.processEvents()
    if raised:
        kind, error, _ = raised[0]
        raise PluginError(f"the panel raised {kind.__name__}: {error}") from error
    if told:
        raise PluginError(f"the panel told an error without reason: {told[0]}")


def _shows(bench: Workbench, name: str) -> bool:
    return bench.slide is not None and bench.slide.id == name


def _settle(bench: Workbench, qtbot: Any) -> None:
    """Wait until everything that a change of slides began is done."""
    QApplication.processEvents()
    qtbot.waitUntil(lambda: not bench.background.busy, timeout=_PATIENCE_MS)
    QApplication.processEvents()


def _look_at(widget: QWidget) -> None:
    if not widget.isVisible():
        raise PluginError("the panel is in the window and cannot be seen.")
    width = widget.minimumSizeHint().width()
    if width > _WIDEST:
        raise PluginError(f"the panel is {width} px wide at least; expected at most {_WIDEST}.")
    for kind in (QAbstractButton, QComboBox, QLineEdit):
        for control in widget.findChildren(kind):
            if control.isVisible() and not _named(control):
                raise PluginError(
                    f"a {kind.__name__} has no name: give it a text, a tool tip or an accessible "
                    "name, which screen readers and the mouse find."
                )


def _named(control: Any) -> bool:
    """Whether a person learns what a control is; an editor inside another one is named by that."""
    names = [control.toolTip(), control.accessibleName()]
    fields = [field for field in ("text", "placeholderText") if hasattr(control, field)]
    names += [getattr(control, field)() for field in fields]
    inside = control.parentWidget()
    if inside is not None and control.objectName().startswith("qt_"):
        names += [inside.toolTip(), inside.accessibleName()]
    return any(names)
