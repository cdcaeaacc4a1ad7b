"""Bookmarks of slides, in level-0 px, so that they hold at whatever resolution a slide is shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from slidelens.geometry import Mpp, Size

__all__ = ["Bookmark", "Marked", "marks_of", "with_marks"]


class Bookmark(NamedTuple):
    """A place on a slide: its centre in level-0 px, and level-0 px (along x) per screen pixel."""

    name: str
    x: float
    y: float
    scale: float


class Marked(NamedTuple):
    """The slide that bookmarks are of.

    Attributes
    ----------
    id
        Its name without the extension, which slides of other folders may share.
    path
        Its file; ``None`` if it is in memory.
    size
        In level-0 px.
    mpp
        As it is shown, µm/px; 1 without a resolution. Bookmarks of older versions need it, which
        are in µm.
    """

    id: str
    path: Path | None
    size: Size | tuple[int, int]
    mpp: Mpp

    @property
    def key(self) -> str:
        """The absolute path of its file, or its id."""
        return self.id if self.path is None else str(self.path.absolute())


def marks_of(slide: Marked, kept: Mapping[str, Any], older: Mapping[str, Any]) -> list[Bookmark]:
    """Return a slide's bookmarks in the order in which they were made.

    Those of its path, else of a file of the same name and size that is gone, as it may have moved
    here; else what older versions kept by its id.

    Parameters
    ----------
    slide
        The slide.
    kept
        What :func:`with_marks` returned last.
    older
        By id, in the unit of the slide's world.
    """
    entry = kept.get(slide.key)
    if entry is None:
        moved = (one for key, one in kept.items() if _is_of(slide, one) and not Path(key).exists())
        entry = next(moved, None)
    if entry is not None:
        return _read(entry.get("marks") if isinstance(entry, dict) else None)
    x, y = slide.mpp
    return [
        Bookmark(one.name, one.x / x, one.y / y, one.scale / x)
        for one in _read(older.get(slide.id))
    ]


def with_marks(
    slide: Marked, marks: Iterable[Bookmark], kept: Mapping[str, Any], older: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what is kept with other bookmarks of a slide.

    Parameters
    ----------
    slide, kept, older
        As :func:`marks_of` takes them.
    marks
        All bookmarks of the slide.
    """
    rows = [one._asdict() for one in marks]
    entry = {"id": slide.id, "size": list(slide.size), "marks": rows}
    # Without bookmarks it is kept only where others would otherwise come back.
    others = {key: one for key, one in kept.items() if key != slide.key}
    needed = rows or marks_of(slide, others, older)
    return {**others, slide.key: entry} if needed else others


def _is_of(slide: Marked, entry: Any) -> bool:
    """Whether bookmarks are of a file with this slide's name and size."""
    if not isinstance(entry, dict):
        return False
    return entry.get("id") == slide.id and entry.get("size") == list(slide.size)


def _read(rows: Any) -> list[Bookmark]:
    found = (_bookmark(row) for row in (rows if isinstance(rows, list) else []))
    return [mark for mark in found if mark is not None]


def _bookmark(row: Any) -> Bookmark | None:
    try:
        return Bookmark(str(row["name"]), float(row["x"]), float(row["y"]), float(row["scale"]))
    except (KeyError, TypeError, ValueError):
        return None
