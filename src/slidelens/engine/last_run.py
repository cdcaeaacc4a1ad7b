"""Slides whose last run failed while the result of an earlier run is still there."""

from __future__ import annotations

import io
import logging
from typing import TYPE_CHECKING, Any

from slidelens.errors import ResultError, listed
from slidelens.tables import read_rows, read_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["PREDICTIONS", "counted_failed", "failed_slides", "named_failed", "named_warnings"]

PREDICTIONS = "predictions.csv"

log = logging.getLogger(__name__)


def failed_slides(folder: Path) -> frozenset[str]:
    """Return the slides whose last run failed, as ``predictions.csv`` of a model's folder says.

    Without a table there are none; one that cannot be read is said in the log.
    """
    path = folder / PREDICTIONS
    try:
        if not path.exists():
            return frozenset()
        lines = io.StringIO(read_text(path, ResultError)).readlines()
        rows = list(read_rows(lines, path, ResultError)[0])
    except (ResultError, OSError) as error:
        log.warning("%s Until then slides that failed are not known.", error)
        return frozenset()
    return frozenset(row.get("slide_id") or "" for row in rows if row.get("status") == "failed")


def counted_failed(model: str, count: int) -> str:
    """Return a warning that older results are evaluated, without naming the slides."""
    return (
        f"{model}: the last run of {count} evaluated slide{'' if count == 1 else 's'} failed, so "
        "an older result is evaluated (last_run_failed); predict again, then evaluate again."
    )


def named_failed(model: str, slides: Sequence[str]) -> str:
    """Return a warning that names the slides with older results, and what to do."""
    return (
        f"{model}: the last run of {listed(slides)} failed ({PREDICTIONS} says "
        "why), so an older result is evaluated. Predict again, or delete the results that are out "
        "of date, then evaluate again."
    )


def named_warnings(metrics: Mapping[str, Any]) -> list[str]:
    """Return the warnings of ``metrics.json`` with the names of slides put in."""
    named = {}
    for model, one in metrics["models"].items():
        if slides := one.get("last_run_failed"):
            named[counted_failed(model, len(slides))] = named_failed(model, slides)
    return [named.get(text, text) for text in metrics["warnings"]]
