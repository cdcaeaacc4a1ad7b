"""A new plugin from the example: the same files, with another name."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

import slidelens
from slidelens.errors import PluginError
from slidelens.families import FAMILIES
from slidelens.files import staged_folder

__all__ = ["new_plugin"]

_EXAMPLE = "slidelens-example"
_LEFT_OUT = {"__pycache__", ".pytest_cache", "dist", "build"}


def new_plugin(name: str, folder: str | Path | None = None) -> Path:
    """Write the project of a plugin that brings a model family; it runs as it is.

    Parameters
    ----------
    name
        Of the family: lower case letters, digits and ``-``, such as ``colour-mil``.
    folder
        Where to write; ``slidelens-NAME`` in the current folder when it is not given.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    PluginError
        A name that cannot be used or is taken.
    ResultError
        A folder that is not empty.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise PluginError(
            f"{name!r} cannot be a plugin's name: use lower case letters, digits and '-', and "
            "begin with a letter, such as colour-mil."
        )
    if name in FAMILIES:
        raise PluginError(f"there is a family {name!r} already; choose another name.")
    target = Path(folder) if folder is not None else Path(f"slidelens-{name}")
    source = _template()
    with staged_folder(target, ()) as staging:
        for path in sorted(source.rglob("*")):
            part = path.relative_to(source)
            if path.is_dir() or _LEFT_OUT & set(part.parts) or ".egg-info" in str(part):
                continue
            made = staging / _renamed(str(part), name)
            made.parent.mkdir(parents=True, exist_ok=True)
            made.write_text(_renamed(path.read_text(encoding="utf-8"), name), encoding="utf-8")
    return target


def _renamed(text: str, name: str) -> str:
    module, title = name.replace("-", "_"), name.replace("-", " ")
    text = text.replace("slidelens-example", f"slidelens-{name}")
    text = text.replace("slidelens_example", f"slidelens_{module}")
    text = text.replace("Example family", f"{title.capitalize()} family")
    text = text.replace("TestExample", f"Test{title.title().replace(' ', '')}")
    # The family's name stands alone: as an entry point, a string or a word of the command line.
    return re.sub(r"(?<![\w-])example(?![\w-])", name, text)


def _template() -> Path:
    """Return the example's folder: in a source checkout, else as the wheel brought it."""
    home = Path(slidelens.__file__).resolve().parent
    for place in (home.parent.parent / "plugins" / _EXAMPLE, home / "_template"):
        if (place / "pyproject.toml").is_file():
            return place
    raise PluginError("this installation lacks the template of plugins; install slidelens again.")
