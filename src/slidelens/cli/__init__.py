"""The command line: one file per command. Commands call; they never compute."""

from __future__ import annotations

import signal
import sys

__all__ = ["main"]


def main() -> None:
    """Run ``slidelens``; exit 0 when done, 1 when work failed, 2 for bad usage."""
    try:
        from slidelens.cli.app import run
    except KeyboardInterrupt:  # Ctrl-C while it starts
        sys.stderr.write("stopped\n")
        sys.exit(128 + signal.SIGINT)
    run()
