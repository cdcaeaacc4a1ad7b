"""The list of results on disk: open, delete, restore."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QCheckBox,
    QFileDialog,
    QHeaderView,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from slidelens.desktop.belonging import for_slide, same_file, same_place
from slidelens.desktop.panels.parts import button, caption, row
from slidelens.desktop.shown import layers_of, remove_layers
from slidelens.desktop.state.library import Entry, entries
from slidelens.desktop.world import described
from slidelens.errors import ResultError

if TYPE_CHECKING:
    from slidelens.desktop.panels.notice import Notice
    from slidelens.desktop.shown import ShownSlide
    from slidelens.desktop.workbench import Workbench

__all__ = ["ResultsList"]


class _Deleted(NamedTuple):
    """A result that can be restored: where it is now, and on which slide's file it was shown.

    ``on`` is empty if the file is not known, and ``None`` if the result was not in the window.
    """

    entry: Entry
    hidden: Path
    on: str | None


class ResultsList(QWidget):
    """Results of the current slide, or of all slides."""

    def __init__(self, bench: Workbench, notice: Notice) -> None:
        super().__init__()
        self._bench, self._notice = bench, notice
        self._entries: list[Entry] = []
        self._judged: tuple[ShownSlide | None, list[Entry]] = (None, [])
        """Results that were made on another file of the slide's name, for which slide."""
        self._moved: list[Entry] | None = []
        """Those of them that were made on this slide: it has moved since; ``None``: being read."""
        self._deleted: list[_Deleted] = []
        """Deleted by this list, in the order in which they come back: the next one last."""
        self.tree = QTreeWidget()
        self.tree.setHeaderLabels(["Model", "Score", "Slide", "Created"])
        self.tree.setRootIsDecorated(False)
        self.tree.setUniformRowHeights(True)
        self.tree.setMinimumHeight(110)
        self.tree.setAccessibleName("Results")
        self.tree.setToolTip("Double-click a result to see it")
        header = self.tree.header()
        if header is not None:
            header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        self.all = QCheckBox("all slides")
        self.all.setToolTip("List the results of every slide, not only this one")
        self.open = button("Show", "Show the selected result on its slide (Enter)", self._open)
        self.delete = button("Delete", "Delete the result; this can be undone", self._delete)
        self.undo = button("Undo delete", "Restore the last deleted result", self._restore_last)
        self._folder = button("Folder…", "Choose the folder of results", self._choose_folder)
        self._empty = caption()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        # Above the list, part of which a low window hides.
        layout.addLayout(row(self.open, self.delete, self.undo, self._folder, self.all))
        layout.addWidget(self._empty)
        layout.addWidget(self.tree)
        self.tree.itemActivated.connect(lambda *_: self._open())
        self.tree.itemSelectionChanged.connect(self._enable)
        self.all.toggled.connect(lambda _: self._fill())
        bench.results_changed.connect(self.refresh)
        bench.slide_changed.connect(self._fill)
        folder = bench.results
        bench.background.run(lambda: bench.trash.sweep(folder), lambda _: None, owner=self)
        self.refresh()

    def refresh(self) -> None:
        """Read the folder again."""
        folder = self._bench.results
        self._bench.background.run(lambda: entries([folder]), self._take, owner=self)

    def _take(self, found: list[Entry]) -> None:
        self._entries = found
        self._fill()

    def _fill(self) -> None:
        slide = self._bench.slide
        every = self.all.isChecked() or slide is None
        named = [] if slide is None else [e for e in self._entries if e.slide == slide.id]
        mine = [] if slide is None else self._of(slide, named)
        if slide is None:
            self._judged = None, []
        shown = self._entries if every else mine
        self.tree.clear()
        self.tree.setColumnHidden(2, slide is not None and not self.all.isChecked())
        for entry in shown:
            when = datetime.fromtimestamp(entry.time, UTC).astimezone()
            made = "" if entry.error else f"{when:%d %b %H:%M}"
            item = QTreeWidgetItem([entry.model, entry.score, entry.slide, made])
            item.setData(0, Qt.ItemDataRole.UserRole, str(entry.folder))
            for column in range(4):
                item.setToolTip(column, entry.about)
            self.tree.addTopLevelItem(item)
        self.tree.setVisible(bool(shown))
        none = "" if shown else f"No results {'yet' if every else 'for this slide'} in "
        none += "" if shown else f"{self._bench.results}."
        others = 0 if every or self._moved is None else len(named) - len(mine)
        count = "1 result is" if others == 1 else f"{others} results are"
        hint = f"{count} of another slide of this name: tick “all slides” to list them."
        self._empty.setText(" ".join(filter(None, [none, hint if others else ""])))
        self._empty.setVisible(bool(self._empty.text()))
        self._enable()

    def _of(self, slide: ShownSlide, named: list[Entry]) -> list[Entry]:
        """Return those results of the slide's name that were made on it, as far as is known.

        Those that were made on another file are read in the background: it may have moved.
        """
        here = [e for e in named if e.made_on is None or same_file(slide.path, e.made_on.path)]
        rest = [e for e in named if e not in here]
        if (slide, rest) != self._judged:
            self._judged, self._moved = (slide, rest), None if rest else []
            if rest:
                self._bench.background.run(
                    lambda: [one.folder for one in for_slide(rest, slide) if not one.misfit],
                    partial(self._take_moved, slide, rest),
                    owner=self,
                )
        return [e for e in named if e in here or e in (self._moved or ())]

    def _take_moved(self, slide: ShownSlide, rest: list[Entry], fitting: list[Path]) -> None:
        if (slide, rest) == self._judged:
            self._moved = [entry for entry in rest if entry.folder in fitting]
            self._fill()

    def _chosen(self) -> Entry | None:
        item = self.tree.currentItem()
        path = None if item is None else item.data(0, Qt.ItemDataRole.UserRole)
        return next((e for e in self._entries if str(e.folder) == path), None)

    def _enable(self) -> None:
        entry = self._chosen()
        self.open.setEnabled(entry is not None and not entry.error)
        self.delete.setEnabled(entry is not None)
        self.undo.setVisible(bool(self._deleted))

    def _open(self) -> None:
        entry = self._chosen()
        if entry is not None and not entry.error:
            self._bench.show_result(entry.folder)

    def _delete(self) -> None:
        entry = self._chosen()
        if entry is None:
            return
        try:
            hidden = self._bench.trash.delete(entry.folder)
        except ResultError as error:
            self._notice.say(str(error), "error")
            return
        gone = _Deleted(entry, hidden, self._take_away(entry))
        self._deleted.append(gone)
        what = f"The result of {entry.model} on {entry.slide} was deleted."
        self._notice.say(what, action="Undo", then=partial(self._restore, gone))
        self._bench.results_changed.emit()

    def _take_away(self, entry: Entry) -> str | None:
        """Take a result's layers off its slide; return its file, or ``None`` if there are none."""
        viewer = self._bench.viewer
        of_model = list(layers_of(viewer, slide=entry.slide, model=entry.model))
        facts = [described(layer.metadata) for layer in of_model]
        files = {f.get("on") for f in facts if same_place(f.get("path"), entry.folder)}
        if not files:
            return None
        mine = (one for one, f in zip(of_model, facts, strict=True) if f.get("on") in files)
        remove_layers(viewer, mine)
        return next(iter(files)) or ""

    def _restore_last(self) -> None:
        if self._deleted:
            self._restore(self._deleted[-1])

    def _restore(self, gone: _Deleted) -> None:
        entry, slide = gone.entry, self._bench.slide
        try:
            newer = self._bench.trash.exchange(gone.hidden)
        except ResultError as error:
            self._notice.say(str(error), "error")
            return
        self._deleted.remove(gone)
        self._notice.say("")
        on = gone.on
        if newer is not None:  # it comes back after all others
            taken = _Deleted(entry, newer, self._take_away(entry))
            self._deleted.insert(0, taken)
            on = taken.on if on is None else on
            self._notice.say(
                f"The older result of {entry.model} on {entry.slide} is back; the newer one was "
                "deleted instead.",
                action="Undo",
                then=partial(self._restore, taken),
            )
        if on is not None and (slide is None or slide.is_of(entry.slide, on)):
            self._bench.show_result(entry.folder, owner=self)
        self._bench.results_changed.emit()

    def _choose_folder(self) -> None:
        now = self._bench.results
        start = now if now.is_dir() else Path.home()
        chosen = QFileDialog.getExistingDirectory(self, "Folder of results", str(start))
        if chosen:
            self._bench.use_results(Path(chosen))
