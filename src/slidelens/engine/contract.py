"""Check what a family returns; a plugin that fails is named in the error."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager
from math import isfinite
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import numpy as np

from slidelens.errors import ModelError
from slidelens.families import FAMILIES
from slidelens.families.base import MapKind, MapSpec, Patch
from slidelens.families.training import Outcome, Phase
from slidelens.maps.result import names_a_map
from slidelens.nn.encoders import ENCODERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from slidelens.engine.loader import SlideView
    from slidelens.families.base import Event, Family, FamilyConfig, Model
    from slidelens.families.training import Work
    from slidelens.geometry import Mpp, Size

__all__ = [
    "blaming",
    "build_network",
    "check_outcome",
    "check_patch",
    "checked_maps",
    "events_of",
    "family_error",
    "fitting_patch",
    "given",
    "known_phase",
    "nothing_learnt",
    "plugins_of",
]

ThingT = TypeVar("ThingT")
_WITHIN = 1e-4
"""How far rounding may take a probability out of 0..1."""
_FINEST = 8
"""Cells of a map per pixel of the slide, along a side: a model may read finer than the slide is."""


@contextmanager
def blaming(family: str, config: FamilyConfig, doing: str) -> Iterator[None]:
    """Name the plugin that fails in the block: the family's, or its encoder's.

    Parameters
    ----------
    family, config
        Whose code runs.
    doing
        What for, as in "failed to run".

    Raises
    ------
    PluginError
        See :meth:`~slidelens.registry.Registry.blaming`.
    """
    with ENCODERS.blaming(_encoder(config), doing), FAMILIES.blaming(family, doing):
        yield


def plugins_of(family: str, config: FamilyConfig) -> dict[str, str]:
    """Return the packages of plugins that a model needs, name to version.

    Parameters
    ----------
    family, config
        The model's.
    """
    return FAMILIES.package_of(family) | ENCODERS.package_of(_encoder(config))


def _encoder(config: FamilyConfig) -> str:
    return str(getattr(config, "backbone", "")).partition("/")[0]


def build_network(family: Family[Any], config: Any, n_classes: int) -> nn.Module:
    """Build a family's network for ``n_classes`` classes, with the ``config`` given.

    Raises
    ------
    PluginError
        A plugin that fails, or builds something else.
    """
    from torch import nn

    with blaming(family.name, config, "to build its network"):
        return given("build", family.build(config, n_classes), nn.Module)


def events_of(model: Model[Any], view: SlideView) -> Iterator[Event]:
    """Yield what ``model``'s family says of the slide of ``view``.

    Raises
    ------
    PluginError
        A plugin that fails.
    """
    with blaming(model.family, model.config, "to run"):
        yield from given("infer", FAMILIES.get(model.family).infer(model, view), Iterable)


def given(function: str, thing: ThingT, kind: type[Any]) -> ThingT:
    """Return the ``thing`` that a family's ``function`` gave if it is of a ``kind``.

    Raises
    ------
    TypeError
        It is not; :func:`blaming` tells whose function it is.
    """
    if not isinstance(thing, kind):
        raise TypeError(f"{function} gave {_kind(thing)}, expected {kind.__name__}")
    return thing


def family_error(model: Model[Any], fault: str) -> ModelError:
    """Return the error of a family's ``fault`` with a model."""
    return ModelError(f"family {model.family!r} (model {model.name!r}): {fault}")


def checked_maps(
    family: Family[Any], model: Model[Any], size: Size, mpp: Mpp
) -> dict[str, MapSpec]:
    """Return by name the maps that a family declares for a slide of ``size`` px at ``mpp``.

    Raises
    ------
    ModelError
        One that cannot be drawn, or two of one name.
    PluginError
        A plugin that fails.
    """
    with blaming(model.family, model.config, "to declare its maps"):
        specs = list(given("maps", family.maps(model.config, model.classes), Iterable))
    found: dict[str, MapSpec] = {}
    for spec in specs:
        if not isinstance(spec, MapSpec):
            raise family_error(model, f"maps gave {_kind(spec)}, expected MapSpecs.")
        fault = _fault_of(spec, size, mpp) or ("is declared twice" if spec.name in found else "")
        if fault:
            raise family_error(model, f"its map {spec.name!r} {fault}.")
        found[spec.name] = spec
    return found


def _fault_of(spec: MapSpec, size: Size, mpp: Mpp) -> str:
    """Return what is wrong with a declared map; empty if nothing is."""
    if not names_a_map(spec.name) or spec.name == "tissue":
        return "has a name that cannot be used: letters, digits, '_', '-' and '.' make one"
    if spec.kind not in get_args(MapKind):
        return f"is of kind {spec.kind!r}; the kinds are {', '.join(get_args(MapKind))}"
    names: Any = spec.channels  # a plugin may give anything
    if isinstance(names, str) or not names or len(set(names)) < len(names):
        return f"has channels {names!r}; expected a tuple of one name or more, each once"
    if not (isfinite(spec.mpp) and spec.mpp > 0):
        return f"has cells of {spec.mpp} µm; expected more than 0"
    finest = min(mpp) / _FINEST
    if spec.mpp < finest:
        count = size.width * size.height * mpp.x * mpp.y / spec.mpp**2
        return f"has cells of {spec.mpp:g} µm, {count:.1e} of them; expected {finest:g} µm or more"
    return ""


def fitting_patch(event: object, specs: dict[str, MapSpec], model: Model[Any]) -> Patch:
    """Return a patch, as arrays whose shapes fit one of the maps.

    Raises
    ------
    ModelError
        Another event, a map that is not declared, boxes or values of other shapes.
    """
    if not isinstance(event, Patch):
        raise family_error(
            model, f"infer gave {_kind(event)}; expected Patch, Bag, Trajectory or SlideScore."
        )
    if event.map not in specs:
        raise family_error(
            model, f"drew a map {event.map!r}; it declares {', '.join(specs) or 'none'}."
        )
    spec = specs[event.map]
    try:
        boxes = np.asarray(event.boxes, np.float64).reshape(-1, 4)
        values = np.asarray(event.values)
    except (TypeError, ValueError) as error:
        raise family_error(
            model, f"map {spec.name!r}: boxes and values must be arrays ({error})."
        ) from error
    count, planes = len(boxes), 1 if spec.kind == "labels" else len(spec.channels)
    if values.shape[:2] != (count, planes) or values.ndim not in (
        (2,) if spec.instances else (2, 4)
    ):
        rasters = "" if spec.instances else f" or ({count}, {planes}, h, w)"
        raise family_error(
            model,
            f"map {spec.name!r}: values of shape {values.shape} for {count} boxes; expected "
            f"({count}, {planes}){rasters}.",
        )
    # Copied, as it may be drawn later, when the family has put other numbers into its arrays.
    return Patch(spec.name, boxes.copy(), values if values.ndim > 2 else values.copy())


def check_patch(patch: Patch, specs: dict[str, MapSpec], model: Model[Any], size: Size) -> None:
    """Refuse a :func:`fitting_patch` whose numbers cannot be of a slide of ``size`` px.

    Raises
    ------
    ModelError
        Boxes outside the slide; values that the map's kind does not have.
    """
    spec, boxes, values = specs[patch.map], patch.boxes, patch.values
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    right = np.isfinite(boxes).all(1) & (boxes[:, 2:] > 0).all(1)
    right &= (high > 0).all(1) & (low < size).all(1)
    if not right.all():
        raise family_error(
            model,
            f"map {spec.name!r}: box {boxes[~right][0].tolist()} is not one of this slide of "
            f"{size.width} x {size.height} px; expected x, y, w, h in level-0 px.",
        )
    most = {"probability": 1, "labels": len(spec.channels)}.get(spec.kind)
    if most is not None and ((values < -_WITHIN) | (values > most + _WITHIN)).any():
        raise family_error(
            model,
            f"map {spec.name!r}: values from {np.nanmin(values):g} to {np.nanmax(values):g}; "
            f"expected 0 to {most}, or NaN where it did not look.",
        )


def known_phase(model: Model[Any], work: Work) -> Phase:
    """Return what a training step is for, or raise a ``ModelError`` if the loop does not know."""
    if work.phase not in get_args(Phase):
        raise family_error(
            model, f"it trains in phase {work.phase!r}; expected {', '.join(get_args(Phase))}."
        )
    return work.phase


def nothing_learnt(model: Model[Any]) -> ModelError:
    """Return the error of a training in which nothing changes."""
    return family_error(
        model,
        "its training changes no weight: epoch() must yield works of phase 'train', and step() "
        "pass their losses, which depend on the parameters of groups(), to backward().",
    )


def check_outcome(model: Model[Any], work: Work, outcome: object) -> None:
    """Refuse what a training step gave for ``work`` if it is not what the loop takes.

    Losses may be infinite here: training that diverges is no fault of the family.

    Raises
    ------
    ModelError
        No outcome; losses or probabilities of another number, or that are no probabilities.
    """
    if not isinstance(outcome, Outcome):
        raise family_error(
            model, f"a {work.phase} step gave {_kind(outcome)}; expected an Outcome."
        )
    if work.phase != "tune":
        return
    slides, classes = len(work.slides), len(model.classes)
    shape: tuple[tuple[int, ...], ...]
    try:
        shape = np.shape(outcome.losses), np.shape(outcome.probabilities)
        finite = np.isfinite(outcome.probabilities).all() or not np.isfinite(outcome.losses).all()
    except (TypeError, ValueError):  # rows of unlike lengths
        shape, finite = ((), ()), False
    if shape != ((slides,), (slides, classes)) or not finite:
        raise family_error(
            model,
            f"a tune step gave {outcome}; expected per slide ({slides}) a loss and "
            f"{classes} finite probabilities.",
        )


def _kind(thing: object) -> str:
    return "None" if thing is None else f"a {type(thing).__name__}"
