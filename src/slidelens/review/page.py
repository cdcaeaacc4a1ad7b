"""What the report's templates get besides its content: rows, styles and functions."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from slidelens.errors import listed
from slidelens.maps.palette import COLORMAPS, colormap
from slidelens.maps.run_settings import counted, region_text, value_text
from slidelens.review.evidence import OPACITY
from slidelens.review.tally import LABEL_WRONG
from slidelens.review.wording import changed_tissue, merge_notes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slidelens.maps.run_settings import RunSettings
    from slidelens.review.cards import ModelCard
    from slidelens.review.content import Content
    from slidelens.review.errors import Verdict
    from slidelens.review.slide_cases import SlideCase

__all__ = ["HELPERS", "legend_css", "run_rows", "settings_rows"]


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


def settings_rows(content: Content) -> dict[str, str]:
    """Describe what the figures depend on."""
    record, interval = content.saved.record, content.saved.metrics.get("interval") or {}
    rules = merge_notes(
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


def run_rows(content: Content) -> list[tuple[str, ...]]:
    """Describe how each method was run: a row for all slides run alike.

    The cells are the method, slides, region, fields that were changed, precision, how tissue was
    found, and the source of the slides' resolution.
    """
    rows = []
    for card in content.cards:
        for run in card.runs:
            number = f"{len(run.slides)} of {card.results}"
            if len(card.runs) > 1:
                number += f": {listed([content.names[slide_id] for slide_id in run.slides])}"
            rows.append((card.name, number, *_asked(run.settings), _given(card, run.slides)))
    return rows


def _asked(run: RunSettings | None) -> tuple[str, ...]:
    if run is None:
        return ("not stated",) * 4
    options = ", ".join(f"{name} {value_text(name, value)}" for name, value in run.options.items())
    tissue = ", ".join(changed_tissue(run)) or "as usual"
    return region_text(run), options or "nothing", run.precision, tissue


def _given(card: ModelCard, slides: Sequence[str]) -> str:
    """Describe the resolutions that were given for slides."""
    words = {"": "of the file", "TABLE": "by a table", "from-objective": "from the objective"}
    given = (card.given_mpp[slide_id] for slide_id in slides)
    return counted(words.get(text, f"given: {text} µm/px") for text in given)


def _decided(case: SlideCase) -> list[dict[str, Any]]:
    """Group equal decisions of one reviewer on several methods."""

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
    """Return the text for a slide's decisions in the list."""
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
