"""Fixtures: a slide and a result whose every pixel is known, windows, a worker that is warm."""

from __future__ import annotations

import gc
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil
import pytest
from known_slides import Case, make_result, make_slide

from slidelens.geometry import Mpp
from slidelens.maps.result import Result

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import napari

    from slidelens.desktop.workbench import Workbench
    from slidelens.desktop.worker.client import WorkerClient

# pytest-xvfb brings the display; with any other platform plugin Qt would not draw on it.
os.environ["QT_QPA_PLATFORM"] = "xcb"


@pytest.fixture(scope="session", autouse=True)
def _compiler_before_window() -> None:
    """Load PyTorch's compiler before a window: its LLVM after Mesa's ends the process.

    Later tests of the same process train models, which brings it.
    """
    with suppress(ImportError):  # there is none on macOS, Windows and CPU builds
        import triton  # noqa: F401


@pytest.fixture(scope="session", autouse=True)
def _once_for_all_windows() -> Iterator[None]:
    """Read the manifests of installed packages once, and keep napari's settings off the disk.

    napari's fixture has each window do both anew, which took a tenth of the time of these tests.
    """
    from napari.settings._base import EventedConfigFileSettings
    from npe2.manifest import schema

    read, known = schema._from_dist, {}

    def once(package):
        if package.name not in known:
            known[package.name] = read(package)
        return known[package.name]

    with pytest.MonkeyPatch.context() as own:
        own.setattr(schema, "_from_dist", once)
        own.setattr(EventedConfigFileSettings, "_maybe_save", lambda settings: None)
        yield


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """The slide of the issue: 0.2527 µm/px, its result saved and read back."""
    mpp = Mpp(0.2527, 0.2527)
    slide = make_slide(0.2527)
    make_result(slide, mpp).save(tmp_path / "results" / "oracle" / slide.id)
    return Case(slide, Result.load(tmp_path / "results" / "oracle" / slide.id), mpp)


@pytest.fixture(scope="session")
def warm_worker(qapp) -> Iterator[WorkerClient]:
    """One worker for all tests: importing torch takes seconds."""
    from slidelens.desktop.worker.client import WorkerClient

    client = WorkerClient()
    yield client
    client.close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for what the workbench remembers and keeps."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in ("HOME", "XDG_CONFIG_HOME", "APPDATA"):
        monkeypatch.setenv(name, str(folder))
    return folder


@pytest.fixture
def viewer(make_napari_viewer) -> napari.Viewer:
    """A shown window; the fixture fails the test if widgets or threads are left."""
    viewer = make_napari_viewer(show=True, strict_qt="raise")
    viewer.window.resize(1280, 860)
    return viewer


@pytest.fixture
def bench(home: Path, viewer: napari.Viewer, warm_worker: WorkerClient) -> Iterator[Workbench]:
    """The window's workbench, with the warm worker for all that it does."""
    from qtpy.QtCore import QCoreApplication, QEvent

    from slidelens.desktop.workbench import workbench_of
    from slidelens.desktop.worker.client import WorkerClient

    bench = workbench_of(viewer)
    bench.runner = bench.trainer = warm_worker
    yield bench
    for job in list(warm_worker.jobs):
        job.cancel()
    bench.runner = bench.trainer = WorkerClient()
    viewer.close()
    bench.close()
    # What an application's event loop does by itself: tests have none that runs on.
    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete.value)


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves windows, threads or processes behind."""
    windows, threads, processes = _windows(), set(threading.enumerate()), _processes()
    yield
    gc.collect()
    left = [t.name for t in threading.enumerate() if t not in threads and "slidelens" in t.name]
    assert not left, f"threads are left: {left}"
    assert _windows() <= windows, "windows are left"
    if not {"warm_worker", "client"} & set(request.fixturenames):
        assert _processes() <= processes, "processes are left"
    # Modules and what they keep: napari's fixture collects garbage four times per window, which
    # would look through all of it each time.
    gc.freeze()


def _windows() -> set[str]:
    """Names of shown windows."""
    from qtpy.QtWidgets import QApplication

    app = QApplication.instance()
    if app is None:
        return set()
    app.processEvents()
    return {repr(type(w)) for w in QApplication.topLevelWidgets() if w.isVisible()}


def _processes() -> set[int]:
    return {child.pid for child in psutil.Process().children() if child.name() != "Xvfb"}
