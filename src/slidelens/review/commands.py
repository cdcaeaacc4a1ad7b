"""The commands that reproduce a report, starting from its slides."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any, NamedTuple

from slidelens.engine.fields import read_value
from slidelens.errors import listed
from slidelens.maps.run_settings import is_hidden, region_text
from slidelens.review.wording import changed_tissue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slidelens.maps.run_settings import RunSettings
    from slidelens.review.cards import ModelCard
    from slidelens.review.content import Content

__all__ = ["commands_of"]

_REGIONS = 8  # commands for one model, before regions are no longer listed


class _Command(NamedTuple):
    """Options of ``predict``, and the slides they apply to; ``()``: all."""

    options: str
    remarks: tuple[str, ...]
    slides: tuple[str, ...]


def commands_of(content: Content) -> str:
    """Return the commands from the slides to this report; fill in the names in capitals."""
    return "\n".join(
        [
            *_predict(content),
            _evaluate(content),
            "slidelens review EVALUATION import DECISIONS",
            _report(content),
        ]
    )


def _predict(content: Content) -> list[str]:
    """Return a command for everything that was run alike: all models, or only some slides."""
    models: dict[_Command, list[str]] = {}
    for card in content.cards:
        for command in _of_model(card):
            models.setdefault(command, []).append(card.name)
    places: dict[tuple[str, ...], str] = {(): "SLIDES"}
    lines = []
    for command, names in models.items():
        remarks = [f"# {', '.join(names)}: {text}" for text in command.remarks]
        if command.slides not in places:
            place = places[command.slides] = f"SLIDES_{len(places)}"
            remarks.append(f"# {place}: {listed([content.names[i] for i in command.slides])}")
        asked = " ".join(f"--model {shlex.quote(name)}" for name in names)
        place = places[command.slides]
        lines += [*remarks, f"slidelens predict {place} {asked}{command.options} --out RESULTS"]
    return lines


def _of_model(card: ModelCard) -> list[_Command]:
    if not card.runs:
        return [_Command("", ("its results are gone; how they were run is not known",), ())]
    each = len(card.runs) <= _REGIONS
    slides: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for run in card.runs:
        slides.setdefault(_options(run.settings, each), []).extend(run.slides)
    several = len(slides) > 1
    found = []
    for (options, remarks), ids in slides.items():
        mpp, remark = _mpp({card.given_mpp[i] for i in ids})
        command = _Command(options + mpp, (*remarks, *remark), tuple(ids) if several else ())
        found.append(command)
    return found


def _options(run: RunSettings | None, each_region: bool) -> tuple[str, tuple[str, ...]]:
    """Return a run's options, and remarks on what no option can state."""
    if run is None:
        return "", ("the results are of an older version and state neither region nor options",)
    text, remarks = "", []
    if run.region is not None:
        text += f" --region {region_text(run) if each_region else 'REGION'}"
        if not each_region:
            remarks.append("REGION differs from slide to slide, as each result.json states it")
    for name, value in run.options.items():
        shown = name.upper() if is_hidden(name, value) else _written(value)
        text += f" --set {shlex.quote(f'{name}={shown}')}"
    if run.precision != "auto":
        text += f" --precision {run.precision}"
    if tissue := changed_tissue(run):
        remarks.append(
            f"tissue was given or found in another way, which only Python takes: "
            f"{', '.join(tissue)}"
        )
    return text, tuple(remarks)


def _written(value: Any) -> str:
    """Write a value as ``--set`` reads it."""
    plain = isinstance(value, str) and read_value(value) == value
    return value if plain else json.dumps(value, ensure_ascii=False)


def _mpp(given: set[str]) -> tuple[str, tuple[str, ...]]:
    """Return ``--mpp`` for slides whose resolution was given: a number, a table, or nothing."""
    if given == {""}:
        return "", ()
    if given <= {"", "from-objective"}:
        return " --mpp from-objective", ()
    if len(given) == 1 and "TABLE" not in given:
        return f" --mpp {next(iter(given))}", ()
    return " --mpp TABLE", ("TABLE is a CSV of slide,mpp, for slides whose mpp_source says so",)


def _evaluate(content: Content) -> str:
    saved = content.saved
    interval = saved.metrics.get("interval") or {}
    point = {
        "given": f"{saved.rule.value}",
        "sensitivity": f"sensitivity={saved.rule.value}",
    }.get(saved.rule.kind, saved.rule.kind)
    measured = list((saved.metrics.get("models") or {}).values())
    options = ["--labels LABELS"]
    if content.cohort.split:
        options.append(f"--split {content.cohort.split}")
    options.append(f"--operating-point {point}")
    if saved.record.get("annotations"):
        options.append("--annotations ANNOTATIONS")
        options += _overlap(measured)
    options += [
        f"--resamples {interval.get('resamples', 10000)}",
        f"--seed {interval.get('seed', 0)}",
    ]
    if any(any((one.get("left_out") or {}).values()) for one in measured):
        options.append("--allow-missing")
    return f"slidelens evaluate RESULTS {' '.join(options)} --out EVALUATION"


def _overlap(measured: Sequence[dict[str, Any]]) -> list[str]:
    found = {(one.get("tiles") or {}).get("overlap") for one in measured} - {None, 0.5}
    return [f"--tile-overlap {value}" for value in found]


def _report(content: Content) -> str:
    options, usual = content.options, type(content.options)
    line = f"slidelens report EVALUATION --fields {options.fields}"
    if options.near_misses != usual.near_misses:
        line += f" --near {options.near_misses}"
    if options.rules is not None:
        line += "".join(
            f" --operating-point {shlex.quote(name)}:{one.figures['threshold']}"
            for name, one in content.measured.items()
            if one.figures["threshold"] is not None
        )
    if options.identify:
        line += " --identify"
    if options.reviewer is not None:  # in a report without names it is one of those to fill in
        line += f" --reviewer {shlex.quote(options.reviewer) if options.identify else 'REVIEWER'}"
    if options.title != usual.title:
        line += f" --title {shlex.quote(options.title)}"
    if options.slides is not None:
        line += " --slides SLIDES"
    return line + " --model PACKAGE" * len(options.packages) + " --out report.html"
