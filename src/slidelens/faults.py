"""What pydantic found wrong, in our words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

__all__ = ["Fault", "first_fault"]

_MISSING, _UNKNOWN = "must be given", "there is no such field"
"""What is told of a field, not of its value."""
_WORDS: Mapping[str, str] = {
    kind: words
    for kinds, words in {
        "missing": _MISSING,
        "extra_forbidden": _UNKNOWN,
        "json_invalid": "is not JSON ({error})",
        "bool_type bool_parsing": "must be true or false",
        "int_type int_parsing int_from_float": "must be a whole number",
        "int_parsing_size": "must be a whole number of fewer digits",
        "float_type float_parsing": "must be a number",
        "finite_number": "must be a finite number",
        "greater_than": "must be above {gt:.12g}",
        "greater_than_equal": "must be at least {ge:.12g}",
        "less_than": "must be below {lt:.12g}",
        "less_than_equal": "must be at most {le:.12g}",
        "multiple_of": "must be a multiple of {multiple_of:.12g}",
        "string_type string_unicode": "must be text",
        "string_too_short": "must have {min_length} or more characters",
        "string_too_long": "must have {max_length} or fewer characters",
        "string_pattern_mismatch": "must match the pattern {pattern}",
        "path_type": "must be the path of a file or folder",
        "literal_error enum": "must be {expected}",
        "list_type tuple_type set_type frozen_set_type": "must be a list",
        "too_short": "must have {min_length} or more items",
        "too_long": "must have {max_length} or fewer items",
        "dict_type mapping_type": "must be a mapping, such as {{name: value}}",
        "model_type model_attributes_type dataclass_type": "must be a mapping of fields to values",
        "invalid_key": "keys must be text",
    }.items()
    for kind in kinds.split()
}
"""Ours for each type of error that fields of our configurations and files can have."""
_SAID = re.compile(r"(?:Value error|Assertion failed), ")
_BRANCH = re.compile(r"(?:literal|list|tuple|dict|nullable|function-\w+)\[.*\]|constrained-\w+")
"""What pydantic calls one of several types that a field may have: no name of a field."""


class Fault(NamedTuple):
    """A field (with dots, where it lies within others; empty: the whole), why, and its value."""

    where: str
    why: str
    given: Any

    def __str__(self) -> str:
        return f"{self.where}: {self.why}" if self.where else self.why

    @property
    def told(self) -> str:
        """Why, and the value unless that is in it: a 3 is not in 'at least 32' nor in '0.3'."""
        given = repr(self.given)
        named = re.search(rf"(?<![\w.]){re.escape(given)}(?!\.?\w)", self.why)
        told = named or self.why in (_MISSING, _UNKNOWN)
        return self.why if told else f"{self.why}, not {given}"


def first_fault(error: ValidationError) -> Fault:
    """Return the first fault."""
    first = error.errors(include_url=False)[0]
    parts = [str(part) for part in first["loc"]]
    where = ".".join(part for part in parts if part != "[key]" and not _BRANCH.fullmatch(part))
    return Fault(where, _plain(first), first["input"])


def _plain(error: ErrorDetails) -> str:
    """Return our words for an error, which are those of the check if that is one of ours."""
    if words := _WORDS.get(error["type"]):
        return words.format(**error.get("ctx", {}))
    message = _SAID.sub("", error["msg"], count=1).rstrip(".")
    return re.sub("^Input should be (an? )?(?:valid )?", r"must be \1", message)
