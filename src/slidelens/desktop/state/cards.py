"""Model cards: what a model is for, what it was trained on, what it must not be used for."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slidelens.desktop.state.form import FormField, fields_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["RESEARCH_ONLY", "Card", "Choice", "FamilyCard", "cards_of", "families_of"]

RESEARCH_ONLY = "Research use only. Not for diagnosis."

_EXPLAINED = (
    "balanced accuracy",
    "balanced accuracy (the mean of sensitivity and specificity)",
)


@dataclass(frozen=True)
class Choice:
    """An entry of a list: its name in the program, and its title for people."""

    name: str
    title: str


@dataclass(frozen=True)
class Card:
    """A model package as shown to people; ``error`` says why it cannot be run."""

    name: str
    path: Path
    family: str
    classes: tuple[str, ...]
    error: str
    options: tuple[FormField, ...]
    lines: tuple[tuple[str, str], ...]
    """Heading and text, in order."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Fields of its family's configuration."""
    weights: str | None = None
    """Their checksum; None if the package does not state it."""

    @property
    def html(self) -> str:
        """The card as simple HTML."""
        parts = [f"<b>{escape(self.name)}</b>"]
        if self.error:
            parts.append(f"<p><b>Cannot be run.</b> {escape(self.error)}</p>")
        rows = "".join(
            f"<tr><td style='padding-right:8px'><i>{escape(head)}</i></td>"
            f"<td>{escape(text)}</td></tr>"
            for head, text in self.lines
        )
        parts.append(f"<table>{rows}</table><p><b>{RESEARCH_ONLY}</b></p>")
        return "".join(parts)


@dataclass(frozen=True)
class FamilyCard:
    """A family that can be trained; ``annotated``: it learns from outlines."""

    name: str
    title: str
    about: str
    presets: tuple[str, ...]
    config: tuple[FormField, ...]
    training: tuple[FormField, ...]
    annotated: bool = False


def cards_of(models: Iterable[Mapping[str, Any]]) -> list[Card]:
    """Make the cards of the worker's catalogue: those that can be run first, by name."""
    cards = [_card(facts) for facts in models]
    return sorted(cards, key=lambda c: (bool(c.error), c.name.lower()))


def families_of(families: Iterable[Mapping[str, Any]]) -> list[FamilyCard]:
    """Make the cards of the families that can be trained."""
    return [
        FamilyCard(
            facts["name"],
            facts["title"],
            facts["about"],
            tuple(facts["presets"]),
            tuple(fields_of(facts["config"])),
            tuple(fields_of(facts["training"])),
            facts["annotated"],
        )
        for facts in families
        if facts["trains"]
    ]


def _card(facts: Mapping[str, Any]) -> Card:
    lines = [
        ("Intended use", facts.get("intended_use")),
        ("About", facts.get("about")),
        ("Method", _method(facts)),
        ("Resolution", _resolution(facts)),
        ("Classes", ", ".join(facts.get("classes", ()))),
        ("Trained on", _training_data(facts.get("training_data"))),
        ("Performance", _metrics(facts.get("metrics") or {})),
        ("Threshold", _threshold(facts)),
        ("Licence", facts.get("licence") or ("not stated" if facts.get("family") else None)),
        ("Folder", facts["path"]),
    ]
    return Card(
        facts["name"],
        Path(facts["path"]),
        facts.get("family", ""),
        tuple(facts.get("classes", ())),
        facts.get("error") or "",
        tuple(fields_of(facts.get("options", ()))),
        tuple((head, str(text)) for head, text in lines if text),
        dict(facts.get("config") or {}),
        facts.get("weights_sha256"),
    )


def _method(facts: Mapping[str, Any]) -> str:
    title = facts.get("title", facts.get("family", ""))
    return f"{title}. {facts['family_about']}" if facts.get("family_about") else str(title)


def _resolution(facts: Mapping[str, Any]) -> str:
    mpp, tile = facts.get("mpp"), facts.get("tile_size")
    if not mpp:
        return ""
    times = f"{10 / mpp:g}x, {mpp:g} µm/px"
    return f"{times}, tiles of {tile} px ({tile * mpp:.0f} µm)" if tile else times


def _training_data(data: Any) -> str:
    """Put it into words if the trainer wrote it; otherwise show it unchanged."""
    if isinstance(data, str):
        return data
    if not isinstance(data, dict):
        return ""
    parts = []
    if data.get("from"):
        parts.append(f"fine-tuned from {data['from']}")
    counts = data.get("slides")
    if isinstance(counts, dict):
        for split, by_class in counts.items():
            if isinstance(by_class, dict):
                listed = ", ".join(f"{n} {name}" for name, n in by_class.items())
                parts.append(f"{split}: {listed}")
    elif counts:
        parts.append(f"{counts} slides")
    if data.get("labels"):
        parts.append(str(data["labels"]))
    return "; ".join(parts) or _plain(data)


def _metrics(metrics: Mapping[str, Any]) -> str:
    auc, slides = metrics.get("auc"), metrics.get("slides")
    if not isinstance(auc, int | float):
        return ""
    where = f" on {slides} slides" if slides else ""
    split = f" of split {metrics['split']}" if metrics.get("split") else ""
    note = f" ({metrics['note']})" if metrics.get("note") else ""
    return f"AUC {auc:.3f}{where}{split}{note}"


def _threshold(facts: Mapping[str, Any]) -> str:
    """Say what a threshold means, and how it was chosen if the package states that."""
    threshold, rule = facts.get("threshold"), facts.get("threshold_rule")
    if not isinstance(threshold, int | float):
        return ""
    chosen = f". How it was chosen: {str(rule).replace(*_EXPLAINED)}" if rule else ""
    return f"{facts['classes'][-1]} from {threshold:.3g} on{chosen}"


def _plain(data: Mapping[str, Any]) -> str:
    simple: Sequence[str] = [
        f"{key.replace('_', ' ')}: {value}"
        for key, value in data.items()
        if isinstance(value, str | int | float)
    ]
    return "; ".join(simple)
