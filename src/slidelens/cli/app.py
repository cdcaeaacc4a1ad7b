"""The ``slidelens`` program: its commands, and how errors become messages and exit codes."""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import slidelens
from slidelens.cli import (
    demo,
    doctor,
    evaluate,
    export,
    info,
    lesions,
    models,
    new_plugin,
    package,
    predict,
    report,
    review,
    stage,
    train,
    view,
)
from slidelens.cli.options import printable
from slidelens.cli.readable import ReadableGroup, make_readable
from slidelens.cli.stopping import SIGNALLED
from slidelens.errors import SlideLensError
from slidelens.faults import first_fault
from slidelens.files import meant

__all__ = ["program", "run"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_STOPPED = {
    "train": "stopped; continue with the same command and --resume",
    "predict": "stopped; finished slides are kept, and the same command runs the others",
}
_COMMANDS = (
    info,
    doctor,
    demo,
    models,
    predict,
    train,
    evaluate,
    lesions,
    stage,
    review,
    report,
    export,
    view,
    package,
    new_plugin,
)


class _Program(ReadableGroup):
    """Commands, of which each tells what is wrong with an option in our words."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            from pydantic import ValidationError  # here: it takes time, and few commands fail

            if isinstance(error.__cause__, ValidationError):
                error.message = first_fault(error.__cause__).told
            raise


def program() -> typer.Typer:
    """Put the program together from its commands."""
    app = typer.Typer(
        name="slidelens",
        cls=_Program,
        help="Run, train, compare and review deep models on whole-slide images.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for command in _COMMANDS:
        command.register(app)
    make_readable(app)
    return app


def _version(value: bool) -> None:
    if value:
        typer.echo(f"slidelens {slidelens.__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def _escape_what_cannot_be_printed() -> None:
    r"""Print \u0142 for a letter that a terminal or file lacks; within JSON that is the letter."""

    def escaped(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        return json.dumps(error.object[error.start : error.end])[1:-1], error.end

    codecs.register_error("slidelens", escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "surrogateescape":
            stream.reconfigure(errors="slidelens")


def _open_what_is_closed() -> None:
    """Discard output to a closed stream, which would go into the next file opened."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:  # the lowest number that is free is given, which is this one
            os.open(os.devnull, os.O_RDWR)
        stream = Path(os.devnull).open("w" if number else "r")  # noqa: SIM115  # reason: to the end
        setattr(sys, name, stream)


def run() -> None:
    """Run the program; a user's mistake is one sentence on stderr, never a traceback."""
    _open_what_is_closed()
    _escape_what_cannot_be_printed()
    try:
        program()()
    except SlideLensError as error:
        typer.echo(f"error: {printable(meant(str(error)))}", err=True)
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as end:
        # Within a command typer makes the one of the other.
        if isinstance(end, SystemExit) and end.code not in SIGNALLED:
            raise
        typer.echo(_STOPPED.get("".join(sys.argv[1:2]), "stopped"), err=True)
        sys.exit(end.code if isinstance(end, SystemExit) else 128 + signal.SIGINT)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); Python must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # such as a place to write into that is a file
        if error.filename is not None:
            place = error.filename2 or error.filename  # of a copy, where it goes to
            typer.echo(f"error: {meant(str(place))}: {error.strerror or error}.", err=True)
        elif error.errno in _FULL:  # such as that of the file that our output goes to
            typer.echo(f"error: {error.strerror}; make room, then run the command again.", err=True)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # as above
        else:
            raise
        sys.exit(1)
