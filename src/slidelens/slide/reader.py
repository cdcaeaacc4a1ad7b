"""The interface of a backend: facts of a file, and native pixels of one level."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from slidelens.errors import SlideError
from slidelens.geometry import Mpp, Size

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Facts", "Level", "Reader", "closed", "levels_of", "unreadable"]

_REASON = 300  # letters


class Level(NamedTuple):
    """One stored resolution.

    ``downsample`` is level-0 px per px (a float, never rounded), ``size`` is in px.
    """

    downsample: float
    size: Size


@dataclass(frozen=True)
class Facts:
    """Facts of a slide file, known without decoding pixels.

    Attributes
    ----------
    levels
        Finest first.
    mpp, mpp_source
        µm per level-0 px, and the header that states it; ``None`` if none does.
    objective_power
        Magnification of the objective; ``None`` if the file does not state it.
    properties
        Every other header field as text, ``openslide.bounds-*`` included.
    associated_images
        Names of label, macro and thumbnail images, whose pixels are not read.
    channels
        Names of fluorescence channels; empty for RGB.
    """

    levels: tuple[Level, ...]
    mpp: Mpp | None = None
    mpp_source: str | None = None
    objective_power: float | None = None
    properties: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    associated_images: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()


class Reader(ABC):
    """One open slide file.

    A plugin adds a subclass in the entry-point group ``slidelens.slides``; the name of the entry is
    that of the backend. ``read`` is called from many threads at once. Any fault of the file is
    raised as a :class:`~slidelens.errors.SlideError`.

    Parameters
    ----------
    path
        An existing file or folder that :meth:`sniff` accepted.
    """

    backend: ClassVar[str]
    facts: Facts

    @abstractmethod
    def __init__(self, path: Path) -> None: ...

    @classmethod
    @abstractmethod
    def sniff(cls, path: Path, head: bytes) -> bool:
        """Return whether this backend should read ``path``, judging by its content.

        ``head`` holds the first bytes of a file and is empty for a folder.
        """

    @abstractmethod
    def read(self, level: int, x: int, y: int, w: int, h: int) -> NDArray[np.uint8]:
        """Read ``(h, w, 3)`` RGB at (x, y) in px of ``level``; the box lies within the level."""

    def read_associated(self, name: str) -> NDArray[np.uint8]:
        """Read one of ``facts.associated_images`` as ``(H, W, 3)`` uint8 RGB, else ``KeyError``."""
        raise KeyError(name)

    def icc_profile(self) -> bytes | None:
        """Return the embedded ICC profile, if there is one."""
        return None

    def other_files(self) -> list[Path]:
        """Return the files that the slide consists of besides ``path`` itself.

        Of a folder none is named. By them a slide is recognised as changed.
        """
        return []

    def notes(self) -> list[str]:
        """Return notes for users on how the file is read, a sentence each; may read pixels."""
        return []

    @abstractmethod
    def close(self) -> None:
        """Close all files; may be called more than once."""


def levels_of(sizes: list[tuple[int, int]]) -> tuple[Level, ...]:
    """Make levels of (width, height) pairs; a downsample is the mean of the two ratios."""
    w0, h0 = sizes[0]
    return tuple(Level((w0 / w + h0 / h) / 2, Size(w, h)) for w, h in sizes)


def closed(path: Path) -> SlideError:
    """Return the error of a read that continues while the slide at ``path`` is closed."""
    return SlideError(f"{path}: was closed while it was read.")


def unreadable(path: Path, error: BaseException, what: str = "cannot be read") -> SlideError:
    """Return the error for a file that broke its parser: ``path``, ``what`` failed, its reason."""
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if len(reason) > _REASON:  # some show all the bytes that they could not read
        reason = reason[:_REASON] + " ..."
    return SlideError(f"{path}: {what} ({reason}).")
