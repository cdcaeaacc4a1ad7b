"""How runs and notes are worded, in reports and on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slidelens.maps.run_settings import region_text, value_text
from slidelens.tiling.tissue import TissueSettings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from slidelens.maps.run_settings import RunSettings

__all__ = ["changed_tissue", "describe_run", "merge_notes"]


def merge_notes(notes: Iterable[str], models: Sequence[str]) -> list[str]:
    """Merge notes that are the same for several models (``MODEL: text``), in the given order."""
    names: dict[str, list[str]] = {}
    for note in dict.fromkeys(notes):
        name, colon, text = note.partition(": ")
        if colon and name in models:
            names.setdefault(text, []).append(name)
        else:
            names.setdefault(note, [])
    return [f"{', '.join(whose)}: {text}" if whose else text for text, whose in names.items()]


def describe_run(run: RunSettings) -> str:
    """Return the settings of a run in one line."""
    parts = ["whole slides" if run.region is None else f"region {region_text(run)}"]
    parts += [f"{name} {value_text(name, value)}" for name, value in run.options.items()]
    if run.precision != "auto":
        parts.append(f"precision {run.precision}")
    return ", ".join([*parts, *(f"tissue {text}" for text in changed_tissue(run))])


def changed_tissue(run: RunSettings) -> list[str]:
    """Describe how tissue was found, if not by default."""
    usual = TissueSettings().model_dump(mode="json")
    return [f"{k} {value_text(k, v)}" for k, v in run.tissue.items() if usual.get(k) != v]
