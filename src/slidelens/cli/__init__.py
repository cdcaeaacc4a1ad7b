"""The command line: one file per command. Commands call; they never compute."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run ``slidelens``; exit 0 when done, 1 when work failed, 2 for bad usage."""
    from slidelens.cli.app import run

    run()
