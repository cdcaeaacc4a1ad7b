"""Tables of an evaluation: all errors as CSV, the comparison of models as text."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from slidelens.errors import amount
from slidelens.tables import as_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from slidelens.engine.evaluation.measure import Measured
    from slidelens.engine.evaluation.scores import Cases

__all__ = [
    "Table",
    "calls_table",
    "cohort_note",
    "comparison_table",
    "errors_csv",
    "find_errors",
    "intervals_note",
    "markdown",
    "number",
    "tests_table",
]

_COLUMNS = (
    "model",
    "slide_id",
    "label",
    "kind",
    "score",
    "margin",
    "class",
    "predicted",
    "patient",
)
_HEADER = (
    "model",
    "n",
    "AUC",
    "PR-AUC",
    "accuracy",
    "sensitivity",
    "specificity",
    "threshold",
    "kappa",
    "Brier",
    "ECE",
)


class Table(NamedTuple):
    """A table of text."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    """Columns at the left that hold words; the others hold numbers."""


def errors_csv(cases: Mapping[str, Cases], measured: Mapping[str, Measured]) -> str:
    """Write every false positive and false negative, the most confident of each model first.

    ``class`` is the class that the error is a false positive or negative of, ``score`` its
    probability, ``margin`` how far it is on the wrong side: from the threshold, or (more than two
    classes) from the probability of the other class. With more than two classes an error has two
    rows: a false negative of its label and a false positive of the predicted class. Names that a
    spreadsheet would compute have an apostrophe before them.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for name, one in cases.items():
        found = find_errors(one, measured[name].predictions, measured[name].limits)
        writer.writerows(
            {k: as_text(cell) if isinstance(cell, str) else cell for k, cell in row.items()}
            for row in found
        )
    return text.getvalue()


def find_errors(
    cases: Cases, predictions: NDArray[np.int64], limits: NDArray[np.float64] | None
) -> list[dict[str, Any]]:
    """Return the rows of ``errors.csv`` of one model, the most confident first.

    Parameters
    ----------
    cases
        Of the model.
    predictions, limits
        ``(n,)`` each: what every case is called, and at which threshold, if at any.
    """
    classes = cases.scored.classes
    found = []
    for i, (row, called) in enumerate(zip(cases.rows, predictions, strict=True)):
        p = cases.probabilities[i]
        if called == row.label:
            continue
        if limits is None:
            margin = float(p[called] - p[row.label])
            kinds = [("fn", row.label), ("fp", called)]
        else:
            margin = abs(float(p[1] - limits[i]))
            kinds = [("fp" if called else "fn", 1)]
        found += [
            {
                "model": cases.scored.name,
                "slide_id": row.slide_id,
                "label": classes[row.label],
                "kind": kind,
                "score": float(p[k]),
                "margin": margin,
                "class": classes[k],
                "predicted": classes[called],
                "patient": row.patient or "",
            }
            for kind, k in kinds
        ]
    return sorted(found, key=lambda error: (-error["margin"], error["slide_id"]))


def comparison_table(measured: Mapping[str, Measured]) -> Table:
    """Return the table of models."""
    rows: list[tuple[str, ...]] = []
    for name, one in measured.items():
        f = one.figures
        rows.append(
            (
                name,
                str(f["n"]),
                number(f["auc"], f["auc_ci"]),
                number(f["pr_auc"], f["pr_auc_ci"]),
                number(f["accuracy"], f["accuracy_ci"]),
                number(f["sensitivity"], f.get("sensitivity_ci")),
                number(f["specificity"], f.get("specificity_ci")),
                f"{number(f['threshold'])} {f['threshold_source']}".removeprefix("- "),
                number(f["kappa"]),
                number(f["brier"]),
                number(f["ece"]),
            )
        )
    return Table(_HEADER, rows)


def markdown(
    measured: Mapping[str, Measured],
    comparisons: Sequence[Mapping[str, Any]],
    calls: Sequence[Mapping[str, Any]],
    note: str,
    tiles: Sequence[str] = (),
) -> str:
    """Write the table of models, lines about their tiles and the tests as Markdown."""
    lines = [*_lines(comparison_table(measured)), "", note]
    if tiles:
        lines += ["", *(f"- {line}" for line in tiles)]
    if comparisons:
        lines += ["", *_lines(tests_table(comparisons))]
    if any(pair["figures"] for pair in calls):
        lines += ["", *_lines(calls_table(calls))]
    return "\n".join(lines) + "\n"


def cohort_note(cases: Mapping[str, Cases], split: str | None) -> str:
    """Return the slides per class and the patients that any model was measured on.

    Models that were not measured on all of them are named.
    """
    classes = next(iter(cases.values())).scored.classes
    rows = {row.slide_id: row for one in cases.values() for row in one.rows}.values()
    fewer = [f"{k} on {len(one.rows)}" for k, one in cases.items() if len(one.rows) < len(rows)]
    but = f" Not every model is measured on all of them: {', '.join(fewer)}." if fewer else ""
    counts = ", ".join(
        f"{sum(row.label == label for row in rows)} {name}" for label, name in enumerate(classes)
    )
    patients = ""
    if any(row.patient for row in rows):
        patients = " of " + amount(len({row.patient_key for row in rows}), "patient")
    of_split = f" of split {split}" if split else ""
    return f"{amount(len(rows), 'slide')}{of_split} ({counts}){patients}.{but}"


def intervals_note(measured: Mapping[str, Measured], positive: str | None, level: float) -> str:
    """Describe the intervals of all models' figures, and the class they are for."""
    models_of = defaultdict(list)  # whose slides name their patients, or not
    for name, one in measured.items():
        drawn, wilson = one.figures["bootstrap"], one.figures["rates_interval"] == "Wilson"
        kind = (
            f"AUC and PR-AUC {drawn['resamples']:,} bootstrap resamples of {drawn['drawn']}, rates "
            f"{'Wilson' if wilson else 'the same'}"
        )
        models_of[kind].append(name)
    kinds = list(models_of)
    if len(kinds) > 1:
        kinds = [f"{kind} ({', '.join(names)})" for kind, names in models_of.items()]
    classes = "Figures are means over classes, one-vs-rest."
    if positive:
        classes = f"The positive class is {positive}."
    return f"{level:.0%} intervals: {'; '.join(kinds)}. {classes}"


def tests_table(comparisons: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of tests between models; where pairs have different ones, with each p."""
    tests = {c["test"] for c in comparisons} - {None}
    one = f" ({', '.join(tests)})" if len(tests) == 1 else ""
    header = ("a", "b", "n", "AUC a - AUC b", f"p{one}", "p (Holm)")
    rows = [
        (
            c["a"],
            c["b"],
            str(c["n"]),
            number(c["difference"], c["difference_ci"]),
            _p(c["p"]) + (f" ({c['test']})" if len(tests) > 1 and c["test"] else ""),
            _p(c["p_holm"]),
        )
        for c in comparisons
    ]
    return Table(header, rows, words=2)


def calls_table(calls: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of tests between the calls of models, at their operating points."""
    tests = ", ".join(sorted({pair["test"] for pair in calls} - {None}))
    header = ("a", "b", "share", "n", "of a", "of b", "only a right", "only b right")
    rows = [
        (
            pair["a"],
            pair["b"],
            name,
            str(test["n"]),
            number(test["a"]),
            number(test["b"]),
            str(test["only_a"]),
            str(test["only_b"]),
            _p(test["p"]),
            _p(test["p_holm"]),
        )
        for pair in calls
        for name, test in pair["figures"].items()
    ]
    return Table((*header, f"p ({tests})", "p (Holm)"), rows, words=3)


def number(value: float | None, interval: Sequence[float | None] | None = None) -> str:
    """Write a figure with its interval, or a dash."""
    if value is None:
        return "-"
    low, high = interval if interval is not None else (None, None)
    if low is None or high is None:
        return f"{value:.3f}"
    to = "-" if low >= 0 else " to "
    return f"{value:.3f} ({low:.3f}{to}{high:.3f})"


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _lines(table: Table) -> list[str]:
    cells = [[text.replace("|", "\\|") for text in row] for row in table.rows]
    rule = ["---", *["---:"] * (len(table.header) - 1)]
    return ["| " + " | ".join(row) + " |" for row in [list(table.header), rule, *cells]]
