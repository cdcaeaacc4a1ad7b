"""List the slides that a method gets wrong, with its confidence and the other methods' verdicts.

Pure: reads an evaluation folder, opens no result and draws nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from slidelens.engine.evaluation.operating_point import Calls, Rule, call, parse_rule
from slidelens.engine.evaluation.tables import find_errors
from slidelens.review.evaluation import SavedEvaluation, read_evaluation
from slidelens.review.store import CaseKey, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from slidelens.engine.evaluation.scores import Cases

__all__ = [
    "ErrorCase",
    "NearMiss",
    "Verdict",
    "choose_rules",
    "list_errors",
    "list_near_misses",
]


_TIE = 1e-9  # a score that is the mean itself must not fall below it by rounding


class Verdict(NamedTuple):
    """What one method says of a slide.

    Attributes
    ----------
    model, predicted
        The method, and the class that it predicts.
    score
        Probability of the class that the error is about (the positive one of two).
    certainty
        Probability of the predicted class.
    margin
        Distance of the score from the threshold; with more than two classes, the distance between
        the probability of the label and the highest of the others.
    right
        Whether the label agrees.
    confident
        Whether it is at least as sure as the method is on average on slides labelled with that
        class (the class-wise threshold of confident learning: Northcutt et al., JAIR 2021).
    """

    model: str
    predicted: str
    score: float
    certainty: float
    margin: float
    right: bool
    confident: bool


@dataclass(frozen=True, slots=True)
class ErrorCase:
    """One false positive or false negative of one method.

    Attributes
    ----------
    slide_id, model, kind
        Together the key of its decisions.
    label, predicted
        Class names.
    target
        The class that it is a false positive or negative of, and ``score`` its probability.
    margin
        How far the score is on the wrong side of the threshold; with more than two classes, how far
        the probability of the wrong class is above that of the label.
    threshold
        In force; ``None`` for more than two classes.
    verdicts
        Of every method that scored the slide, this one included.
    suspect
        Whether all methods, two or more, predict the same wrong class, each confidently: the label
        may be wrong.
    patient
        Where the labels name one.
    """

    slide_id: str
    model: str
    kind: Kind
    label: str
    predicted: str
    target: str
    score: float
    margin: float
    threshold: float | None = None
    verdicts: tuple[Verdict, ...] = field(default=(), repr=False)
    suspect: bool = False
    patient: str | None = None

    @property
    def key(self) -> CaseKey:
        """The key of its decisions."""
        return CaseKey(self.slide_id, self.model, self.kind)

    @property
    def others(self) -> tuple[Verdict, ...]:
        """Verdicts of the other methods."""
        return tuple(v for v in self.verdicts if v.model != self.model)


class NearMiss(NamedTuple):
    """A slide that is only just right.

    Attributes
    ----------
    slide_id, model, label
        The slide, the method, and the class that it predicted correctly.
    score
        Probability of the positive class; with more than two classes, of the label.
    margin
        How far ``score`` is on the right side of the threshold, or above the next class.
    """

    slide_id: str
    model: str
    label: str
    score: float
    margin: float


def list_errors(
    evaluation: str | Path | SavedEvaluation, rules: Rule | Mapping[str, Rule] | None = None
) -> list[ErrorCase]:
    """List every error of every method, by method, the most confident first.

    Parameters
    ----------
    evaluation
        Folder of ``slidelens evaluate``, or what :func:`read_evaluation` gave.
    rules
        The operating point: one rule for all methods, or one per method; by default the
        evaluation's own.

    Raises
    ------
    ResultError
        No evaluation, or a damaged one.
    LabelError
        A rule that the cases cannot satisfy.
    """
    saved = _read(evaluation)
    calls = _calls(saved, rules)
    verdicts = _verdicts(saved, calls)
    found = []
    for name, one in saved.cases.items():
        limits = calls[name].limits
        limit_of = {} if limits is None else dict(zip(one.ids, limits.tolist(), strict=True))
        for row in find_errors(one, calls[name].predictions, limits):
            said = verdicts[row["slide_id"]]
            target = saved.classes.index(row["class"])
            found.append(
                ErrorCase(
                    slide_id=row["slide_id"],
                    model=name,
                    kind=row["kind"],
                    label=row["label"],
                    predicted=row["predicted"],
                    target=row["class"],
                    score=row["score"],
                    margin=row["margin"],
                    threshold=limit_of.get(row["slide_id"]),
                    verdicts=tuple(v.about(target) for v in said),
                    suspect=_suspect(said),
                    patient=row["patient"] or None,
                )
            )
    return found


def list_near_misses(
    evaluation: str | Path | SavedEvaluation,
    rules: Rule | Mapping[str, Rule] | None = None,
    count: int = 5,
) -> list[NearMiss]:
    """List, by method and label, the ``count`` correct predictions that are closest to being wrong.

    ``evaluation``, ``rules`` and the errors raised are those of :func:`list_errors`.
    """
    saved = _read(evaluation)
    calls = _calls(saved, rules)
    found: list[NearMiss] = []
    for name, one in saved.cases.items():
        margins = _margins(one, calls[name].limits)
        right = calls[name].predictions == one.labels
        for label in range(len(saved.classes)):
            index = np.flatnonzero(right & (one.labels == label))
            for i in index[np.argsort(margins[index], kind="stable")][:count].tolist():
                column = 1 if len(saved.classes) == 2 else label
                score = float(one.probabilities[i, column])
                found.append(
                    NearMiss(
                        one.rows[i].slide_id, name, saved.classes[label], score, float(margins[i])
                    )
                )
    return found


def choose_rules(texts: Sequence[str], models: Sequence[str]) -> dict[str, Rule] | None:
    """Read operating points: ``RULE`` for all methods, ``MODEL:RULE`` for one; later ones win.

    Returns
    -------
    Model to rule; ``None`` for no text: the evaluation's own.

    Raises
    ------
    ValueError
        An invalid rule (see :func:`~slidelens.engine.evaluation.operating_point.parse_rule`), or an
        unknown model.
    """
    if not texts:
        return None
    chosen: dict[str, Rule] = {}
    for text in texts:
        model, colon, rule = text.rpartition(":")
        if colon and model not in models:
            raise ValueError(f"operating point {text!r}: no model {model!r}; {', '.join(models)}")
        chosen |= dict.fromkeys([model] if colon else models, parse_rule(rule))
    return chosen


class _Said(NamedTuple):
    """A verdict before it is known which class it is asked about."""

    model: str
    label: str
    predicted: str
    probabilities: NDArray[np.float64]
    certainty: float
    margin: float
    confident: bool

    def about(self, target: int) -> Verdict:
        return Verdict(
            self.model,
            self.predicted,
            float(self.probabilities[target]),
            self.certainty,
            self.margin,
            self.label == self.predicted,
            self.confident,
        )


def _read(evaluation: str | Path | SavedEvaluation) -> SavedEvaluation:
    return evaluation if isinstance(evaluation, SavedEvaluation) else read_evaluation(evaluation)


def _calls(saved: SavedEvaluation, rules: Rule | Mapping[str, Rule] | None) -> dict[str, Calls]:
    rule_of = saved.rules(rules)
    return {name: call(one, rule_of[name]) for name, one in saved.cases.items()}


def _verdicts(saved: SavedEvaluation, calls: Mapping[str, Calls]) -> dict[str, list[_Said]]:
    found: dict[str, list[_Said]] = {}
    for name, one in saved.cases.items():
        called = calls[name].predictions
        margins = _margins(one, calls[name].limits)
        certainty = one.probabilities[np.arange(len(called)), called]
        sure = certainty >= _usual(one)[called] - _TIE
        for i, row in enumerate(one.rows):
            said = _Said(
                name,
                saved.classes[row.label],
                saved.classes[called[i]],
                one.probabilities[i],
                float(certainty[i]),
                float(margins[i]),
                bool(sure[i]),
            )
            found.setdefault(row.slide_id, []).append(said)
    return found


def _margins(cases: Cases, limits: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Return how far each case is from being wrong, or from being right."""
    if limits is not None:
        return np.abs(cases.probabilities[:, 1] - limits)
    label = cases.labels[:, None] == np.arange(len(cases.scored.classes))
    others = np.where(label, -np.inf, cases.probabilities).max(axis=1)
    return np.asarray(np.abs(cases.probabilities[label] - others))


def _usual(cases: Cases) -> NDArray[np.float64]:
    """Return each class's mean probability on the slides labelled with it; infinite without one."""
    means = np.full(len(cases.scored.classes), np.inf)
    for k in np.unique(cases.labels):
        means[k] = cases.probabilities[cases.labels == k, k].mean()
    return means


def _suspect(said: Sequence[_Said]) -> bool:
    agree = len({v.predicted for v in said}) == 1
    return len(said) > 1 and agree and all(v.confident and v.predicted != v.label for v in said)
