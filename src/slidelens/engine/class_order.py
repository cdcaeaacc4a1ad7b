"""The order of classes by what their names say: of two the last is the positive one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["in_order"]

_NEGATIVE = frozenset(
    {
        *("normal", "negative", "neg", "benign", "healthy", "control", "no", "absent"),
        *("false", "gesund", "gutartig", "sain", "sano", "sana", "normaal", "gezond"),
    }
)
"""Names of a negative class, which comes first however many there are."""
_LESS = _NEGATIVE | {
    *("-", "0", "non", "not", "un", "without", "kein", "keine", "ohne"),
    *("low", "stable", "mss", "pmmr", "wildtype", "wild type", "wild-type", "wild", "wt"),
}
"""What makes one of two classes the negative one, as its name or beside what both have."""
_MORE = frozenset(
    {
        *("+", "positive", "pos", "yes", "true", "present", "high", "unstable"),
        *("msi", "msi-h", "msi-high", "dmmr", "mutant", "mutated", "mutation", "mut"),
        *("cancer", "carcinoma", "tumor", "tumour", "malignant", "metastasis", "disease"),
    }
)


def in_order(names: Iterable[str]) -> tuple[list[str], bool]:
    """Return class names, negative ones first and otherwise sorted; and whether that is known.

    Of two, what their names have in common is left aside where they do not tell as a whole: the
    sign of ``HER2-``, the prefix of ``untreated``. With more classes the order is always known: it
    makes none of them the positive one.
    """
    found = sorted(names, key=lambda name: (name.casefold() not in _NEGATIVE, name))
    if len(found) != 2:
        return found, True
    first, second = (_told(name) for name in found)
    head, tail = _shared(first, second), _shared(first[::-1], second[::-1])
    for start, end in ((0, 0), (head, 0), (0, tail)):
        ranks = [_rank(name[start : len(name) - end]) for name in (first, second)]
        if ranks[0] != ranks[1]:
            return found if ranks[0] < ranks[1] else found[::-1], True
    return found, False


def _told(name: str) -> str:
    """Return a name in small letters, with a hyphen for any minus sign."""
    return name.casefold().replace("\u2212", "-").replace("\u2013", "-")


def _shared(one: str, other: str) -> int:
    """Return how many letters two names begin with alike."""
    unlike = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(unlike, min(len(one), len(other)))


def _rank(part: str) -> int:
    part = part.strip(" _")
    part = part.strip("-") or part  # a lone sign stays
    return (part in _MORE) - (part in _LESS)
