"""Names of annotation classes: which of them mean the same."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING
from unicodedata import normalize

from slidelens.errors import listed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["is_named", "may_mean", "plain", "spellings", "warn_of_spellings"]

log = logging.getLogger(__name__)

_TUMOUR = re.compile(r"tumou?r(s\b)?")
_LIKE_TUMOUR = frozenset(
    {
        *("tumour", "cancer", "carcinoma", "malignant", "malignancy", "neoplasm"),
        *("metastasis", "metastases"),
    }
)
"""What pathologists call tumour; whether two of them mean the same, only they know."""


@cache
def plain(name: str) -> str:
    """Return a class's name as names are compared: in small letters, tumor(s) as tumour."""
    return _TUMOUR.sub("tumour", " ".join(normalize("NFKC", name).casefold().split()))


def is_named(label: str, names: Iterable[str]) -> bool:
    """Return whether an annotation's label is one of these names, however it is spelled."""
    return plain(label) in {plain(name) for name in names}


def may_mean(label: str, name: str) -> bool:
    """Return whether a label that is not this name may mean the same: both are words for tumour."""
    return plain(label) != plain(name) and {plain(label), plain(name)} <= _LIKE_TUMOUR


def spellings(drawn: Mapping[str, Iterable[str]]) -> dict[str, dict[str, list[str]]]:
    """Return where each class is drawn: by plain name, by spelling.

    Parameters
    ----------
    drawn
        Slide id (or file) to the classes drawn on it.
    """
    found: defaultdict[str, dict[str, list[str]]] = defaultdict(dict)
    for place, classes in drawn.items():
        for name in sorted(set(classes)):
            found[plain(name)].setdefault(name, []).append(place)
    return dict(found)


def warn_of_spellings(drawn: Mapping[str, Iterable[str]]) -> None:
    """Warn of classes that are spelled in several ways, and count as one; ``drawn`` as above."""
    alike = [
        " and ".join(f"{name!r} on {listed(places, 5)}" for name, places in several.items())
        for several in spellings(drawn).values()
        if len(several) > 1
    ]
    if alike:
        log.warning(
            "annotation classes that are spelled in several ways count as one: %s. Rename those "
            "that are not the same",
            "; ".join(alike),
        )
