"""Heatmaps that grow in the viewer while a model runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.desktop.belonging import is_replaced
from slidelens.desktop.layers import map_layers
from slidelens.desktop.shown import (
    DRAWN,
    current_slide,
    layers_on,
    put_layer,
    remove_layers,
    set_range,
)
from slidelens.desktop.window import notify
from slidelens.desktop.worker.preview import Growing
from slidelens.desktop.world import described, lie_on
from slidelens.maps.schema import SlideInfo

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from slidelens.desktop.layer_data import LayerData
    from slidelens.desktop.shown import ShownSlide
    from slidelens.desktop.worker.messages import Message

__all__ = ["LiveMaps"]


@dataclass
class _Live:
    """A map that grows, also while another slide is shown.

    Attributes
    ----------
    slide
        The slide's layer that it was last shown on; a slide that comes back has another one.
    file, content
        Path of the slide's file, and its fingerprint; empty if they are not known.
    waiting, layers
        What is to be shown on that slide, and what is shown.
    earlier
        Folder of the result that was shown there before it grew.
    """

    growing: Growing
    slide: Any = None
    file: str = ""
    content: str = ""
    waiting: list[LayerData] = field(default_factory=list)
    layers: list[Any] = field(default_factory=list)
    earlier: Path | None = None

    def is_on(self, slide: ShownSlide, name: str) -> bool:
        """Return whether it belongs to a slide that is shown, given the name of its own."""
        return slide.is_of(name, self.file) and not is_replaced(slide, self.content)


@dataclass
class LiveMaps:
    """The growing maps of one run in one viewer; :meth:`feed` it with the worker's cells."""

    _maps: dict[tuple[str, str, str], _Live] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)
    """Files that were said to be replaced."""

    def feed(self, viewer: ViewerModel, message: Message) -> bool:
        """Fill in new cells: of every slide, as the worker sends each cell once.

        Returns whether layers wait for :meth:`grow`.
        """
        facts = message.facts
        key = (facts["slide"], facts["model"], facts["map"])
        live = self._maps.get(key)
        if live is None:
            own = {name: facts.get(name, "") for name in ("file", "content")}
            live = self._maps[key] = _Live(Growing.of(message), **own)
        live.growing.add(message)
        slide = current_slide(viewer)
        if slide is None or not slide.is_of(key[0], live.file):
            return False
        if not live.is_on(slide, key[0]):
            self._say_replaced(live.file)
            return False
        waits = self.show(viewer)
        for layer in live.layers:
            _adapt(layer, live.growing)
            layer.refresh()
        return waits

    def show(self, viewer: ViewerModel) -> bool:
        """Make layers of the current slide's maps, including those that grew while it was hidden.

        Returns whether layers wait for :meth:`grow`.
        """
        slide = current_slide(viewer)
        if slide is None:
            return False
        mine = {key: one for key, one in self._maps.items() if one.is_on(slide, key[0])}
        for key, live in mine.items():
            if live.slide is not slide.layer:
                self._begin(viewer, key[1], live, slide)
        return any(live.waiting for live in mine.values())

    def grow(self, viewer: ViewerModel) -> bool:
        """Show one waiting layer: each takes napari a tenth of a second.

        Returns whether more wait.
        """
        slide = current_slide(viewer)
        ready = [
            (key, live)
            for key, live in self._maps.items()
            if slide is not None and live.waiting and live.slide is slide.layer
        ]
        if not ready:
            return False
        key, live = ready[0]
        data = live.waiting.pop(0)
        used = [layer for other in self._maps.values() for layer in other.layers]
        shown = [] if slide is None else layers_on(viewer, slide, model=key[1])
        live.layers.append(put_layer(viewer, data, [one for one in shown if one not in used]))
        _adapt(live.layers[-1], live.growing)
        return len(ready) > 1 or bool(live.waiting)

    def finish(self, model: str) -> None:
        """Forget a model's maps: their layers stay, so that its result can be shown in them."""
        for key in [k for k in self._maps if k[1] == model]:
            del self._maps[key]

    def clear(self, viewer: ViewerModel, model: str | None = None) -> list[Path]:
        """Remove what is shown of one model, or of all that have begun, from the viewer.

        Returns the results that were shown on the current slide until these maps grew.
        """
        slide, earlier = current_slide(viewer), dict[Path, None]()
        for key in [k for k in self._maps if model is None or k[1] == model]:
            live = self._maps.pop(key)
            if live.slide is None:
                continue  # it grew unseen: what is shown belongs to another run
            own = SlideInfo(id=key[0], path=live.file or None)
            remove_layers(viewer, layers_on(viewer, own, model=key[1]))
            there = slide is not None and slide.is_of(key[0], live.file)
            if live.earlier is not None and there:
                earlier[live.earlier] = None
        return list(earlier)

    def _say_replaced(self, file: str) -> None:
        if file not in self._told:
            self._told.add(file)
            notify(
                f"{Path(file).name} was replaced while it was open, and what is shown is the old "
                "one: the maps are shown when the run ends, on the new one."
            )

    def _begin(self, viewer: ViewerModel, model: str, live: _Live, slide: ShownSlide) -> None:
        made = map_layers(live.growing.map, slide.world, slide_id=slide.id, model=model)
        lie_on(made, slide.path)
        first = not any(
            key[:2] == (slide.id, model) and other.slide is slide.layer
            for key, other in self._maps.items()
        )
        shown = list(layers_on(viewer, slide, model=model))
        if first:  # what grows is what the user wants to see
            for other in shown:
                other.visible = False
            for other in layers_on(viewer, slide, *DRAWN):
                other.visible = False
        for number, data in enumerate(made):
            data[1]["visible"] = first and number == 0
            data[1]["name"] += " (running)"
        live.slide, live.waiting, live.layers = slide.layer, made, []
        paths = (described(one.metadata).get("path") for one in shown)
        live.earlier = next((Path(path) for path in paths if path), None)


def _adapt(layer: Any, growing: Growing) -> None:
    """Keep the upper end of the colours at the largest value, for maps without a fixed scale."""
    if growing.map.kind not in ("attention", "saliency"):
        return
    plane = growing.values[growing.map.channel(described(layer.metadata)["channel"])]
    top = float(plane.max(initial=0.0, where=np.isfinite(plane))) or 1.0
    set_range(layer, (0.0, top))
