"""Help that names arguments by one word, as options are: SLIDE, not {slide} <path>."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

__all__ = ["ReadableGroup", "make_readable"]

_BRACED = re.compile(r"\{(.+?)\}")


class _Context(typer.Context):
    """What a command runs in; errors name the command by it."""

    @property
    def command_path(self) -> str:
        """The command without the braces that typer puts around what is required."""
        return _BRACED.sub(r"\1", super().command_path)


class _Readable:
    """What a command and a group of commands have in common: such a help."""

    context_class: Any = _Context

    def format_usage(self: Any, ctx: Any, formatter: Any) -> None:
        """Write the usage, without braces too."""
        words = " ".join(self.collect_usage_pieces(ctx))
        formatter.write_usage(ctx.command_path, _BRACED.sub(r"\1", words))

    def format_options(self: Any, ctx: Any, formatter: Any) -> None:
        """Write arguments and options, each with its help."""
        rows: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            name, text = record
            if parameter.param_type_name == "argument":
                word = f"{parameter.metavar}{'...' * (parameter.nargs != 1)}"
                rows["Arguments"].append((word, text))
            else:
                rows["Options"].append((name, text))
        for title, shown in rows.items():
            if shown:
                with formatter.section(title):
                    formatter.write_dl(shown)


class _ReadableCommand(_Readable, TyperCommand):
    """A command with such a help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse what is empty, as an unset variable of a shell is: a path of it would be here."""
        empty = {before for before, word in pairwise(("", *args)) if not word}
        empty |= {word[:-1] for word in args if word.startswith("--") and word.endswith("=")}
        takers: dict[str, Any] = {name: one for one in self.get_params(ctx) for name in one.opts}
        for name in empty:
            option = name in takers and not getattr(takers[name], "is_flag", False)
            if not option or takers[name].metavar != "TEXT":  # such text may be empty
                at = f"{name} is" if option else "an argument is"
                raise typer.BadParameter(f"{at} empty; was a variable of the shell not set?")
        return super().parse_args(ctx, args)


class ReadableGroup(_Readable, TyperGroup):
    """A group of commands with such a help."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options, each with its help, and commands."""
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


def make_readable(app: typer.Typer) -> None:
    """Give all commands of a program, and of its groups, such a help."""
    for command in app.registered_commands:
        command.cls = _ReadableCommand
    for group in app.registered_groups:
        if group.typer_instance is not None:
            make_readable(group.typer_instance)
