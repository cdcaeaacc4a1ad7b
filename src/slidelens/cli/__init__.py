"""The command line: one file per command. Commands call; they never compute."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run ``slidelens``; exit 0 when done, 1 when work failed, 2 for bad usage."""
    try:
        import signal

        usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if usual:  # not where Ctrl-C is ignored, as behind nohup
            signal.signal(signal.SIGINT, _leave)
        from slidelens.cli.app import run

        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    except KeyboardInterrupt:
        _leave()
    run()


def _leave(*_: object) -> None:
    """End at once while the program starts: nothing is under way, and half of it is imported."""
    import os
    from contextlib import suppress

    with suppress(OSError):  # whoever reads it has been stopped as well
        os.write(2, b"stopped\n")
    os._exit(130)
