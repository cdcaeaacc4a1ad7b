"""What a trunk counts on: the modes of a network's layers, and that nothing runs beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch.nn.utils.parametrize import is_parametrized

from slidelens.errors import StreamingError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["LayerState", "layer_states", "refuse_hooks"]


class LayerState(NamedTuple):
    """What must not change while a trunk is in use."""

    training: bool
    parametrized: bool
    hooked: bool


def layer_states(module: nn.Module) -> list[LayerState]:
    """Return the state of a module and of every layer in it."""
    return [
        LayerState(layer.training, is_parametrized(layer), _hooked(layer))
        for layer in module.modules()
    ]


def refuse_hooks(module: nn.Module) -> None:
    """Raise a ``StreamingError`` that names the first layer with a hook: a trunk runs none.

    Layers are not called one by one on the image; what a hook would see, or change, is not there.
    """
    for name, layer in module.named_modules():
        if _hooked(layer):
            raise StreamingError(
                f"layer {name!r} ({type(layer).__name__}) has a hook, which would not run on the "
                "image: remove it, or register it on the trunk. Pruning and the old weight_norm "
                "and spectral_norm are hooks: make them permanent (prune.remove), or take those "
                "of torch.nn.utils.parametrizations."
            )


def _hooked(layer: nn.Module) -> bool:
    return bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
    )
