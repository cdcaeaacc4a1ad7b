"""Sample data: a synthetic slide, and the bundled model's result on it."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from slidelens.desktop.layers import result_layers, slide_layer
from slidelens.desktop.window import dress, open_viewer
from slidelens.errors import ModelError
from slidelens.testing.phantom import PhantomSpec, write_phantom

if TYPE_CHECKING:
    from slidelens.desktop.layer_data import LayerData

__all__ = ["SAMPLE_MODEL", "SAMPLE_SLIDE", "phantom", "phantom_with_heatmap"]

SAMPLE_MODEL = "demo-mil"
SAMPLE_SLIDE = PhantomSpec(size=(3072, 2304), seed=7, lesions=2, tumor_fraction=0.2)


def phantom() -> list[LayerData]:
    """Draw a phantom slide with tumour, in a file so that models can run on it."""
    from slidelens.slide.open import open_slide

    slide = open_slide(_drawn())
    _dress()
    return [slide_layer(slide)]


def phantom_with_heatmap() -> list[LayerData]:
    """Draw the phantom and run the bundled model over it.

    Raises
    ------
    ModelError
        The bundled model is not installed.
    """
    from slidelens.maps.result import Result
    from slidelens.slide.open import open_slide

    path = _drawn()
    _predict(path, path.parent)
    slide, result = open_slide(path), Result.load(path.parent / SAMPLE_MODEL / path.stem)
    _dress()
    return [slide_layer(slide), *result_layers(result, slide)]


def _predict(slide: Path, out: Path) -> None:
    """Run the model in its own process.

    In the window's process, PyTorch's compiler and Mesa's software OpenGL each load an LLVM, and
    the second one crashes the program.
    """
    command = [sys.executable, "-P", "-m", "slidelens", "predict", str(slide), "--out", str(out)]
    command += ["--model", SAMPLE_MODEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # reason: our own program, our own files
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise ModelError(said[-1] if said else f"slidelens predict ended with {done.returncode}")


def _drawn() -> Path:
    """Return the sample's file; drawn once, as the window may be reading it."""
    path = Path(_folder().name) / "phantom.tif"
    if not path.exists():
        write_phantom(path, SAMPLE_SLIDE)
    return path


@cache
def _folder() -> TemporaryDirectory[str]:
    """Return the folder of the sample's files while the program runs."""
    return TemporaryDirectory(prefix="slidelens-sample-", ignore_cleanup_errors=True)


def _dress() -> None:
    viewer: Any = open_viewer()
    if viewer is not None:
        dress(viewer)
