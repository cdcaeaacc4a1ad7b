"""Categories of errors: the streaming paper's, or the user's own file."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from slidelens.errors import ResultError
from slidelens.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "TAXONOMY",
    "TAXONOMY_FILE",
    "Kind",
    "Taxonomy",
    "no_category",
    "read_taxonomy",
    "save_taxonomy",
    "write_taxonomy",
]

Kind = Literal["fp", "fn"]
Taxonomy = dict[Kind, tuple[str, ...]]

TAXONOMY_FILE = "taxonomy.toml"

TAXONOMY: Mapping[Kind, tuple[str, ...]] = {
    "fp": (
        "Normal mimicking tumor",
        "Inflammation",
        "Tissue artefacts",
        "Bladder epithelium",
        "Colon epithelium",
    ),
    "fn": (
        "Little amount of tumor",
        "Tissue artefacts",
        "Low-grade tumor",
        "Inflammation-like",
        "Unclear reason",
    ),
}
"""Possible sources of errors (streaming-prostate-2020, Table III)."""

_KEYS: Mapping[str, Kind] = {"false_positives": "fp", "false_negatives": "fn"}
_HEAD = """\
# Categories of errors, in the order in which they are listed. Edit them to suit your organ.
# Decisions with a category that is no longer listed keep it, and are still counted.
"""


def read_taxonomy(folder: str | Path) -> Taxonomy:
    """Read ``taxonomy.toml`` of an evaluation folder; without one, :data:`TAXONOMY`.

    Raises
    ------
    ResultError
        The file is damaged, or lacks one of its two lists.
    """
    path = Path(folder) / TAXONOMY_FILE
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return dict(TAXONOMY)
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: cannot be read ({error}); repair or delete it.") from error
    return {kind: _names(path, key, content.get(key)) for key, kind in _KEYS.items()}


def no_category(folder: str | Path, kind: Kind, category: str, taxonomy: Taxonomy) -> str:
    """Return the message for an unknown category: the known ones, and how to add one.

    Parameters
    ----------
    folder
        The evaluation's.
    kind, category
        Of the error, and as given.
    taxonomy
        The categories that are known.
    """
    names: dict[Kind, str] = {"fp": "false positives", "fn": "false negatives"}
    others = [names[other] for other, known in taxonomy.items() if category in known]
    of = f" (it is one of {' and '.join(others)})" if others else ""
    return (
        f"no category {category!r} of {names[kind]}{of}: {', '.join(taxonomy[kind])}; "
        f"`slidelens review {folder} taxonomy --edit` writes the file to add one to"
    )


def write_taxonomy(folder: str | Path) -> Path:
    """Write the default categories for editing; an existing file stays as it is.

    Raises
    ------
    ResultError
        A folder that cannot be written.
    """
    path = Path(folder) / TAXONOMY_FILE
    if not path.exists():
        save_taxonomy(folder, TAXONOMY)
    return path


def save_taxonomy(folder: str | Path, taxonomy: Mapping[Kind, Sequence[str]]) -> Path:
    """Replace the categories.

    Raises
    ------
    ResultError
        The folder cannot be written, a list is empty, or a category is named twice.
    """
    path = Path(folder) / TAXONOMY_FILE
    names = {key: _names(path, key, list(taxonomy[kind])) for key, kind in _KEYS.items()}
    lists = "".join(f"\n{key} = [\n{_lines(found)}]\n" for key, found in names.items())
    try:
        write_atomic(path, _HEAD + lists)
    except OSError as error:
        raise ResultError(
            f"{path}: cannot be written ({error.strerror or error}); copy the evaluation folder to "
            "a place where you may write."
        ) from error
    return path


def _lines(names: Iterable[str]) -> str:
    # A JSON string is a TOML string too.
    return "".join(f"    {json.dumps(name, ensure_ascii=False)},\n" for name in names)


def _names(path: Path, key: str, value: Any) -> tuple[str, ...]:
    good = isinstance(value, list) and all(isinstance(v, str) and v.strip() for v in value)
    if not good or not value:
        raise ResultError(f'{path}: {key} must be a list of names, such as {key} = ["..."].')
    names = tuple(v.strip() for v in value)
    if len(set(names)) < len(names):
        raise ResultError(f"{path}: {key} names a category twice.")
    return names
