"""State of the Review panel: errors in order, one reviewer's decisions, undo."""

from __future__ import annotations

import getpass
import json
import os
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from slidelens.errors import ResultError
from slidelens.review.errors import choose_rules, list_errors
from slidelens.review.evaluation import SavedEvaluation, read_evaluation
from slidelens.review.store import STORE_FILE, ReviewStore
from slidelens.review.taxonomy import read_taxonomy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from slidelens.review.errors import ErrorCase
    from slidelens.review.store import CaseKey, Decision, Progress
    from slidelens.review.taxonomy import Kind

__all__ = [
    "KINDS",
    "Filter",
    "Review",
    "case_text",
    "decision_text",
    "evaluation_folder",
    "login_name",
    "open_review",
]

KINDS: dict[Kind, str] = {"fp": "false positive", "fn": "false negative"}
_FIELDS = {"category": "reason", "note": "note", "true_label": "label"}
_PATIENCE_S = 1.0  # if another program holds the file: the window waits meanwhile


@dataclass(frozen=True)
class Filter:
    """Which errors are listed.

    Attributes
    ----------
    models
        Only of these methods; ``None``: all.
    kind
        Only false positives or negatives.
    only_open
        Only what the reviewer has not decided.
    only_suspect
        Only slides whose label all methods contradict.
    """

    models: frozenset[str] | None = None
    kind: Kind | None = None
    only_open: bool = False
    only_suspect: bool = False

    def takes(self, case: ErrorCase, decided: bool) -> bool:
        """Return whether an error is listed."""
        return (
            (self.models is None or case.model in self.models)
            and self.kind in (None, case.kind)
            and not (self.only_open and decided)
            and (case.suspect or not self.only_suspect)
        )


class Review:
    """An evaluation's errors, the most confident first, and one reviewer's decisions on them.

    Every change is in the store when the method returns.

    Parameters
    ----------
    saved
        The evaluation.
    errors
        All of its errors, in any order.
    reviewer
        The reviewer who decides.
    points
        The operating points at which these are the errors, as :func:`open_review` takes them.
    """

    def __init__(
        self, saved: SavedEvaluation, errors: Sequence[ErrorCase], reviewer: str, points: str = ""
    ) -> None:
        self.saved = saved
        self.reviewer = reviewer
        self.points = points
        self.store = ReviewStore(saved.folder / STORE_FILE, patience=_PATIENCE_S)
        self._all = sorted(errors, key=lambda e: (-e.margin, e.slide_id, e.model))
        self._filter = Filter()
        self._undo: list[tuple[CaseKey, dict[str, tuple[str, str]]]] = []
        """The decisions made here, the newest last: the old and the new value of each text."""
        self.left = ""
        """What the last undo left unchanged, and why; empty: nothing."""
        self.undone = ""
        """What the last undo took back; empty: nothing."""
        self.cases: list[ErrorCase] = []
        """The listed errors; a decision removes nothing until the list is filtered again."""
        self.index = -1
        """Position of the current one; -1: none is listed."""
        self.choose(Filter())

    @property
    def errors(self) -> list[ErrorCase]:
        """All errors, listed or not."""
        return list(self._all)

    @property
    def filter(self) -> Filter:
        """Which errors are listed."""
        return self._filter

    @property
    def case(self) -> ErrorCase | None:
        """The current error."""
        return self.cases[self.index] if self.index >= 0 else None

    def by(self, reviewer: str) -> Review:
        """Return the same errors with the decisions of another reviewer, at the same one.

        Parameters
        ----------
        reviewer
            The name that decisions are saved under.

        Raises
        ------
        ResultError
            The store cannot be read.
        """
        made = Review(self.saved, self._all, reviewer, self.points)
        made.follow(self)
        return made

    def follow(self, other: Review) -> None:
        """Continue where an earlier opening of the same evaluation was."""
        if other.saved.folder != self.saved.folder:
            return
        if other.reviewer == self.reviewer:
            self._undo = other._undo
        keys, at = [case.key for case in self.cases], other.case
        if at is not None and at.key in keys:
            self.go(keys.index(at.key))

    def choose(self, wanted: Filter) -> None:
        """List other errors; the current one stays current if it is still listed."""
        before = self.case
        decided = {d.key for d in self.store.decisions(self.reviewer) if d.decided}
        self._filter = wanted
        self.cases = [case for case in self._all if wanted.takes(case, case.key in decided)]
        self.index = (
            self.cases.index(before) if before in self.cases else min(0, len(self.cases) - 1)
        )

    def go(self, index: int) -> ErrorCase | None:
        """Make an error current: the nearest one that is listed."""
        self.index = min(max(index, 0), len(self.cases) - 1)
        return self.case

    def step(self, by: int) -> ErrorCase | None:
        """Go forward or back; it stops at either end."""
        return self.go(self.index + by)

    def categories(self) -> tuple[str, ...]:
        """Return the categories of the current error's kind, as the file has them now.

        A category that was chosen but is no longer in the file comes last.
        """
        case = self.case
        if case is None:
            return ()
        known = read_taxonomy(self.saved.folder)[case.kind]
        own = self.decision(case)
        kept = own.category if own is not None else ""
        return known if not kept or kept in known else (*known, kept)

    def labels(self) -> list[tuple[str, str]]:
        """Return the verdicts on the current error's label: the true class, and its wording."""
        case = self.case
        if case is None:
            return []
        others = [name for name in self.saved.classes if name != case.label]
        return [
            ("", f"The label stands: {case.label}"),
            *((name, f"The label is wrong: it is {name}") for name in others),
        ]

    def decision(self, case: ErrorCase) -> Decision | None:
        """Return what the reviewer decided on an error."""
        return self.store.get(case.key, self.reviewer)

    def decisions(self) -> dict[CaseKey, Decision]:
        """Return everything that the reviewer decided or noted."""
        return {d.key: d for d in self.store.decisions(self.reviewer)}

    def others(self, case: ErrorCase) -> list[Decision]:
        """Return what other reviewers decided on an error."""
        found = self.store.decisions()
        return [d for d in found if d.key == case.key and d.reviewer != self.reviewer]

    def history(self, case: ErrorCase) -> list[Decision]:
        """Return every change of an error's decisions, by anyone, the newest first."""
        return self.store.history(case.key)[::-1]

    def decide(
        self,
        case: ErrorCase,
        *,
        category: str | None = None,
        note: str | None = None,
        true_label: str | None = None,
    ) -> Decision:
        """Decide on an error; ``None`` leaves a value as it is, ``""`` clears it.

        Raises
        ------
        ResultError
            It cannot be saved.
        """
        given = {"category": category, "note": note, "true_label": true_label}
        wanted = {name: text for name, text in given.items() if text is not None}
        before = self.decision(case)
        after = self.store.set(case.key, reviewer=self.reviewer, **wanted)
        texts = {name: (getattr(before, name, ""), getattr(after, name)) for name in wanted}
        changed = {name: (old, new) for name, (old, new) in texts.items() if old != new}
        if changed:
            self._undo.append((case.key, changed))
        return after

    @property
    def can_undo(self) -> bool:
        """Whether some decision made here can be undone."""
        return bool(self._undo)

    def undo(self) -> ErrorCase | None:
        """Take back the last change; its error becomes current if it is listed.

        The history keeps both. :attr:`left` says what another window has changed since.

        Raises
        ------
        ResultError
            It cannot be saved.
        """
        self.left = self.undone = ""
        if not self._undo:
            return None
        key, changed = self._undo[-1]
        now = self.store.get(key, self.reviewer)
        back = {name: old for name, (old, new) in changed.items() if getattr(now, name, "") == new}
        if back:
            self.store.set(key, reviewer=self.reviewer, **back)
        self._undo.pop()
        said = " and ".join(_FIELDS[name] for name in back)
        self.undone = f"{key.slide_id}, {key.model}: {said} undone." if said else ""
        left = " and ".join(_FIELDS[name] for name in changed if name not in back)
        why = "has been changed in another window, so it was not undone; look at it again."
        self.left = f"{key.slide_id}: the {left} {why}" if left else ""
        found = next((i for i, case in enumerate(self.cases) if case.key == key), None)
        return None if found is None else self.go(found)

    def progress(self) -> Progress:
        """Count how many of the errors of the chosen methods and kind the reviewer has decided."""
        wanted = Filter(self._filter.models, self._filter.kind, False, self._filter.only_suspect)
        keys = [case.key for case in self._all if wanted.takes(case, False)]
        return self.store.progress(keys, self.reviewer)


def evaluation_folder(home: Path, labels: Path, results: Path) -> Path:
    """Return the folder of the evaluation of some results against a table of labels.

    Decisions are kept there by slide id, so each pair of paths has its own folder, with a hash in
    its name. A folder without one, made by an older version, is used again if it states the same
    pair.

    Parameters
    ----------
    home
        The folder of all evaluations.
    """
    labels, results = labels.absolute(), results.absolute()
    older = home / f"{labels.parent.name}-{labels.stem}"
    if _is_of(older, labels, results):
        return older
    paths = os.fsencode(labels) + b"\n" + os.fsencode(results)
    return older.with_name(f"{older.name}-{sha256(paths).hexdigest()[:8]}")


def _is_of(folder: Path, labels: Path, results: Path) -> bool:
    """Return whether an evaluation is of these labels and results."""
    try:
        record = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        stated = [(folder / record[name]).resolve() for name in ("labels", "results")]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return stated == [labels.resolve(), results.resolve()]


def open_review(folder: Path, reviewer: str, points: str = "") -> Review:
    """Read an evaluation folder.

    Parameters
    ----------
    points
        Operating points as ``slidelens review --operating-point`` takes them, separated by spaces;
        none: the evaluation's own.

    Raises
    ------
    ResultError
        No evaluation, a damaged one, or an invalid operating point.
    """
    saved = read_evaluation(folder)
    try:
        rules = choose_rules(points.split(), saved.models)
    except ValueError as error:
        raise ResultError(str(error)) from error
    read_taxonomy(saved.folder)  # its faults are reported here, not in the middle of a review
    return Review(saved, list_errors(saved, rules), reviewer, points)


def login_name() -> str:
    """Return the name that the user is logged in with, or nothing."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without users
        return ""


def case_text(case: ErrorCase) -> str:
    """Describe the error in a sentence or two."""
    text = (
        f"{case.model} calls it {case.predicted}, the label says {case.label}. "
        f"{case.target.capitalize()} {case.score:.3f}"
    )
    if case.threshold is not None:
        text += f", threshold {case.threshold:.3f}"
    text += f", margin {case.margin:.3f}."
    if case.suspect:
        text += " Every method contradicts the label confidently: it may be wrong."
    return text


def decision_text(decision: Decision, since: Mapping[str, str]) -> str:
    """Describe a decision in one line.

    ``since`` states when models were first evaluated with their present weights, if they had others
    before.
    """
    parts = [decision.category]
    if decision.label_is_wrong:
        parts.append(f"label wrong: {decision.true_label}")
    if decision.note:
        parts.append(f"“{' '.join(decision.note.split())}”")
    if decision.decided and decision.time < since.get(decision.model, ""):
        parts.append("made with other weights")
    return ", ".join(part for part in parts if part) or "withdrawn"
