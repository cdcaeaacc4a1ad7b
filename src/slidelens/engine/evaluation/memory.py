"""What an evaluation folder keeps from earlier runs: slide numbers and model weights."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["numbered", "read_kept", "weights_now"]


def numbered(ids: Iterable[str], before: Mapping[str, int] | None = None) -> dict[str, int]:
    """Return slide numbers for reports, from 1, in an order that reveals nothing of the ids.

    ``before`` are numbers already given: they stay, also those of slides that are gone.
    """
    given = dict(before or {})
    new = sorted(set(ids) - given.keys(), key=lambda name: sha256(name.encode()).digest())
    first = max(given.values(), default=0) + 1
    return given | {name: number for number, name in enumerate(new, first)}


def read_kept(out: Path) -> tuple[dict[str, int], dict[str, dict[str, Any]]]:
    """Return numbers of slides, and weights of models, that evaluations in a folder have used.

    Empty if there is no evaluation, or a damaged one.
    """
    try:
        before = json.loads((out / "evaluation.json").read_bytes())
        ids = [slide["id"] for slide in before["slides"]]
        weights = {name: {**one} for name, one in before.get("weights", {}).items()}
        return numbered(ids, before.get("numbers")), weights
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}, {}


def weights_now(now: str | None, before: Mapping[str, Any] | None) -> dict[str, str | None]:
    """Return which weights a model has, and since when, if they are not the first known.

    ``now`` is their SHA-256, and ``before`` what was recorded for the model last.
    """
    then = before or {}
    known, since = then.get("sha256"), then.get("since")
    if None not in (known, now) and known != now:
        since = datetime.now(UTC).isoformat(timespec="microseconds")
    return {"sha256": now or known, "since": since}
