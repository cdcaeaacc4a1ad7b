"""Settings of the process, from ``SLIDELENS_*`` environment variables."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from slidelens.errors import SlideLensError

log = logging.getLogger(__name__)

__all__ = ["Settings", "config_dir", "cores", "get_settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the whole process; options of a run belong to its configuration.

    Attributes
    ----------
    cache
        Cache folder (``SLIDELENS_CACHE``); ``None``: the system's usual place.
    cache_mb
        Memory for decoded slide tiles, in MB (``SLIDELENS_CACHE_MB``).
    threads
        Reader threads; 0: chosen by the number of cores (``SLIDELENS_THREADS``).
    models
        Folder of model packages to search first (``SLIDELENS_MODELS``).
    """

    cache: Path | None = None
    cache_mb: int = 256
    threads: int = 0
    models: Path | None = None

    @property
    def cache_dir(self) -> Path:
        """Folder for what can be fetched or computed again: models, feature bags.

        Raises
        ------
        SlideLensError
            No folder is set, and the user has no home.
        """
        return self.cache or _usual_cache()

    @property
    def reader_threads(self) -> int:
        """Number of threads that read and decode tiles."""
        return self.threads or max(2, min(8, cores()))


@cache
def cores() -> int:
    """Return how many cores this process may use: of a cluster's node, those of its job."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def get_settings() -> Settings:
    """Read the environment once.

    Raises
    ------
    SlideLensError
        A variable that cannot be used, by name.
    """
    cache, models = os.environ.get("SLIDELENS_CACHE"), os.environ.get("SLIDELENS_MODELS")
    if models and not Path(models).is_dir():
        log.warning("SLIDELENS_MODELS names %s, which is not a folder: create or unset it", models)
    return Settings(
        cache=Path(cache) if cache else None,
        cache_mb=_whole("SLIDELENS_CACHE_MB", 256),
        threads=_whole("SLIDELENS_THREADS", 0),
        models=Path(models) if models else None,
    )


def config_dir() -> Path:
    """Return the folder of what the user has decided: it is not shared, as a cache may be.

    Raises
    ------
    SlideLensError
        The user has no home.
    """
    given = os.environ.get("APPDATA" if sys.platform == "win32" else "XDG_CONFIG_HOME")
    if given and sys.platform != "darwin":
        return Path(given) / "slidelens"
    places = {"darwin": "Library/Application Support", "win32": "AppData/Roaming"}
    home = _home("settings in: set HOME to a folder.")
    return home / places.get(sys.platform, ".config") / "slidelens"


def _usual_cache() -> Path:
    local = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    if local and sys.platform != "darwin":
        return Path(local) / "slidelens"
    home = _home("a cache in: set SLIDELENS_CACHE to a folder.")
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "slidelens"


def _home(to_keep: str) -> Path:
    try:
        return Path.home()
    except RuntimeError as error:  # a container's or service's user, whom the system does not know
        raise SlideLensError(f"the user has no home folder to keep {to_keep}") from error


def _whole(name: str, default: int) -> int:
    text = os.environ.get(name)
    if not text:
        return default
    if not text.isdecimal():
        raise SlideLensError(
            f"environment variable {name} is {text!r}: expected a whole number, 0 or more."
        )
    return int(text)
