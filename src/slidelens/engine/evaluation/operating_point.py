"""Operating points: how a threshold is chosen, and what a model then predicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from slidelens.engine import metrics
from slidelens.errors import LabelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from slidelens.engine.evaluation.scores import Cases

__all__ = ["STORED", "Calls", "Rule", "RuleKind", "call", "parse_rule"]

_DEFAULT = 0.5
RuleKind = Literal["stored", "given", "max-accuracy", "sensitivity"]

_SENTENCE = {
    "model": "stored with the model, which chose it on its tuning split",
    "folds": "stored with the model of each fold ({value}), which chose it on the slides that it "
    "held out",
    "default": "0.5, because no threshold is stored with the model",
    "given": "given by the user",
    "max-accuracy": "maximum accuracy on the evaluated slides, which makes accuracy optimistic",
    "sensitivity": "sensitivity of at least {value} on the evaluated slides, chosen on them",
    "argmax": "no threshold: the most probable class",
}


class Rule(NamedTuple):
    """How the operating point is chosen; ``value`` is the threshold given, or the sensitivity."""

    kind: RuleKind = "stored"
    value: float | None = None

    @property
    def text(self) -> str:
        """As users write it."""
        if self.value is None:
            return self.kind
        return f"{self.value:g}" if self.kind == "given" else f"{self.kind}={self.value:g}"


class Calls(NamedTuple):
    """What a model predicts for its cases at an operating point.

    Attributes
    ----------
    predictions
        ``(n,)`` class indices.
    threshold
        Lowest score of the positive class that is called positive; ``None`` for more than two
        classes, where the most probable one counts, and where the models of several folds have
        thresholds of their own.
    source, rule
        Where the threshold comes from, as a word and as a sentence.
    limits
        ``(n,)`` the threshold of each case; ``None`` for more than two classes.
    """

    predictions: NDArray[np.int64]
    threshold: float | None
    source: str
    rule: str
    limits: NDArray[np.float64] | None = None


STORED = Rule()


def parse_rule(text: str) -> Rule:
    """Read an operating point: ``stored``, ``max-accuracy``, ``sensitivity=S`` or a threshold.

    Raises
    ------
    ValueError
        Anything else.
    """
    if text == "stored":
        return Rule("stored")
    if text == "max-accuracy":
        return Rule("max-accuracy")
    name, equals, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    if not equals and 0 <= value <= 1:
        return Rule("given", value)
    if name == "sensitivity" and 0 < value <= 1:
        return Rule("sensitivity", value)
    raise ValueError(
        f"operating point {text!r}: expected stored, max-accuracy, sensitivity=S or a threshold, "
        "S and the threshold in 0..1"
    )


def call(cases: Cases, rule: Rule) -> Calls:
    """Call every case positive or negative, or by its most probable class.

    Raises
    ------
    LabelError
        A rule that these cases cannot satisfy.
    """
    if len(cases.scored.classes) != 2:
        if rule.kind != "stored":
            raise LabelError(
                f"operating point {rule.text!r}: a threshold needs two classes, and these models "
                f"have {len(cases.scored.classes)}; the most probable class counts."
            )
        return Calls(cases.probabilities.argmax(1), None, "argmax", _SENTENCE["argmax"])
    of_folds = cases.scored.thresholds
    if rule.kind == "stored" and of_folds:
        threshold: float | None = None
        source = "folds"
        limits = np.array([of_folds.get(slide_id, _DEFAULT) for slide_id in cases.ids])
        value = ", ".join(f"{limit:.3g}" for limit in dict.fromkeys(of_folds.values()))
        if any(slide_id not in of_folds for slide_id in cases.ids):
            value += f"; {_DEFAULT} where a fold's model states none or is gone"
    else:
        threshold, source = _threshold(cases, rule)
        limits = np.full(len(cases.rows), threshold)
        value = f"{rule.value or 0:g}"
    called = (cases.probabilities[:, 1] >= limits).astype(np.int64)
    return Calls(called, threshold, source, _SENTENCE[source].format(value=value), limits)


def _threshold(cases: Cases, rule: Rule) -> tuple[float, str]:
    positive, scores = cases.labels == 1, cases.probabilities[:, 1]
    if rule.kind == "given" and rule.value is not None:
        return rule.value, "given"
    if rule.kind == "max-accuracy":
        return metrics.threshold_of_max_accuracy(positive, scores), "max-accuracy"
    if rule.kind == "sensitivity" and rule.value is not None:
        if not positive.any():
            raise LabelError("no positive slide: a threshold cannot be chosen by sensitivity.")
        return metrics.threshold_at_sensitivity(positive, scores, rule.value), "sensitivity"
    stored = cases.scored.threshold
    return (_DEFAULT, "default") if stored is None else (stored, "model")
