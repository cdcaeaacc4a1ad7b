"""Which slides a model learnt from: its package can tell of a given slide, and lists none."""

from __future__ import annotations

import secrets
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slidelens.engine.labels import LabelTable

__all__ = ["LEARNT_FROM", "learnt_from", "learnt_slides"]

LEARNT_FROM = "learnt_from"
"""Key of ``model.json``; in a result's model it is the slide's split."""
_DIGITS = 16
"""Of a digest: among a million slides, one of a thousand million others has the same by chance."""


def learnt_slides(table: LabelTable, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return salted digests of the ids of the slides that training looks at, by split.

    They keep ids, which may hold names, from readers of the package; who has a list of ids can
    still ask for each.

    Parameters
    ----------
    table
        Its rows have a split.
    before
        The same of the model that is fine-tuned, if it has it: its slides count too.
    """
    known = before or {}
    salt = str(known.get("salt") or secrets.token_hex(16))
    found: dict[str, Any] = {"salt": salt}
    for split in ("train", "tune"):
        own = {_digest(salt, row.slide_id) for row in table.of(split)}
        found[split] = sorted(own.union(known.get(split, ())))
    return found


def learnt_from(card: Mapping[str, Any], slide_id: str) -> Literal["train", "tune"] | None:
    """Return the split that a slide had when a model was trained.

    Parameters
    ----------
    card
        Of the model; of an older version, or another maker, it does not say.
    slide_id
        The slide.
    """
    known = card.get(LEARNT_FROM)
    if not isinstance(known, dict):
        return None
    digest = _digest(str(known.get("salt")), slide_id)
    if digest in known.get("train", ()):
        return "train"
    return "tune" if digest in known.get("tune", ()) else None


def _digest(salt: str, slide_id: str) -> str:
    return sha256(f"{salt}:{slide_id}".encode()).hexdigest()[:_DIGITS]
