"""What the workbench remembers between sessions, in one small JSON file."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slidelens.desktop.state.bookmarks import marks_of, with_marks
from slidelens.files import write_atomic
from slidelens.settings import config_dir

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from slidelens.desktop.state.bookmarks import Bookmark, Marked

__all__ = ["Memory", "memory_file"]

_RECENT = 12
_MARKS, _OLDER = "marks", "bookmarks"  # in level-0 px by path; in the world's unit by id
_log = logging.getLogger(__name__)


def memory_file() -> Path:
    """Return the path of the file: in the user's settings folder."""
    return config_dir() / "desktop.json"


class Memory:
    """Recent slides, bookmarks, trained models, unfinished training runs, the reviewer's name.

    Each change reads the file again and writes it at once, so two windows do not overwrite each
    other's changes. A damaged file is started anew, and one that cannot be written is only logged:
    nothing in it is worth an error.

    Parameters
    ----------
    path
        The file; created by the first change.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or memory_file()

    def recent_slides(self) -> list[Path]:
        """Return the slides opened last, newest first; those that no longer exist are left out."""
        return [path for path in map(Path, self._list("slides")) if path.exists()]

    def opened(self, slide: Path) -> None:
        """Put a slide in front of the recent ones."""
        name = str(slide.absolute())
        self._set("slides", [name, *(s for s in self._list("slides") if s != name)][:_RECENT])

    def forget_slides(self) -> list[str]:
        """Empty the list of recent slides; return it for :meth:`restore_slides`."""
        before = self._list("slides")
        self._set("slides", [])
        return before

    def restore_slides(self, slides: Sequence[str]) -> None:
        """Undo :meth:`forget_slides`."""
        self._set("slides", [*self._list("slides"), *slides][:_RECENT])

    def bookmarks(self, slide: Marked) -> list[Bookmark]:
        """Return a slide's bookmarks in the order in which they were made."""
        return marks_of(slide, self._table(_MARKS), self._table(_OLDER))

    def set_bookmarks(self, slide: Marked, marks: Iterable[Bookmark]) -> None:
        """Replace a slide's bookmarks."""
        self._set(_MARKS, with_marks(slide, marks, self._table(_MARKS), self._table(_OLDER)))

    def models(self) -> list[Path]:
        """Return folders of models in addition to those that every installation knows."""
        return [Path(name) for name in self._list("models") if Path(name).is_dir()]

    def add_model(self, folder: Path) -> None:
        """Remember a model's folder, such as that of one just trained."""
        self._add("models", str(folder.absolute()))

    def trainings(self) -> list[Path]:
        """Return folders of training runs that have begun and not ended."""
        return [Path(name) for name in self._list("trainings") if Path(name).is_dir()]

    def training_began(self, folder: Path) -> None:
        """Remember a training."""
        self._add("trainings", str(folder.absolute()))

    def training_ended(self, folder: Path) -> None:
        """Forget a training run: it is finished or was given up."""
        name = str(folder.absolute())
        self._set("trainings", [t for t in self._list("trainings") if t != name])

    def text(self, name: str, default: str = "") -> str:
        """Return a text that was remembered: the last chosen folder, the reviewer's name."""
        value = self._read().get(name, default)
        return value if isinstance(value, str) else default

    def set_text(self, name: str, value: str) -> None:
        """Remember a text."""
        self._set(name, value)

    def _add(self, name: str, item: str) -> None:
        self._set(name, [*(i for i in self._list(name) if i != item), item])

    def _list(self, name: str) -> list[str]:
        found = self._read().get(name)
        return [i for i in found if isinstance(i, str)] if isinstance(found, list) else []

    def _table(self, name: str) -> dict[str, Any]:
        found = self._read().get(name)
        return found if isinstance(found, dict) else {}

    def _set(self, name: str, value: Any) -> None:
        content = self._read()
        content[name] = value
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        try:
            write_atomic(self.path, text)
        except OSError as error:  # a setting that is forgotten is no reason to stop anybody
            _log.warning("%s: cannot be written (%s); settings are not kept", self.path, error)

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}
