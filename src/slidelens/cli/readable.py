"""Help that names arguments by one word, as options are: SLIDE, not {slide} <path>."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    import typer

__all__ = ["ReadableCommand", "ReadableGroup", "make_readable"]

_BRACED = re.compile(r"\{(.+?)\}")


class ReadableCommand(TyperCommand):
    """A command with such a help."""

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """Write the line of usage."""
        _write_usage(self, ctx, formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options, each with its help."""
        _write_parameters(self, ctx, formatter)


class ReadableGroup(TyperGroup):
    """A group of commands with such a help."""

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """Write the line of usage."""
        _write_usage(self, ctx, formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options, each with its help, and commands."""
        _write_parameters(self, ctx, formatter)
        self.format_commands(ctx, formatter)


def make_readable(app: typer.Typer) -> None:
    """Give all commands of a program, and of its groups, such a help."""
    for command in app.registered_commands:
        command.cls = ReadableCommand
    for group in app.registered_groups:
        if group.typer_instance is not None:
            make_readable(group.typer_instance)


def _write_usage(command: TyperCommand | TyperGroup, ctx: Any, formatter: Any) -> None:
    """Write the usage without the braces that typer puts around what is required."""
    words = " ".join(command.collect_usage_pieces(ctx))
    formatter.write_usage(_BRACED.sub(r"\1", ctx.command_path), _BRACED.sub(r"\1", words))


def _write_parameters(command: TyperCommand | TyperGroup, ctx: Any, formatter: Any) -> None:
    rows: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is None:
            continue
        name, text = record
        if parameter.param_type_name == "argument":
            rows["Arguments"].append((f"{parameter.metavar}{'...' * (parameter.nargs != 1)}", text))
        else:
            rows["Options"].append((name, text))
    for title, shown in rows.items():
        if shown:
            with formatter.section(title):
                formatter.write_dl(shown)
