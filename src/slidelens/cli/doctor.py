"""``slidelens doctor``: what works on this machine, and how to get what is missing."""

from __future__ import annotations

import typer

from slidelens.cli.options import JsonOption, print_json

__all__ = ["register"]

_SIGNS = {"ok": "ok     ", "optional": "missing", "broken": "BROKEN "}
_NAME = 16


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("doctor", epilog="Example: slidelens doctor")(doctor)


def doctor(as_json: JsonOption = False) -> None:
    """Check libraries, GPU, models and plugins.

    Exits with 1 if something that slides and models need is broken.
    """
    from slidelens.engine.checks import Check, run_checks

    checks: list[Check] = []
    for check in run_checks():
        checks.append(check)
        if not as_json:
            typer.echo(f"{_SIGNS[check.state]}  {check.name:<{_NAME}} {check.detail}")
            if check.fix and check.state != "ok":
                typer.echo(f"{'':{10 + _NAME}}-> {check.fix}")
    if as_json:
        print_json([check._asdict() for check in checks])
    if any(check.state == "broken" for check in checks):
        raise typer.Exit(1)
