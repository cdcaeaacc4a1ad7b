"""Heatmaps that grow in the viewer while a model runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.desktop.layers import map_layers
from slidelens.desktop.shown import current_slide, layers_of, put_layer, remove_layers
from slidelens.desktop.worker.preview import Growing
from slidelens.desktop.world import described

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from slidelens.desktop.layer_data import LayerData
    from slidelens.desktop.worker.messages import Message

__all__ = ["LiveMaps"]


@dataclass
class _Live:
    growing: Growing
    waiting: list[LayerData]
    layers: list[Any] = field(default_factory=list)


@dataclass
class LiveMaps:
    """The growing maps of one run in one viewer; :meth:`feed` it with the worker's cells."""

    _maps: dict[tuple[str, str, str], _Live] = field(default_factory=dict)

    def feed(self, viewer: ViewerModel, message: Message) -> bool:
        """Fill in new cells, if their slide is in the viewer.

        Returns whether layers wait for :meth:`grow`.
        """
        slide = current_slide(viewer)
        facts = message.facts
        if slide is None or slide.id != facts["slide"]:
            return False
        key = (facts["slide"], facts["model"], facts["map"])
        live = self._maps.get(key)
        if live is None:
            live = self._maps[key] = self._begin(viewer, message, slide)
        live.growing.add(message)
        for layer in live.layers:
            _adapt(layer, live.growing)
            layer.refresh()
        return bool(live.waiting)

    def grow(self, viewer: ViewerModel) -> None:
        """Show one layer that waits: each takes napari a tenth of a second."""
        key, live = next(((k, m) for k, m in self._maps.items() if m.waiting), (None, None))
        if key is None or live is None:
            return
        data = live.waiting.pop(0)
        slide = current_slide(viewer)
        if slide is not None and slide.id == key[0]:
            used = [layer for other in self._maps.values() for layer in other.layers]
            shown = layers_of(viewer, slide=key[0], model=key[1])
            live.layers.append(put_layer(viewer, data, [one for one in shown if one not in used]))
            _adapt(live.layers[-1], live.growing)

    def finish(self, model: str) -> None:
        """Forget the maps of a model: their layers stay, for its result to be shown in."""
        for key in [k for k in self._maps if k[1] == model]:
            del self._maps[key]

    def clear(self, viewer: ViewerModel, model: str | None = None) -> None:
        """Take what is shown of one model, or of all that have begun, out of the viewer."""
        for key in [k for k in self._maps if model is None or k[1] == model]:
            del self._maps[key]
            remove_layers(viewer, layers_of(viewer, slide=key[0], model=key[1]))

    def _begin(self, viewer: ViewerModel, message: Message, slide: Any) -> _Live:
        facts = message.facts
        growing = Growing.of(message)
        made = map_layers(growing.map, slide.world, slide_id=slide.id, model=facts["model"])
        first = not any(key[:2] == (slide.id, facts["model"]) for key in self._maps)
        if first:  # what grows is what one wants to see
            for other in layers_of(viewer, slide=slide.id, model=facts["model"]):
                other.visible = False
            for other in layers_of(viewer, "map", "regions", slide=slide.id):
                other.visible = False
        for number, data in enumerate(made):
            data[1]["visible"] = first and number == 0
            data[1]["name"] += " (running)"
        return _Live(growing, made)


def _adapt(layer: Any, growing: Growing) -> None:
    """Keep the upper end of the colours at the largest value, for maps of no fixed scale."""
    if growing.map.kind not in ("attention", "saliency"):
        return
    plane = growing.values[growing.map.channel(described(layer.metadata)["channel"])]
    top = float(plane.max(initial=0.0, where=np.isfinite(plane))) or 1.0
    if top != layer.contrast_limits[1]:
        layer.contrast_limits_range = (0.0, top)
        layer.contrast_limits = (0.0, top)
