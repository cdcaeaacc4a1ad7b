"""Where the slides of an evaluation are now, if they have moved since they were run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slidelens.desktop.warned import warned
from slidelens.engine.slide_folder import find_slides
from slidelens.errors import LabelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from qtpy.QtCore import QObject

    from slidelens.desktop.workbench import Workbench

__all__ = ["MovedSlides"]


class MovedSlides:
    """Looks for slides in a folder, in the background.

    Attributes
    ----------
    files
        Slide id to file.
    unfound
        Why slides may be missing among these.
    folder
        The folder in which slides were found; ``None``: none were.
    """

    def __init__(self, bench: Workbench, owner: QObject) -> None:
        self._bench, self._owner = bench, owner
        self.files: dict[str, Path] = {}
        self.unfound: list[str] = []
        self.folder: Path | None = None

    def look(self, folder: str, then: Callable[[], object]) -> None:
        """Look in a folder, then call ``then``; without a folder, nothing is done.

        Parameters
        ----------
        folder
            Its path, or nothing.
        then
            Called in the window's thread when :attr:`files` are known.
        """
        if not folder:
            return

        def work() -> tuple[dict[str, Path], list[str]]:
            with warned() as warnings:
                try:
                    return find_slides(Path(folder)), warnings
                except LabelError as error:  # maybe the folder of another day
                    return {}, [*warnings, str(error)]

        def take(answer: tuple[dict[str, Path], list[str]]) -> None:
            self.files, self.unfound = answer
            self.folder = Path(folder) if self.files else None
            then()

        self._bench.background.run(work, take, owner=self._owner)
