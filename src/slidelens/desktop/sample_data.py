"""Sample data: a synthetic slide, and what the bundled model sees on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slidelens.desktop.layers import result_layers, slide_layer
from slidelens.desktop.window import dress, open_viewer
from slidelens.slide.array import from_array
from slidelens.testing.phantom import PhantomSpec, draw

if TYPE_CHECKING:
    from slidelens.desktop.layer_data import LayerData
    from slidelens.slide.base import Slide

__all__ = ["SAMPLE_MODEL", "SAMPLE_SLIDE", "phantom", "phantom_with_heatmap"]

SAMPLE_MODEL = "demo-mil"
SAMPLE_SLIDE = PhantomSpec(size=(3072, 2304), seed=7, lesions=2, tumor_fraction=0.2)


def phantom() -> list[LayerData]:
    """Draw a phantom slide with tumour, in memory."""
    _dress()
    return [slide_layer(_phantom())]


def phantom_with_heatmap() -> list[LayerData]:
    """Draw the phantom and run the bundled model over it.

    Raises
    ------
    ModelError
        The bundled model is not installed.
    """
    from slidelens.engine.predict import predict

    slide = _phantom()
    result = predict(slide, SAMPLE_MODEL)
    _dress()
    return [slide_layer(slide), *result_layers(result, slide)]


def _phantom() -> Slide:
    return from_array(draw(SAMPLE_SLIDE), mpp=SAMPLE_SLIDE.mpp, name="phantom")


def _dress() -> None:
    viewer: Any = open_viewer()
    if viewer is not None:
        dress(viewer)
