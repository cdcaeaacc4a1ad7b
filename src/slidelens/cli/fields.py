"""Command-line options made from the fields of a configuration class."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from slidelens.errors import PluginError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

__all__ = ["given_fields", "parse_assignments", "with_field_options"]

_SIMPLE = (bool, int, float, str)
_METAVARS = {int: "N", float: "X", str: "TEXT"}
_OTHERS = {"help", "json", "set"}
"""Options whose values have other names in the command."""


def with_field_options(
    function: Callable[..., None], configs: Sequence[type[BaseModel]], family: str
) -> Callable[..., None]:
    """Return ``function`` with one option per simple field of ``configs`` behind its own.

    An option that is not given arrives as ``None``, so that presets and files keep their say; its
    help names the default. The function receives them as keyword arguments. ``family`` is whose
    configurations they are.

    Raises
    ------
    PluginError
        A field that has the name of an option which the command has already, or of a field of
        another of its configurations.
    """
    signature = inspect.signature(function, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    names = {p.name for p in own}
    taken = {name for config in configs for name in config.model_fields} & (names | _OTHERS)
    if taken:
        raise PluginError(
            f"family {family!r} has fields that `slidelens train` has options of that name for: "
            f"{', '.join(sorted(taken))}. Its maker must choose other names."
        )
    fields = Counter(name for config in configs for name in config.model_fields)
    twice = sorted(name for name, count in fields.items() if count > 1)
    if twice:
        raise PluginError(
            f"family {family!r} has fields of one name in its Config and in its training: "
            f"{', '.join(twice)}. Its maker must choose other names."
        )
    added = []
    for config in configs:
        for name, field in config.model_fields.items():
            kind = _option_type(field)
            if kind is None:
                continue
            flag = name.replace("_", "-")
            flags = f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}"
            word = _METAVARS.get(kind)  # none: the choices are shown, or it is a flag
            option = typer.Option(flags, metavar=word, help=_help(name, field, config))
            added.append(
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=None,
                    annotation=Annotated[kind | None, option],
                )
            )

    def command(**values: Any) -> None:
        function(**values)

    command.__doc__ = function.__doc__
    command.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
    return command


def given_fields(values: Mapping[str, Any], config: type[BaseModel]) -> dict[str, Any]:
    """Pick the options that were given and belong to ``config``."""
    return {k: v for k, v in values.items() if k in config.model_fields and v is not None}


def parse_assignments(texts: Sequence[str]) -> dict[str, str]:
    """Read ``--set field=value`` options; the configuration class checks names and values.

    Raises
    ------
    typer.BadParameter
        A text without ``=``.
    """
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and name.strip()):
            raise typer.BadParameter(f"--set {text!r}: expected field=value")
        pairs[name.strip().replace("-", "_")] = value.strip()
    return pairs


def _option_type(field: FieldInfo) -> Any:
    """Return what typer shall parse, or None for a field that only ``--set`` and files can give."""
    kinds = [k for k in (get_args(field.annotation) or (field.annotation,)) if k is not type(None)]
    if get_origin(field.annotation) is Literal:
        return field.annotation
    if len(kinds) > 1 and all(get_origin(kind) is Literal for kind in kinds):
        return Literal[tuple(word for kind in kinds for word in get_args(kind))]
    if len(kinds) != 1:
        return None
    return kinds[0] if kinds[0] in _SIMPLE or get_origin(kinds[0]) is Literal else None


def _help(name: str, field: FieldInfo, config: type[BaseModel]) -> str:
    """Return an option's help with its default: that of the default preset, if it has one."""
    text = field.description or ""
    preset = getattr(config, "presets", {}).get("default", {})
    value = preset.get(name, None if field.is_required() else field.default)
    if value is None or value in ("", ()):
        return text
    if isinstance(value, bool):
        value = ("" if value else "no-") + name.replace("_", "-")
    return f"{text} [default: {value}]"
