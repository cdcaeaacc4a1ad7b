"""How a result was run, as kept in ``result.json`` and as described without paths."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "HIDDEN",
    "RunGroup",
    "RunSettings",
    "config_texts",
    "counted",
    "grouped",
    "is_hidden",
    "region_text",
    "settings_warnings",
    "value_text",
]

HIDDEN = "not shown, as it may be a path"
WHOLE = "whole slide"

_SHOWN = 4  # different values of one thing; values that differ from slide to slide are only counted
_PLACE = re.compile(r"[~/\\]|[A-Za-z]:[\\/]|file:|\.\.?[\\/]")
_NETWORKS = ("backbone", "encoder")  # a plugin's are called `timm/<name>`


class RunSettings(BaseModel):
    """The settings of one run; together with slide and weights, all that its result depends on.

    Attributes
    ----------
    region
        x, y, w, h in level-0 px; ``None``: the whole slide.
    precision
        As requested; what ``auto`` resolved to is in the result's ``software``.
    config
        Fields of the model's configuration, as used.
    options
        Fields changed for the run (``predict --set``).
    tissue
        How tissue was found; ``{"method": "given"}`` for a mask that the caller gave.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    region: tuple[float, float, float, float] | None = None
    precision: str = "auto"
    config: dict[str, Any] = {}
    options: dict[str, Any] = {}
    tissue: dict[str, Any] = {}


class RunGroup(NamedTuple):
    """Slides (by id) of one model that were run alike; ``None`` if results do not state how."""

    settings: RunSettings | None
    slides: list[str]


def value_text(name: str, value: Any) -> str:
    """Return a field's value as text; a text that may be a path is not shown."""
    if is_hidden(name, value):
        return HIDDEN
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def is_hidden(name: str, value: Any) -> bool:
    """Return whether a field's value is, or holds, a text that may be a path."""
    if isinstance(value, dict):
        return any(is_hidden(name, part) for part in [*value, *value.values()])
    if isinstance(value, list | tuple):
        return any(is_hidden(name, part) for part in value)
    if not isinstance(value, str):
        return False
    if any(word in name for word in _NETWORKS):
        return bool(_PLACE.match(value)) or "\\" in value or "/../" in value
    return "/" in value or "\\" in value or bool(_PLACE.match(value))


def region_text(run: RunSettings) -> str:
    """Return the region that was run, in the form of ``--region``."""
    return WHOLE if run.region is None else ",".join(f"{n:.12g}" for n in run.region)


def grouped(runs: Mapping[str, RunSettings | None]) -> list[RunGroup]:
    """Group slides that were run alike, the largest group first.

    Fields that not all of them state are not compared: another version may have more of them.
    """
    common = _common([run for run in runs.values() if run is not None])
    found: dict[str, RunGroup] = {}
    for slide_id, run in runs.items():
        facts = None if run is None else run.model_dump(mode="json")
        if facts is not None:
            facts["config"] = {name: facts["config"].get(name) for name in common}
        key = json.dumps(facts, sort_keys=True)
        found.setdefault(key, RunGroup(run, [])).slides.append(slide_id)
    return sorted(found.values(), key=lambda group: -len(group.slides))


def config_texts(runs: Sequence[RunSettings]) -> dict[str, str]:
    """Return each field of the configurations used, with differences between slides."""
    return {
        name: counted(value_text(name, run.config[name]) for run in runs)
        for name in _common(runs)
        if any(run.config[name] is not None for run in runs)
    }


def settings_warnings(model: str, runs: Iterable[RunSettings]) -> list[str]:
    """Return what a reader of a model's figures must know about how its slides were run."""
    runs = list(runs)
    found = []
    parts = sum(run.region is not None for run in runs)
    if parts:
        which = "all slides" if parts == len(runs) else f"{parts} of {len(runs)} slides"
        found.append(
            f"{model}: of {which} only a region was predicted (--region); figures and errors are "
            "of these regions."
        )
    unlike = [f"{what} {text}" for what, text in _facts(runs).items() if " | " in text]
    if unlike:
        found.append(
            f"{model}: its slides were run with different settings: {'; '.join(unlike)}. Predict "
            "them with the same ones for figures that belong together."
        )
    return found


def counted(texts: Iterable[str]) -> str:
    """List the texts and, if there are several, the number of slides of each."""
    count = Counter(texts)
    if len(count) == 1:
        return next(iter(count))
    said_so = [f"{text} ({n} slide{'' if n == 1 else 's'})" for text, n in count.most_common()]
    more = len(said_so) - _SHOWN
    return " | ".join([*said_so[:_SHOWN], *([f"{more} others"] if more > 0 else [])])


def _facts(runs: Sequence[RunSettings]) -> dict[str, str]:
    """Describe all settings of the runs."""
    tissue = {name: None for run in runs for name in run.tissue}
    return {
        "region": counted(map(region_text, runs)),
        **config_texts(runs),
        "precision": counted(run.precision for run in runs),
        **{
            f"tissue {name}": counted(value_text(name, run.tissue.get(name)) for run in runs)
            for name in tissue
        },
    }


def _common(runs: Sequence[RunSettings]) -> list[str]:
    """Return the fields that all runs state, in order."""
    return [] if not runs else [n for n in runs[0].config if all(n in r.config for r in runs)]
