"""What works on this machine, and how to get what is missing: the checks of ``doctor``."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from ctypes.util import find_library
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, NamedTuple

from slidelens.errors import SlideLensError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Check", "run_checks"]

State = Literal["ok", "optional", "broken"]


class Check(NamedTuple):
    """One finding; ``optional`` is missing but slides and models work, ``fix`` says what to do."""

    name: str
    state: State
    detail: str
    fix: str = ""


def run_checks() -> Iterator[Check]:
    """Look at everything slidelens stands on, quickest first."""
    yield Check("Python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}")
    for check in (_openslide, _tifffile, _torch, _accelerator, _models):
        yield check()
    yield from _plugins()
    yield _extra("Training", "train", "lightning", "torchmetrics", "tensorboard", "pyyaml")
    yield _extra("Feature bags", "bags", "h5py")
    yield _report()
    yield _extra("Staging", "staging", "scikit-learn")
    for check in (_napari, _opengl, _qt):
        yield check()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _openslide() -> Check:
    name = "OpenSlide"
    try:
        import openslide
    except (ImportError, OSError) as error:
        return Check(name, "broken", str(error), "pip install openslide-python openslide-bin")
    return Check(
        name,
        "ok",
        f"library {openslide.__library_version__}, Python binding {openslide.__version__}",
    )


def _tifffile() -> Check:
    missing = [name for name in ("tifffile", "imagecodecs", "zarr") if _version(name) is None]
    if missing:
        return Check(
            "TIFF and Zarr",
            "broken",
            f"not installed: {', '.join(missing)}",
            "pip install " + " ".join(missing),
        )
    detail = ", ".join(f"{n} {_version(n)}" for n in ("tifffile", "imagecodecs", "zarr"))
    return Check("TIFF and Zarr", "ok", detail)


def _torch() -> Check:
    fix = "pip install torch torchvision (both together, from one source)"
    try:
        import torch
        import torchvision
    except (ImportError, OSError, RuntimeError) as error:
        return Check("PyTorch", "broken", str(error), fix)
    n = torch.get_num_threads()
    return Check(
        "PyTorch",
        "ok",
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"{n} {'thread' if n == 1 else 'threads'}",
    )


def _accelerator() -> Check:
    name = "GPU"
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check(name, "broken", str(error), "see PyTorch")
    if torch.cuda.is_available():
        devices = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
        return Check(
            name, "ok", "; ".join(f"{d.name}, {d.total_memory / 2**30:.0f} GB" for d in devices)
        )
    if torch.backends.mps.is_available():
        return Check(name, "ok", "Apple GPU (mps)")
    return Check(
        name,
        "optional",
        "none found; models run on the CPU",
        "for an NVIDIA GPU install its driver; this torch is "
        + (f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"),
    )


def _models() -> Check:
    from slidelens.engine.package import find_models

    try:
        names = [model.name for model in find_models()]
    except SlideLensError as error:
        return Check("Models", "broken", str(error), "slidelens models")
    if not names:
        return Check("Models", "optional", "none found", "make models, or set SLIDELENS_MODELS")
    return Check("Models", "ok", ", ".join(names))


def _plugins() -> Iterator[Check]:
    from slidelens.engine.plugins import try_plugins

    for name, group, tried, fault in try_plugins():
        fix = "update or uninstall the package that brings it" if fault else ""
        detail = fault or f"{tried} ({group})"
        yield Check(f"Plugin {name}", "broken" if fault else "ok", detail, fix)


def _report() -> Check:
    check = _extra("Reports", "report", "weasyprint", "jinja2")
    if check.state == "ok" and sys.platform == "linux" and find_library("pango-1.0") is None:
        fix = "apt-get install libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0"
        detail = f"{check.detail}; Pango is missing: HTML only, no PDF"
        return Check(check.name, "optional", detail, fix)
    return check


def _extra(name: str, extra: str, *packages: str) -> Check:
    """Look for the packages of an extra; the detail is the first one's version."""
    missing = [package for package in packages if _version(package) is None]
    if missing:
        fix = f"pip install 'slidelens[{extra}]'"
        return Check(name, "optional", f"not installed: {', '.join(missing)}", fix)
    return Check(name, "ok", f"{packages[0]} {_version(packages[0])}")


def _napari() -> Check:
    found = _version("napari")
    if found is None:
        return Check("napari", "optional", "not installed", "pip install 'slidelens[desktop]'")
    return Check("napari", "ok", f"{found}, npe2 {_version('npe2')}")


def _opengl() -> Check:
    if sys.platform != "linux":
        return Check("OpenGL", "ok", "part of the system")
    missing = [n for n in ("GL", "EGL") if find_library(n) is None]
    if missing:
        return Check(
            "OpenGL",
            "optional",
            "not found: " + ", ".join(f"lib{n}" for n in missing),
            "apt-get install libgl1 libegl1",
        )
    return Check("OpenGL", "ok", "libGL and libEGL found")


def _qt() -> Check:
    if find_spec("qtpy") is None:
        return Check("Qt", "optional", "not installed", "pip install 'slidelens[desktop]'")
    screen = sys.platform != "linux" or any(
        os.environ.get(n) for n in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    program = (
        "from qtpy.QtGui import QGuiApplication; import qtpy; a = QGuiApplication([]);"
        "print(qtpy.API_NAME, qtpy.QT_VERSION)"
    )
    # In a process of its own: a Qt without its libraries ends the process that asks.
    environment = os.environ | ({} if screen else {"QT_QPA_PLATFORM": "offscreen"})
    try:
        done = subprocess.run(  # noqa: S603  # reason: our own interpreter and program
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Check("Qt", "optional", "did not answer within a minute")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it ended without a word"])[0]
        fix = "pip install PySide6-Essentials; on Debian also apt-get install libegl1 libgl1 "
        return Check("Qt", "optional", reason, fix + "libxkbcommon-x11-0 libxcb-cursor0")
    screens = "" if screen else "; no display here, so no window can open"
    return Check("Qt", "ok", done.stdout.strip() + screens)
