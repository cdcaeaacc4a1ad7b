"""Shared fixtures. Real slides come from ``SLIDELENS_TEST_DATA`` (default ``../shared/data``)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

_DATA = Path(
    os.environ.get("SLIDELENS_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)

settings.register_profile("slidelens", deadline=None)  # other work on the machine is no fault
settings.load_profile("slidelens")


_LONGEST = ("test_docs.py", "test_afternoon.py")
"""Files whose tests take a minute and more: begun last, one worker would end long after all."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the longest files, and see to the real data."""
    items.sort(key=lambda item: item.path.name not in _LONGEST)
    _leave_out_real_data(config, items)


def _leave_out_real_data(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave real-data tests out, with one line, where a public user has no data; never in CI."""
    if _DATA.is_dir():
        return
    if os.environ.get("CI") == "true":
        raise pytest.UsageError(f"real test data is missing: {_DATA} (set SLIDELENS_TEST_DATA)")
    left_out = [item for item in items if item.get_closest_marker("realdata")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line(f"{len(left_out)} tests on real slides left out: no {_DATA}")


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of real slides, annotations and weights."""
    return _DATA


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Settings of the person who runs the tests stay untouched."""
    home = tmp_path_factory.mktemp("home")
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        os.environ[name] = str(home)


@pytest.fixture(scope="session", autouse=True)
def _own_umask() -> None:
    """What a test has made can be read by the user that it becomes (``rights.nobody``)."""
    os.umask(0o022)


@pytest.fixture(autouse=True)
def _as_at_a_terminal() -> None:
    """Ctrl-C interrupts, also where the shell that runs the tests ignores it: in the background.

    Before each test: some set handlers of their own.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _not_on_the_disk() -> Iterator[None]:
    """What tests write need not survive a power failure: they do not wait for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def without_curves() -> Iterator[None]:
    """Trainings draw no curves: that takes as long as all the rest of a tiny one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slidelens.engine.train.write_curves", lambda *_: None)
        yield
