"""Ctrl-C is kept for the place between two steps: nowhere else is it lost or half obeyed."""

import os
import signal
import subprocess
import sys
import threading
from io import BytesIO

import pytest

from slidelens.cli.progress import Bar
from slidelens.cli.stopping import stopping


def test_the_first_waits_for_the_step_to_end_and_the_second_does_not(capfd):
    with stopping() as check:
        check()
        signal.raise_signal(signal.SIGINT)
        assert "Ctrl-C again stops at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_it_is_not_lost_in_a_destructor():
    class Leaving(BytesIO):
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    with Bar(quiet=True) as bar:
        bar.update("slide", 1, 2)
        leaving = Leaving()
        del leaving
        with pytest.raises(KeyboardInterrupt):
            bar.update("slide", 2, 2)


@pytest.mark.parametrize(
    ("number", "end"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_it_stops_a_run_all_of_whose_slides_cannot_be_opened(number, end):
    """They have no step, only a line each: a whole cohort of them went on to its end."""
    with Bar(quiet=True) as bar:
        bar.line("s0: failed")
        signal.raise_signal(number)
        with pytest.raises(end):
            bar.line("s1: failed")


def test_the_end_of_a_jobs_time_waits_for_the_step_too(capfd):
    with stopping() as check:
        check()
        signal.raise_signal(signal.SIGTERM)
        assert capfd.readouterr().err == "\nstopping after this step\n"
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # a second one ends it at once
        with pytest.raises(SystemExit) as ended:
            check()
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_ctrl_c_that_ends_the_reader_of_the_messages_too_is_no_error_of_the_step():
    """As with `2>&1 | tee log`: the slide at hand counted as failed."""
    read, write = os.pipe()
    os.close(read)
    stderr = os.dup(2)
    os.dup2(write, 2)
    try:
        with stopping() as check:
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                check()
    finally:
        os.dup2(stderr, 2)
        for number in (stderr, write):
            os.close(number)


@pytest.mark.parametrize("others", [signal.SIG_IGN, lambda number, frame: None])
def test_a_signal_that_is_ignored_or_someone_elses_stays_so(others):
    signal.signal(signal.SIGINT, others)
    with stopping() as check:
        signal.raise_signal(signal.SIGINT)
        check()
    assert signal.getsignal(signal.SIGINT) is others


def test_in_a_thread_there_is_no_ctrl_c_to_wait_for():
    ended = threading.Event()

    def run():
        with Bar(quiet=True) as bar:
            bar.update("slide", 1, 1)
        ended.set()

    threading.Thread(target=run).start()
    assert ended.wait(10)


@pytest.mark.skipif(os.name == "nt", reason="there a process cannot send itself Ctrl-C alone")
@pytest.mark.parametrize(
    ("module", "caught"), [("typing", False), ("typer", False), ("typer", True)]
)
def test_ctrl_c_while_the_program_starts_ends_it_in_a_word(module, caught):
    """At the first of the many modules that it imports, or later, where a module catches all."""
    code = f"""
import os, signal, sys
class Pressed:
    def find_spec(self, name, *_):
        if name == {module!r}:
            sys.meta_path.remove(self)
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except BaseException:
                if not {caught}:
                    raise
assert {module!r} not in sys.modules
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Pressed())
from slidelens.cli import main
sys.argv = ["slidelens", "--version"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")
