"""Heatmaps that grow in the viewer while a model runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.desktop.layers import map_layers
from slidelens.desktop.shown import add_layer, current_slide, layers_of, remove_layers
from slidelens.desktop.worker.preview import Growing
from slidelens.desktop.world import described

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from slidelens.desktop.worker.messages import Message

__all__ = ["LiveMaps"]


@dataclass
class _Live:
    growing: Growing
    layers: list[Any]


@dataclass
class LiveMaps:
    """The growing maps of one run in one viewer; :meth:`feed` it with the worker's cells."""

    _maps: dict[tuple[str, str, str], _Live] = field(default_factory=dict)

    def feed(self, viewer: ViewerModel, message: Message) -> None:
        """Show new cells, if their slide is in the viewer."""
        slide = current_slide(viewer)
        facts = message.facts
        if slide is None or slide.id != facts["slide"]:
            return
        key = (facts["slide"], facts["model"], facts["map"])
        live = self._maps.get(key)
        if live is None:
            live = self._maps[key] = self._begin(viewer, message, slide)
        live.growing.add(message)
        for layer in live.layers:
            _adapt(layer, live.growing)
            layer.refresh()

    def clear(self, viewer: ViewerModel, model: str | None = None) -> None:
        """Take the maps of one model, or all, out of the viewer."""
        for key in [k for k in self._maps if model is None or k[1] == model]:
            remove_layers(viewer, self._maps.pop(key).layers)

    def _begin(self, viewer: ViewerModel, message: Message, slide: Any) -> _Live:
        facts = message.facts
        growing = Growing.of(message)
        made = map_layers(growing.map, slide.world, slide_id=slide.id, model=facts["model"])
        first = not any(key[:2] == (slide.id, facts["model"]) for key in self._maps)
        if first:  # what grows is what one wants to see
            remove_layers(viewer, layers_of(viewer, slide=slide.id, model=facts["model"]))
            for other in layers_of(viewer, "map", "regions", slide=slide.id):
                other.visible = False
        layers = []
        for number, data in enumerate(made):
            data[1]["visible"] = first and number == 0
            data[1]["name"] += " (running)"
            layers.append(add_layer(viewer, data))
        return _Live(growing, layers)


def _adapt(layer: Any, growing: Growing) -> None:
    """Keep the upper end of the colours at the largest value, for maps of no fixed scale."""
    if growing.map.kind not in ("attention", "saliency"):
        return
    plane = growing.values[growing.map.channel(described(layer.metadata)["channel"])]
    top = float(plane.max(initial=0.0, where=np.isfinite(plane))) or 1.0
    if top != layer.contrast_limits[1]:
        layer.contrast_limits_range = (0.0, top)
        layer.contrast_limits = (0.0, top)
