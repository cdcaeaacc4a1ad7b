"""What an exporter is: a name, a sentence, a suffix and one function."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slidelens.errors import PluginError, ResultError, SlideLensError
from slidelens.files import names_folder, staged
from slidelens.registry import Registry
from slidelens.slide.open import is_slide

if TYPE_CHECKING:
    from collections.abc import Callable

    from slidelens.maps.result import Result

__all__ = ["EXPORTERS", "Exporter", "check_written", "export_result", "export_target"]


@dataclass(frozen=True)
class Exporter:
    """A format that other programs read.

    Attributes
    ----------
    name, about
        Key, as in ``--to``, and one sentence.
    suffix
        End of the file's (or folder's) name.
    write
        ``write(result, path)`` makes the file or folder, whole or not at all; raises
        ``ResultError`` if the result lacks what the format holds.
    folder
        Whether it makes a folder: a path that ends in ``suffix`` is then what is written, also
        where it is there already or ends in a slash.
    """

    name: str
    about: str
    suffix: str
    write: Callable[[Result, Path], None]
    folder: bool = False


EXPORTERS: Registry[Exporter] = Registry(
    "slidelens.exporters",
    "slidelens.export.base:Exporter",
    {
        "geojson": "slidelens.export.geojson:EXPORTER",
        "ome-zarr": "slidelens.export.omezarr:EXPORTER",
        "clam-h5": "slidelens.export.clam:EXPORTER",
        "wsinfer-csv": "slidelens.export.wsinfer:EXPORTER",
        "camelyon16-csv": "slidelens.export.camelyon:EXPORTER",
        "contact-sheet": "slidelens.export.contact_sheet:EXPORTER",
        "lesions-csv": "slidelens.export.lesions:EXPORTER",
    },
)


def export_result(result: Result, to: str, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a result in another program's format.

    Parameters
    ----------
    result
        What to export.
    to
        Name of an exporter.
    path
        The file (or OME-Zarr folder) to write; or a folder (an existing one, or text that ends in
        a slash) to write ``<slide id><suffix>`` into.
    overwrite
        Replace an existing file.

    Returns
    -------
    The path that was written.

    Raises
    ------
    ResultError
        An unknown format, a result that lacks what the format needs, a path that cannot be written,
        or one that exists.
    PluginError
        A plugin's exporter that does not load, raises any other error, or writes something else.
    """
    target = export_target(result, to, path, overwrite=overwrite)
    exporter = EXPORTERS.get(to)
    try:
        if to not in EXPORTERS.plugins():
            exporter.write(result, target)
        else:
            with staged(target) as place:  # whole or not at all, whatever the plugin does
                exporter.write(result, place)
                check_written(exporter, place)
    except SlideLensError:  # of a slide that cannot be read, too, which is an OSError
        raise
    except OSError as error:
        raise ResultError(f"{target}: cannot be written ({error.strerror or error}).") from error
    except Exception as error:  # reason: a plugin may raise anything
        if to not in EXPORTERS.plugins():
            raise
        raise PluginError(
            f"plugin {to!r} (group {EXPORTERS.group}) failed to write {target}: "
            f"{type(error).__name__}: {error}."
        ) from error
    return target


def check_written(exporter: Exporter, path: str | Path) -> None:
    """Raise a ``PluginError`` where what an exporter wrote at ``path`` is not what it makes."""
    path = Path(path)
    if not path.exists() or path.is_dir() != exporter.folder:
        made = "a folder" if path.is_dir() else "a file" if path.exists() else "nothing"
        raise PluginError(
            f"exporter {exporter.name!r} wrote {made} at {path.name}; expected "
            f"{'a folder' if exporter.folder else 'a file'} (which of them its `folder` says)."
        )


def export_target(result: Result, to: str, path: str | Path, *, overwrite: bool = False) -> Path:
    """Return what :func:`export_result` would write.

    Parameters
    ----------
    result, to, path, overwrite
        As there.

    Raises
    ------
    ResultError
        No such format, a place that is taken, or one that cannot be.
    """
    if to not in EXPORTERS:
        raise ResultError(f"no format {to!r}; there are {', '.join(EXPORTERS)}.")
    exporter = EXPORTERS.get(to)
    place = Path(path)
    # What an earlier export made under another name is no folder to write into unless asked for.
    made = os.path.lexists(place / "zarr.json") and not str(path).endswith(("/", os.sep))
    whole = exporter.folder and (made or place.name.endswith(exporter.suffix))
    if whole or not names_folder(path):
        if place.is_file() and is_slide(place):
            raise ResultError(f"{place}: is a slide, which is not replaced; choose another name.")
        target = place
    else:
        target = place / f"{result.slide.id}{exporter.suffix}"
    try:
        taken = target.exists()
    except OSError as error:  # such as a name that is too long with its ending
        raise ResultError(f"{target}: cannot be written ({error.strerror or error}).") from error
    if taken and not overwrite:  # annotations, say, which have the same name
        raise ResultError(
            f"{target}: is there already, and perhaps someone's work. Export to another "
            "place, or give --overwrite (overwrite=True)."
        )
    return target
