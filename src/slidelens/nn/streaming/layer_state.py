"""Check that a network's layers are in the mode and state that a trunk relies on."""

from __future__ import annotations

from inspect import isfunction
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrizations import _SpectralNorm

from slidelens.errors import StreamingError

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "LayerState",
    "layer_states",
    "refuse_changes",
    "refuse_hooks",
    "refuse_training",
]


class LayerState(NamedTuple):
    """The state of a layer that must not change while a trunk is in use."""

    name: str
    training: bool
    layer: str
    """The layer and its settings, as printed."""
    hooked: bool
    settings: dict[str, Any]
    """Its public attributes that are numbers, text, None, or tuples of these."""
    constant: bool
    """Whether it is a norm without running statistics."""


def layer_states(module: nn.Module) -> list[LayerState]:
    """Return the state of a module and of every layer in it."""
    return [
        LayerState(
            name,
            layer.training,
            f"{type(layer).__name__}({layer.extra_repr()})",
            _changed_call(layer) != "",
            {k: v for k, v in vars(layer).items() if not k.startswith("_") and _simple(v)},
            _measures(layer),
        )
        for name, layer in module.named_modules()
    ]


def refuse_changes(module: nn.Module, states: list[LayerState]) -> None:
    """Raise a ``StreamingError`` if the ``module`` has changed since its trunk was made.

    Parameters
    ----------
    module
        The network.
    states
        The result of :func:`layer_states` when the trunk was made.
    """
    for was, now in zip_longest(states, layer_states(module)):
        if was != now:
            raise StreamingError(
                f"{_text(was, now)} when the trunk was made, is now {_text(now, was)}: the mode "
                "(train or eval), settings, attributes, hooks and parametrizations of layers have "
                "to stay; make a new StreamingTrunk of what there is now"
            )


def refuse_hooks(module: nn.Module) -> None:
    """Raise a ``StreamingError`` that names the first layer with a hook: a trunk calls none.

    No layer is ever called on the whole image, which a hook would expect to see or change. A method
    that was replaced on the layer itself is one, too.
    """
    for name, layer in module.named_modules():
        what = _changed_call(layer)
        if what == "hook":
            raise StreamingError(
                f"layer {name!r} ({type(layer).__name__}) has a hook, which would not run on the "
                "image: remove it, or register it on the trunk. Pruning and the old weight_norm "
                "and spectral_norm are hooks: make them permanent (prune.remove), or take those "
                "of torch.nn.utils.parametrizations."
            )
        if what:
            raise StreamingError(
                f"layer {name!r} ({type(layer).__name__}) has another {what}() than its class, "
                "which would not run on the image: undo that, merge an adapter's weights into "
                "those of the layer, or make a layer of a class of its own of it"
            )
        if isinstance(layer, _SpectralNorm) and layer.training:
            raise StreamingError(
                f"the spectral norm {name!r} is in training mode, so its weight would change from "
                "tile to tile: call eval() on the module (its weights still train)"
            )


def refuse_training(module: nn.Module) -> None:
    """Raise a ``StreamingError`` that names the first layer that sees more than single cells.

    That is a norm that measures its input, or dropout that is switched on.
    """
    for name, layer in module.named_modules():
        drops = isinstance(layer, _DropoutNd) and layer.training and layer.p > 0
        if drops or _measures(layer):
            why = "it is in training mode" if layer.training else "it has no running statistics"
            raise StreamingError(
                f"layer {name!r} ({type(layer).__name__}) cannot be streamed: {why}; call eval() "
                "on the module (its weights still train), and use batch norms with statistics"
            )


def _measures(layer: nn.Module) -> bool:
    """Whether a layer is a norm that takes the statistics of its input."""
    if not isinstance(layer, _BatchNorm | _InstanceNorm):
        return False
    return layer.training or layer.running_mean is None or layer.running_var is None


def _simple(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_simple(item) for item in value)
    return value is None or isinstance(value, int | float | str)


def _text(state: LayerState | None, other: LayerState | None) -> str:
    if state is None:
        return "no layer"
    mode = "train" if state.training else "eval"
    text = f"layer {state.name!r}, {state.layer} in {mode} mode{' with a hook' * state.hooked}"
    old = {} if other is None or other.layer != state.layer else other.settings
    differ = {k: v for k, v in state.settings.items() if old and (k not in old or old[k] != v)}
    differ.pop("training", None)
    named = ", ".join(f"{name}={value!r}" for name, value in differ.items())
    lacks = " without running statistics" * (state.constant and not state.training)
    return f"{text}{lacks}{f' and {named}' if named else ''}"


def _changed_call(layer: nn.Module) -> str:
    """Return ``hook`` if a layer has one, or the name of a method replaced on it, or nothing."""
    if (
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
    ):
        return "hook"
    return next(
        (
            name
            for name, value in vars(layer).items()
            if callable(value) and isfunction(getattr(type(layer), name, None))
        ),
        "",
    )
