"""How tissue is to be found: as a user says, and otherwise as when the model was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from slidelens.engine.fields import read_value, validated
from slidelens.tiling.tissue import TissueMask, TissueSettings

if TYPE_CHECKING:
    from slidelens.families.base import Model

__all__ = ["TISSUE", "GivenTissue", "tissue_asked", "tissue_for"]

TISSUE = "tissue"
"""Key of ``model.json``."""
GivenTissue = TissueSettings | Mapping[str, Any] | str | Sequence[str] | None


def tissue_asked(given: GivenTissue) -> TissueSettings:
    """Read how tissue is to be found; fields that are not given are as nobody set them.

    Parameters
    ----------
    given
        Settings, or their fields; or, as on the command line, the name of a method, ``field=value``
        or a list of these.

    Raises
    ------
    ModelError
        No such method or field, or a value that does not fit.
    """
    if isinstance(given, TissueSettings):
        return given
    if not isinstance(given, Mapping):
        texts = [given] if isinstance(given, str) else given or ()
        pairs = [f"{text}" if "=" in f"{text}" else f"method={text}" for text in texts]
        split = [pair.partition("=") for pair in pairs]
        given = {name.strip().replace("-", "_"): read_value(value) for name, _, value in split}
    return validated(TissueSettings, given)


@overload
def tissue_for(model: Model[Any] | None, asked: TissueSettings | None) -> TissueSettings: ...
@overload
def tissue_for(
    model: Model[Any] | None, asked: TissueSettings | TissueMask | None
) -> TissueSettings | TissueMask: ...
def tissue_for(
    model: Model[Any] | None, asked: TissueSettings | TissueMask | None
) -> TissueSettings | TissueMask:
    """Return how tissue is found for a model: as asked, in fields that nobody set as it learnt.

    Parameters
    ----------
    model
        Its card says how its training found tissue, if it does; ``None``: a new one.
    asked
        Settings of this run, or a mask, which is taken as it is.

    Raises
    ------
    ModelError
        A card, made in memory, that says it wrongly.
    """
    if isinstance(asked, TissueMask):
        return asked
    learnt = tissue_asked(None if model is None else model.card.get(TISSUE))
    given = tissue_asked(asked)
    fields = learnt.model_dump(exclude_unset=True) | given.model_dump(exclude_unset=True)
    return validated(TissueSettings, fields)
