"""What is known of a network's weights, for as long as nobody changes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar
from weakref import WeakKeyDictionary, ref

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["WhileUnchanged"]

T = TypeVar("T")


class WhileUnchanged(Generic[T]):
    """Values that belong to networks, forgotten when a parameter or buffer was changed or replaced.

    A change that hides from autograd, by ``tensor.data``, is not seen.
    """

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[nn.Module, tuple[T, _State]] = WeakKeyDictionary()

    def get(self, module: nn.Module) -> T | None:
        """Return what was kept, or None if there is nothing that still holds."""
        if module not in self._kept:
            return None
        value, then = self._kept[module]
        now = module.state_dict(keep_vars=True)
        same = then.keys() == now.keys() and all(
            known() is now[name] and version == _version(now[name])
            for name, (known, version) in then.items()
        )
        return value if same else None

    def keep(self, module: nn.Module, value: T) -> None:
        """Keep a value that holds for the network as it is now."""
        state = module.state_dict(keep_vars=True)
        self._kept[module] = value, {k: (ref(v), _version(v)) for k, v in state.items()}


_Version = tuple[int, "torch.dtype"]
_State = dict[str, tuple["ref[torch.Tensor]", _Version]]


def _version(tensor: torch.Tensor) -> _Version:
    """Return how often a tensor was changed in its place (-1: not known), and its type."""
    return -1 if tensor.is_inference() else tensor._version, tensor.dtype
