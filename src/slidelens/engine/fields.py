"""Configuration fields given by a user: parsed, validated and applied."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from slidelens.errors import ModelError
from slidelens.faults import first_fault

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slidelens.families.base import Model

__all__ = ["read_value", "validated", "with_options"]

BaseModelT = TypeVar("BaseModelT", bound=BaseModel)


def read_value(text: str) -> Any:
    """Read the text of an option: JSON where it is, else the text itself.

    Raises
    ------
    ModelError
        Text that begins like a list or a mapping and is no JSON.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        if text.lstrip()[:1] in ("[", "{"):
            raise ModelError(
                f"{text!r} is not JSON ({error}); keys stand in double quotes, as in "
                '\'[{"epochs": 20, "lr": 1e-4, "head_lr": 1e-3}]\'.'
            ) from error
        return text


def validated(kind: type[BaseModelT], values: Mapping[str, Any]) -> BaseModelT:
    """Make a configuration.

    Parameters
    ----------
    kind
        Class of the configuration.
    values
        Of its fields. A number in a field of text is taken as written: a class may be named 1.

    Raises
    ------
    ModelError
        A value that does not fit, naming its field.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        if texts := _numbers_for_text(error, values):
            return validated(kind, {**values, **texts})
        fault = first_fault(error)
        if not fault.where:  # fields that do not go together: the value is the whole configuration
            raise ModelError(f"{fault.why}.") from error
        raise ModelError(f"{fault.where}: {fault.told}.") from error


def _numbers_for_text(error: ValidationError, values: Mapping[str, Any]) -> dict[str, str]:
    """Return the text of numbers that were given for fields of text."""
    fields = {
        str(fault["loc"][0])
        for fault in error.errors(include_url=False)
        if fault["type"] == "string_type" and fault["loc"]
    }
    given = {name: values[name] for name in fields & values.keys()}
    return {k: json.dumps(v) for k, v in given.items() if isinstance(v, int | float)}


def with_options(model: Model[Any], options: Mapping[str, Any]) -> Model[Any]:
    """Return the model with other values of fields that may change from run to run.

    Parameters
    ----------
    options
        Values of fields that the family's configuration lists in
        :attr:`~slidelens.families.base.FamilyConfig.run_fields`.

    Raises
    ------
    ModelError
        A field that is none of these, or a value that does not fit.
    """
    if not options:
        return model
    kind = type(model.config)
    fixed = sorted(options.keys() - kind.run_fields)
    if fixed:
        allowed = ", ".join(name for name in kind.model_fields if name in kind.run_fields)
        raise ModelError(
            f"{', '.join(fixed)}: not an option of running {model.family} model {model.name!r}; "
            f"its options are: {allowed or 'none'}."
        )
    config = validated(kind, {**model.config.model_dump(), **options})
    used = config.model_dump(mode="json", include=set(options))
    return replace(model, config=config, options={**model.options, **used})
