"""Configuration fields as a form: control, bounds and value of each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["FormField", "changed", "fields_of", "given_text"]

Control = Literal["switch", "whole", "number", "choice", "text"]
_CONTROLS: dict[str, Control] = {
    "boolean": "switch",
    "integer": "whole",
    "number": "number",
    "string": "text",
}
_SOME = 1e-6  # nearest to a bound that is itself not allowed


@dataclass(frozen=True)
class FormField:
    """One line of a form.

    Attributes
    ----------
    name, label, help
        In the configuration; as shown; the tooltip.
    control
        The kind of widget.
    value
        Before any change.
    low, high
        Bounds of numbers; ``None``: no bound.
    choices
        If it is a choice.
    optional
        Whether it may be left empty (as a text field; the value is then ``None``).
    """

    name: str
    label: str
    help: str
    control: Control
    value: Any
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] = ()
    optional: bool = False


def fields_of(schema: Sequence[Mapping[str, Any]]) -> list[FormField]:
    """Make a form of described fields (JSON schema with ``name`` and ``value``).

    Fields that hold tables or lists are not in a form.
    """
    return [line for field in schema if (line := _line(field)) is not None]


def changed(fields: Sequence[FormField], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the user changed."""
    before = {field.name: field.value for field in fields}
    return {name: values[name] for name in before if values.get(name, before[name]) != before[name]}


def given_text(field: FormField, text: str) -> Any:
    """Read the text of a field: numbers and ``true`` as in JSON, otherwise unchanged.

    An empty text is ``None`` if the field may be left empty.
    """
    text = text.strip()
    if not text and field.optional:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def _line(field: Mapping[str, Any]) -> FormField | None:
    kinds = [k for k in field.get("anyOf", [field]) if k.get("type") != "null"]
    optional = any(k.get("type") == "null" for k in field.get("anyOf", []))
    words = [tuple(k.get("enum", (k["const"],) if "const" in k else ())) for k in kinds]
    if not kinds or (len(kinds) > 1 and not all(words)):
        return None
    kind = {**field, **kinds[0]}
    choices = tuple(word for of in words for word in of)
    control = "choice" if choices else _CONTROLS.get(kind.get("type", ""))
    if control is None:
        return None
    low, high = kind.get("minimum"), kind.get("maximum")
    step = 1 if control == "whole" else _SOME
    if low is None and "exclusiveMinimum" in kind:
        low = kind["exclusiveMinimum"] + step
    if high is None and "exclusiveMaximum" in kind:
        high = kind["exclusiveMaximum"] - step
    return FormField(
        field["name"],
        field["name"].replace("_", " "),
        str(field.get("description") or ""),
        "text" if optional and not choices else control,
        field.get("value"),
        low,
        high,
        (None, *choices) if optional and choices else choices,
        optional,
    )
