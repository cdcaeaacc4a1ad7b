"""How a report says what it knows: numbers, settings, decisions as text."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from slidelens.maps.palette import COLORMAPS, colormap
from slidelens.review.evidence import OPACITY
from slidelens.review.tally import LABEL_WRONG

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from slidelens.review.content import Content, SlideCase
    from slidelens.review.errors import Verdict

__all__ = ["HELPERS", "commands_of", "legend_css", "said_once", "settings_of"]


def said_once(notes: Iterable[str], models: Sequence[str]) -> list[str]:
    """Say what holds for several models (``MODEL: text``) in one sentence, in the order given."""
    names: dict[str, list[str]] = {}
    for note in notes:
        name, colon, text = note.partition(": ")
        if colon and name in models:
            names.setdefault(text, []).append(name)
        else:
            names.setdefault(note, [])
    return [f"{', '.join(whose)}: {text}" if whose else text for text, whose in names.items()]


def legend_css() -> str:
    """Return the legend's colour bars as they look on white, as in the pictures."""
    rules = []
    for kind in COLORMAPS:
        table = colormap(kind)[:: 255 // 15]
        alpha = table[:, 3:] * OPACITY
        colors = (255 * (table[:, :3] * alpha + 1 - alpha)).round().astype(int).tolist()
        stops = ", ".join(f"rgb({r}, {g}, {b})" for r, g, b in colors)
        rules.append(f".bar.{kind} {{ background: linear-gradient(to right, {stops}); }}\n")
    return "".join(rules)


def settings_of(content: Content) -> dict[str, str]:
    """Say what the figures depend on."""
    record, interval = content.saved.record, content.saved.metrics.get("interval") or {}
    rules = said_once(
        (f"{name}: {one.figures['threshold_rule']}" for name, one in content.measured.items()),
        content.models,
    )
    software = record.get("software", {})
    return {
        "Split": content.cohort.split or "all slides",
        "Labels (sha256)": content.cohort.labels_sha256 or "not stated",
        "Operating point": "; ".join(rules),
        "Intervals": f"{interval.get('level', 0.95):.0%}, {interval.get('resamples', '?')} "
        f"resamples, seed {interval.get('seed', '?')}",
        "Decisions": ", ".join(content.reviewers) or "none",
        "Evaluated with": ", ".join(f"{name} {version}" for name, version in software.items()),
        "Report made with": f"SlideLens {content.version}",
    }


def commands_of(content: Content) -> str:
    """Return the commands that lead from slides to this report; names in capitals are one's own."""
    interval = content.saved.metrics.get("interval") or {}
    split = f" --split {content.cohort.split}" if content.cohort.split else ""
    rule = content.saved.rule
    point = {
        "given": f"{rule.value}",
        "sensitivity": f"sensitivity={rule.value}",
    }.get(rule.kind, rule.kind)
    models = " ".join(f"--model {name}" for name in content.models)
    drawn = f"--resamples {interval.get('resamples', 10000)} --seed {interval.get('seed', 0)}"
    how = f"--labels LABELS{split} --operating-point {point} {drawn}"
    lines = [
        f"slidelens predict SLIDES {models} --out RESULTS",
        f"slidelens evaluate RESULTS {how} --out EVALUATION",
        "slidelens review EVALUATION import DECISIONS",
        f"slidelens report EVALUATION --fields {content.options.fields} --out report.html",
    ]
    if content.options.rules is not None:
        lines[-1] += "".join(
            f" --operating-point {name}:{one.figures['threshold']}"
            for name, one in content.measured.items()
            if one.figures["threshold"] is not None
        )
    return "\n".join(lines)


def _decided(case: SlideCase) -> list[dict[str, Any]]:
    """Group what one reviewer said alike on several methods."""

    def alike(one: Any) -> tuple[str, ...]:
        return (one.reviewer, one.category, one.true_label, one.note)

    found = []
    for (reviewer, source, true_label, note), group in groupby(
        sorted(case.decisions, key=alike), alike
    ):
        its = list(group)
        found.append(
            {
                "reviewer": reviewer,
                "source": source,
                "true_label": true_label,
                "note": note,
                "models": list(dict.fromkeys(d.model for d in its)),
                "time": max(d.time for d in its),
            }
        )
    return found


def _summary(case: SlideCase) -> str:
    """Say a slide's decisions in the list."""
    said = [d.category or LABEL_WRONG for d in case.decisions if d.decided]
    return "; ".join(dict.fromkeys(said)) or "not reviewed"


def _verdict(case: SlideCase, model: str) -> Verdict | None:
    return next((v for v in case.errors[0].verdicts if v.model == model), None)


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return "not defined"
    if 0 < value < 0.5 * 10**-digits:  # a margin of 0.000 would look like none
        return f"< {10**-digits:g}"
    return f"{value:.{digits}f}".replace("-", "−")


def _p_value(value: float | None) -> str:
    if value is None:
        return "not defined"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


HELPERS = {
    "number": _number,
    "p_value": _p_value,
    "whole": lambda value: f"{value:,.0f}",
    "count": lambda n, what: f"{n:,} {what}{'' if n == 1 else 's'}",
    "verdict": _verdict,
    "summary": _summary,
    "decided": _decided,
}
"""Functions that the templates call."""
