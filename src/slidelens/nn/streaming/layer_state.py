"""Check that a network's layers are in the mode and state that a trunk relies on."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

from slidelens.errors import StreamingError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["LayerState", "layer_states", "refuse_changes", "refuse_hooks"]


class LayerState(NamedTuple):
    """The state of a layer that must not change while a trunk is in use."""

    name: str
    training: bool
    layer: str
    """The layer and its settings, as printed."""
    hooked: bool


def layer_states(module: nn.Module) -> list[LayerState]:
    """Return the state of a module and of every layer in it."""
    return [
        LayerState(
            name, layer.training, f"{type(layer).__name__}({layer.extra_repr()})", _hooked(layer)
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
                f"{_text(was)} when the trunk was made, is now {_text(now)}: the mode (train or "
                "eval), settings, hooks and parametrizations of layers have to stay; make a new "
                "StreamingTrunk of what there is now"
            )


def refuse_hooks(module: nn.Module) -> None:
    """Raise a ``StreamingError`` that names the first layer with a hook: a trunk calls none.

    No layer is ever called on the whole image, which a hook would expect to see or change.
    """
    for name, layer in module.named_modules():
        if _hooked(layer):
            raise StreamingError(
                f"layer {name!r} ({type(layer).__name__}) has a hook, which would not run on the "
                "image: remove it, or register it on the trunk. Pruning and the old weight_norm "
                "and spectral_norm are hooks: make them permanent (prune.remove), or take those "
                "of torch.nn.utils.parametrizations."
            )


def _text(state: LayerState | None) -> str:
    if state is None:
        return "no layer"
    mode = "train" if state.training else "eval"
    return f"layer {state.name!r}, {state.layer} in {mode} mode{' with a hook' * state.hooked}"


def _hooked(layer: nn.Module) -> bool:
    return bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
    )
