"""Whether a result was made on the slide that is shown: another file may have its name and size."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakSet

from slidelens.desktop.world import is_stated
from slidelens.engine.provenance import fingerprint, is_other_content
from slidelens.errors import SlideError
from slidelens.slide.array import in_memory
from slidelens.slide.base import Slide

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slidelens.desktop.shown import ShownSlide
    from slidelens.desktop.state.library import Entry
    from slidelens.maps.result import Result
    from slidelens.maps.schema import SlideInfo

__all__ = [
    "for_slide",
    "is_replaced",
    "learn_content",
    "misfit",
    "open_own",
    "replaced",
    "same_file",
    "same_place",
]

_learnt: WeakSet[Slide] = WeakSet()
"""Open slides whose content was noted before another could take their place on the disk."""


def learn_content(slide: Slide) -> None:
    """Note what is in a slide's file while it is the one that was opened; reads parts of it.

    Of a folder, which may hold very many files, it is read when a result is to be shown.

    Parameters
    ----------
    slide
        It has just been opened.
    """
    with suppress(OSError, SlideError):  # gone already: whoever reads it next says so
        if not in_memory(slide) and slide.path.is_file():
            fingerprint(slide)
            _learnt.add(slide)


def is_replaced(slide: ShownSlide, content: str) -> bool:
    """Return whether a slide's file was replaced since it was opened; reads nothing.

    Parameters
    ----------
    slide
        The slide that is shown.
    content
        Fingerprint of the file now; empty: not known.
    """
    opened = slide.opened
    known = bool(content) and opened is not None and opened in _learnt
    return known and opened is not None and fingerprint(opened) != content


def misfit(made_on: SlideInfo, model: str, slide: ShownSlide | Slide) -> str:
    """Return why a result does not belong to a slide of its name; not for the window's thread.

    Parameters
    ----------
    made_on
        The slide as the result states it.
    model
        Name of the model.
    slide
        The slide that is shown, or is going to be.

    Returns
    -------
    A sentence or two; empty if it belongs to the slide, as far as the result says.
    """
    if made_on.size is not None and tuple(made_on.size) != tuple(slide.size):
        have, want = ("{} x {} px".format(*size) for size in (slide.size, made_on.size))
        return (
            f"{model} was run on a slide of {want}, but slide {slide.id!r} has {have}; that is "
            "another file of the same name, so run the prediction again."
        )
    return replaced(made_on, model, slide) if _is_other(made_on, slide) else ""


def for_slide(entries: Iterable[Entry], slide: ShownSlide) -> list[Entry]:
    """Return the results of slides with a name, each with why it belongs to another slide.

    Not for the window's thread.

    Parameters
    ----------
    entries
        Of any slides.
    slide
        The slide that is shown.
    """
    named = (entry for entry in entries if entry.slide == slide.id)
    return [
        entry
        if entry.made_on is None
        else replace(entry, misfit=misfit(entry.made_on, entry.model, slide))
        for entry in named
    ]


def replaced(made_on: SlideInfo, model: str, slide: ShownSlide | Slide) -> str:
    """Return the sentence for a slide with other content than a result was made on.

    Parameters
    ----------
    made_on
        The slide as the result states it.
    model
        Name of the model.
    slide
        The slide with other content.
    """
    name = slide.id if slide.path is None else slide.path.name
    elsewhere = made_on.path is not None and not same_place(slide.path, made_on.path)
    other = f", or is another slide than {made_on.path}" if elsewhere else ""
    return (
        f"{name} was changed or replaced after {model} was run on it{other}: the maps may not fit; "
        "run the model again."
    )


def open_own(result: Result, file: Path | None = None) -> Slide | None:
    """Open the slide that a result was made on, where the one that is shown is another.

    Parameters
    ----------
    result
        It does not belong to the slide of its name that is shown.
    file
        Where the result's slide is now, if it has moved.

    Returns
    -------
    ``None`` if the slide cannot be opened, or does not fit the result either.
    """
    from slidelens.slide.open import open_slide

    mpp = None if is_stated(result.slide.mpp_source) else result.slide.resolution
    places: tuple[Path | str | None, ...] = (file, result.slide.path)
    for path in places:
        if path is None:
            continue
        with suppress(SlideError):
            slide = open_slide(path, mpp=mpp)
            if slide.id == result.slide.id and not misfit(result.slide, "", slide):
                return slide
            slide.close()
    return None


def same_file(one: Path | str | None, other: Path | str | None) -> bool:
    """Return whether two paths are the same, without a look at the disk, which may be slow.

    Parameters
    ----------
    one, other
        Files or folders; ``None`` is the same as nothing.
    """
    return one is not None and other is not None and Path(one).absolute() == Path(other).absolute()


def same_place(one: Path | str | None, other: Path | str | None) -> bool:
    """Return whether two paths lead to the same place, also by links.

    Parameters
    ----------
    one, other
        Files or folders, which need not exist; ``None`` leads nowhere.
    """
    if one is None or other is None:
        return False
    return same_file(one, other) or Path(one).resolve() == Path(other).resolve()


def _is_other(made_on: SlideInfo, slide: ShownSlide | Slide) -> bool:
    """Whether a slide's content is another than a result's, by its fingerprint or its own file."""
    from slidelens.slide.open import open_slide

    opened = slide if isinstance(slide, Slide) else slide.opened
    if opened is None:
        return False
    named, shown = made_on.path, slide.path
    if made_on.fingerprint or named is None or shown is None or same_place(shown, named):
        return is_other_content(opened, made_on)
    with suppress(OSError, SlideError), open_slide(named) as own:
        return fingerprint(own) != fingerprint(opened)
    return False
