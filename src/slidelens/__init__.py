"""SlideLens: run, train, compare and review deep models on whole-slide images.

::

    import slidelens as sl

    slide = sl.open_slide("slide.svs")  # a Slide: size, mpp, levels, read, thumbnail
    result = sl.predict(slide, "demo-mil")  # a Result: probabilities, maps, tiles, regions
    for step in sl.predict_cohort("slides", ["demo-mil"], "results"):
        ...  # what takes long is an iterator: each step says how far it is
    for step in sl.train("mil", "slides", "labels.csv", "my-model"):
        ...
    evaluation = sl.evaluate("results", "labels.csv", "evaluation")

Positions are level-0 pixels, resolutions µm per pixel. Names load when first used, so ``import
slidelens`` costs nothing. More is in ``slidelens.tiling`` (tissue, grids, annotations),
``slidelens.maps`` (results), ``slidelens.nn.streaming``, ``slidelens.review`` and
``slidelens.testing.phantom``; the pages are in ``docs/``.
"""

from __future__ import annotations

TYPE_CHECKING = False  # not typing's: to import that takes longer than all else here
if TYPE_CHECKING:
    from slidelens.engine.cohort import predict_cohort
    from slidelens.engine.evaluate import evaluate
    from slidelens.engine.package import load_model
    from slidelens.engine.predict import predict
    from slidelens.engine.train import train
    from slidelens.errors import (
        LabelError,
        MissingMppError,
        ModelError,
        NewerResultError,
        PluginError,
        ResultError,
        SlideError,
        SlideLensError,
        SlideNotFoundError,
        StreamingError,
        UnsupportedSlideError,
    )
    from slidelens.export import export_result
    from slidelens.geometry import Affine, Box, Mpp, Size
    from slidelens.maps.result import Result
    from slidelens.slide.array import from_array
    from slidelens.slide.base import Level, Slide
    from slidelens.slide.open import open_slide

__version__ = "0.1.0"

_HOME = {
    "Affine": "geometry",
    "Box": "geometry",
    "LabelError": "errors",
    "Level": "slide.base",
    "MissingMppError": "errors",
    "ModelError": "errors",
    "Mpp": "geometry",
    "NewerResultError": "errors",
    "PluginError": "errors",
    "Result": "maps.result",
    "ResultError": "errors",
    "Size": "geometry",
    "Slide": "slide.base",
    "SlideError": "errors",
    "SlideLensError": "errors",
    "SlideNotFoundError": "errors",
    "StreamingError": "errors",
    "UnsupportedSlideError": "errors",
    "evaluate": "engine.evaluate",
    "export_result": "export.base",
    "from_array": "slide.array",
    "load_model": "engine.package",
    "open_slide": "slide.open",
    "predict": "engine.predict",
    "predict_cohort": "engine.cohort",
    "train": "engine.train",
}

__all__ = [
    "Affine",
    "Box",
    "LabelError",
    "Level",
    "MissingMppError",
    "ModelError",
    "Mpp",
    "NewerResultError",
    "PluginError",
    "Result",
    "ResultError",
    "Size",
    "Slide",
    "SlideError",
    "SlideLensError",
    "SlideNotFoundError",
    "StreamingError",
    "UnsupportedSlideError",
    "__version__",
    "evaluate",
    "export_result",
    "from_array",
    "load_model",
    "open_slide",
    "predict",
    "predict_cohort",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
