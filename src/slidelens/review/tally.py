"""Summaries of decisions: causes of errors, agreement between reviewers, wrong labels."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from slidelens.engine import metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from slidelens.review.errors import ErrorCase
    from slidelens.review.store import CaseKey, Decision
    from slidelens.review.taxonomy import Kind, Taxonomy

__all__ = [
    "DISAGREED",
    "LABEL_WRONG",
    "NOT_REVIEWED",
    "Agreement",
    "CauseTable",
    "LabelVote",
    "agreement",
    "as_labelled",
    "cause_tables",
    "consensus",
    "earlier_notes",
    "label_votes",
]

LABEL_WRONG = "Label is wrong"
"""The source of an error if a reviewer finds the label wrong and chooses no category."""
DISAGREED = "Reviewers disagree"
NOT_REVIEWED = "Not reviewed"


@dataclass(frozen=True)
class CauseTable:
    """Sources of the false positives or negatives of every method (Table III of the paper).

    Attributes
    ----------
    kind
        Of the errors: false positives or false negatives.
    totals
        Method to its number of errors; the sum of its column.
    rows
        Source of error to each method's count, in the order of the taxonomy.
    wrong_labels
        Method to the number of its errors on slides whose label was found wrong.
    """

    kind: Kind
    totals: Mapping[str, int]
    rows: Mapping[str, Mapping[str, int]]
    wrong_labels: Mapping[str, int]


class Agreement(NamedTuple):
    """How far two reviewers agree on the cases that both decided.

    Attributes
    ----------
    first, second
        Their names.
    about
        The source of the error, or the slide's label.
    cases, same
        How many cases both decided, and on how many they agree.
    kappa
        Cohen's; ``None`` if it is not defined: both always said the same thing.
    """

    first: str
    second: str
    about: Literal["source", "label"]
    cases: int
    same: int
    kappa: float | None


class LabelVote(NamedTuple):
    """What reviewers think of a slide's label.

    Attributes
    ----------
    label
        The class that more than half of the slide's reviewers consider right instead of its label;
        ``None`` if there is none.
    disputed
        Whether some find the label wrong, but not more than half agree on another class.
    """

    label: str | None
    disputed: bool


def consensus(decisions: Iterable[Decision]) -> dict[CaseKey, str]:
    """Return the source of error that most reviewers chose, by case; a tie is :data:`DISAGREED`."""
    votes: dict[CaseKey, Counter[str]] = defaultdict(Counter)
    for one in decisions:
        if one.decided:
            votes[one.key][_source(one)] += 1
    return {key: _winner(count) for key, count in votes.items()}


def as_labelled(decisions: Iterable[Decision], labels: Mapping[str, str]) -> list[Decision]:
    """Return decisions without their corrected label, if that is the slide's label by now.

    Those that then say nothing else are left out.
    """
    held = [
        replace(d, true_label="") if d.true_label == labels.get(d.slide_id) else d
        for d in decisions
    ]
    return [d for d in held if d.decided or d.note]


def earlier_notes(decisions: Iterable[Decision], since: Mapping[str, str]) -> list[str]:
    """Name the models with decisions made when they had other weights.

    ``since`` is when each model first had its present weights (:attr:`SavedEvaluation.since`).
    """
    count = Counter(d.model for d in decisions if d.decided and d.time < since.get(d.model, ""))
    return [
        f"{model}: {number} {'decision was' if number == 1 else 'decisions were'} made when the "
        f"model had other weights (before {since[model][:10]}), and still count; look again."
        for model, number in sorted(count.items())
    ]


def cause_tables(
    errors: Sequence[ErrorCase],
    decisions: Sequence[Decision],
    taxonomy: Taxonomy,
    models: Sequence[str],
    labels: Mapping[str, str],
) -> list[CauseTable]:
    """Count the sources of errors of every method: false positives, then false negatives.

    Every error counts once, so a column adds up to the errors of its method. Decisions on slides
    that are not errors (any longer, or at this operating point) do not count. ``labels`` are the
    slides' present labels: a label that has been corrected is no longer wrong.
    """
    agreed = consensus(as_labelled(decisions, labels))
    wrong = {slide_id for slide_id, vote in label_votes(decisions, labels).items() if vote.label}
    tables = []
    kinds: tuple[Kind, ...] = ("fp", "fn")
    for kind in kinds:
        of_kind = [e for e in errors if e.kind == kind]
        chosen = [(e.model, agreed.get(e.key, NOT_REVIEWED)) for e in of_kind]
        counts = Counter(chosen)
        used = {source for _, source in chosen}
        special = (LABEL_WRONG, DISAGREED, NOT_REVIEWED)
        gone = sorted(used - {*taxonomy[kind], *special})  # from a taxonomy edited since
        names = [*taxonomy[kind], *gone, *(s for s in special if s in used)]
        tables.append(
            CauseTable(
                kind,
                {m: sum(e.model == m for e in of_kind) for m in models},
                {name: {m: counts[m, name] for m in models} for name in names},
                {m: sum(e.model == m and e.slide_id in wrong for e in of_kind) for m in models},
            )
        )
    return tables


def agreement(decisions: Iterable[Decision]) -> list[Agreement]:
    """Compare every pair of reviewers who both decided on at least one error."""
    of_reviewer: dict[str, dict[CaseKey, Decision]] = defaultdict(dict)
    for one in decisions:
        if one.decided:
            of_reviewer[one.reviewer][one.key] = one
    found = []
    for first, second in combinations(sorted(of_reviewer), 2):
        a, b = of_reviewer[first], of_reviewer[second]
        both = sorted(a.keys() & b.keys())
        if not both:
            continue
        sources = [(_source(a[key]), _source(b[key])) for key in both]
        labels = [(a[key].true_label, b[key].true_label) for key in both]
        found += [
            Agreement(first, second, "source", *_compare(sources)),
            Agreement(first, second, "label", *_compare(labels)),
        ]
    return found


def label_votes(decisions: Iterable[Decision], labels: Mapping[str, str]) -> dict[str, LabelVote]:
    """Return what reviewers think of the label of each slide that was reviewed.

    Each reviewer has one vote per slide: the newest class given on any method's error there, or
    that the label is right, which it also is if that class is the label by now.
    """
    views: dict[str, dict[str, Decision]] = defaultdict(dict)
    for one in decisions:
        if one.decided:
            before = views[one.slide_id].get(one.reviewer)
            if before is None or (one.label_is_wrong, one.time) > (
                before.label_is_wrong,
                before.time,
            ):
                views[one.slide_id][one.reviewer] = one
    votes = {}
    for slide_id, view in views.items():
        present = labels.get(slide_id)
        count = Counter("" if d.true_label == present else d.true_label for d in view.values())
        label, number = count.most_common(1)[0]
        won = bool(label) and 2 * number > len(view)
        disputed = not won and any(name for name in count)
        votes[slide_id] = LabelVote(label if won else None, disputed)
    return votes


def _source(decision: Decision) -> str:
    return decision.category or LABEL_WRONG


def _compare(pairs: Sequence[tuple[str, str]]) -> tuple[int, int, float | None]:
    """Return the number of pairs, of equal pairs, and kappa."""
    number = {name: i for i, name in enumerate(sorted({name for pair in pairs for name in pair}))}
    first, second = ([number[pair[i]] for pair in pairs] for i in (0, 1))
    matrix = metrics.confusion(first, second, max(1, len(number)))
    kappa = metrics.kappa(matrix)
    return len(pairs), int(np.trace(matrix)), None if np.isnan(kappa) else float(kappa)


def _winner(count: Counter[str]) -> str:
    best = count.most_common(2)
    return DISAGREED if len(best) == 2 and best[0][1] == best[1][1] else best[0][0]
