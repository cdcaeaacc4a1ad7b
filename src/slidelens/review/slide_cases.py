"""Slides with errors, as a report shows them: all that methods got wrong, and what was decided."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from slidelens.review.tally import as_labelled, label_votes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from slidelens.review.errors import ErrorCase
    from slidelens.review.evaluation import SavedEvaluation
    from slidelens.review.store import Decision

__all__ = ["SlideCase", "slide_cases"]


class SlideCase(NamedTuple):
    """One slide with all its errors, as the report shows it.

    Attributes
    ----------
    name
        Its pseudonym, or its id.
    key
        Its anchor in the document.
    errors
        One for each method that is wrong (two with more than two classes).
    decisions
        Of all of them.
    new_label
        The label that most reviewers consider right instead, if any.
    """

    name: str
    key: str
    label: str
    patient: str | None
    errors: tuple[ErrorCase, ...]
    decisions: tuple[Decision, ...]
    new_label: str | None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of its errors: fp, fn or both."""
        return tuple(kind for kind in ("fp", "fn") if any(e.kind == kind for e in self.errors))

    @property
    def wrong(self) -> set[str]:
        """Methods that are wrong."""
        return {e.model for e in self.errors}

    @property
    def margin(self) -> float:
        """The largest margin of its errors."""
        return max(e.margin for e in self.errors)

    @property
    def suspect(self) -> bool:
        """Whether all methods contradict its label confidently."""
        return any(e.suspect for e in self.errors)

    @property
    def decided(self) -> bool:
        """Whether a source is given for each of its errors."""
        done = {d.key for d in self.decisions if d.decided}
        return all(e.key in done for e in self.errors)


def slide_cases(
    saved: SavedEvaluation,
    errors: Sequence[ErrorCase],
    decisions: Sequence[Decision],
    names: Mapping[str, str],
    identify: bool,
) -> list[SlideCase]:
    """Gather errors and decisions by slide, the most confident error first.

    Parameters
    ----------
    saved
        The evaluation.
    errors, decisions
        Of all its slides. Decisions that a corrected label has settled are not shown.
    names
        Slide id to what the report calls it.
    identify
        Whether to name the patients.
    """
    of_slide: dict[str, list[ErrorCase]] = defaultdict(list)
    for error in errors:
        of_slide[error.slide_id].append(error)
    said: dict[str, list[Decision]] = defaultdict(list)
    for decision in as_labelled(decisions, saved.labels):
        said[decision.slide_id].append(decision)
    votes = label_votes(decisions, saved.labels)
    found = []
    for slide_id, its in of_slide.items():
        keys = {e.key for e in its}
        vote = votes.get(slide_id)
        found.append(
            SlideCase(
                name=names[slide_id],
                key="",
                label=saved.labels[slide_id],
                patient=its[0].patient if identify else None,
                errors=tuple(its),
                decisions=tuple(d for d in said[slide_id] if d.key in keys),
                new_label=None if vote is None else vote.label,
            )
        )
    found.sort(key=lambda case: (-case.margin, case.name))
    return [case._replace(key=f"case-{number}") for number, case in enumerate(found, 1)]
