"""How errors and decisions are printed, as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from slidelens.review.errors import ErrorCase
    from slidelens.review.store import CaseKey, Decision

__all__ = ["decision_json", "decision_text", "error_json", "error_row", "print_table"]


def error_row(
    case: ErrorCase, names: dict[str, str], decisions: Mapping[CaseKey, Sequence[Decision]]
) -> tuple[str, ...]:
    """Return an error as the cells of a line."""
    others = ", ".join(
        f"{v.model} {'right' if v.right else 'wrong'} {v.score:.2f}" for v in case.others
    )
    said = "; ".join(f"{d.reviewer}: {decision_text(d)}" for d in decisions.get(case.key, ()))
    mark = " ?" if case.suspect else ""
    return (
        case.model,
        case.slide_id,
        names[case.slide_id],
        case.kind.upper() + mark,
        f"{case.score:.3f}",
        f"{case.margin:.3g}",
        others,
        said,
    )


def error_json(
    case: ErrorCase, names: dict[str, str], decisions: Mapping[CaseKey, Sequence[Decision]]
) -> dict[str, Any]:
    """Return an error as it stands in JSON."""
    return {
        "model": case.model,
        "slide_id": case.slide_id,
        "pseudonym": names[case.slide_id],
        "kind": case.kind,
        "label": case.label,
        "predicted": case.predicted,
        "class": case.target,
        "score": case.score,
        "margin": case.margin,
        "threshold": case.threshold,
        "label_suspect": case.suspect,
        "verdicts": [v._asdict() for v in case.verdicts],
        "decisions": [decision_json(d) for d in decisions.get(case.key, ())],
    }


def decision_json(decision: Decision) -> dict[str, Any]:
    """Return a decision as it stands in JSON."""
    return asdict(decision) | {"label_is_wrong": decision.label_is_wrong}


def decision_text(decision: Decision) -> str:
    """Describe a decision in one line."""
    parts = [decision.category]
    if decision.label_is_wrong:
        parts.append(f"label is wrong, {decision.true_label} is right")
    if decision.note:
        note = " ".join(decision.note.split())
        parts.append(f"“{note if len(note) <= 60 else note[:59] + '…'}”")
    return ", ".join(part for part in parts if part) or "withdrawn"


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns as wide as their longest text."""
    texts = [header, *rows]
    widths = [max(len(row[c]) for row in texts) for c in range(len(header))]
    for row in texts:
        line = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        typer.echo(line.rstrip())
