"""A private copy of a network that computes with other tensors.

The network itself is never touched: other threads may use it, or stream it, meanwhile.
"""

from __future__ import annotations

import copy
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["stand_in"]

_DEPTH = 8
"""How far references are followed from an attribute of a layer."""
_REGISTERED = ("_parameters", "_buffers", "_modules")
_COMPILED = "_compiled_call_impl"
"""Set by ``Module.compile``: a call of the original layer."""


def stand_in(module: nn.Module, tensors: Mapping[str, Tensor], *, code: bool = False) -> nn.Module:
    """Return a copy of a network that uses ``tensors`` in place of its own.

    Parameters
    ----------
    module
        The network. All but its layers and their registered tensors is shared with the copy.
    tensors
        Parameters and buffers by name; those that are not named stay. One that the network has
        under several names need be named only once.
    code
        Whether the network's own code will run, which may reach layers and weights through plain
        attributes too: lists, bound methods, closures, objects.
    """
    layers = dict(module.named_modules())
    copies = {id(layer): _unfilled(layer) for layer in layers.values()}
    new: dict[int, Any] = {}
    for path, layer in layers.items():
        for name, own in (*layer._parameters.items(), *layer._buffers.items()):
            given = tensors.get(f"{path}.{name}" if path else name)
            if own is not None and given is not None:
                new[id(own)] = given
    for path, layer in layers.items():
        put = vars(copies[id(layer)])
        for kind in ("_parameters", "_buffers"):
            put[kind] = {
                # A convolution without a bias gets that of its norm.
                name: tensors.get(f"{path}.{name}" if path else name) if own is None
                else new.get(id(own), own)
                for name, own in vars(layer)[kind].items()
            }  # fmt: skip
        put["_modules"] = {
            name: None if child is None else copies[id(child)]
            for name, child in layer._modules.items()
        }
    if code:
        moved = _Moved(new | copies)
        for layer in copies.values():
            for name, value in vars(layer).items():
                if name not in _REGISTERED:
                    vars(layer)[name] = moved(value)
    return copies[id(module)]


def _unfilled(layer: nn.Module) -> nn.Module:
    result: nn.Module = object.__new__(type(layer))
    vars(result).update(vars(layer))
    vars(result).pop(_COMPILED, None)
    return result


class _Moved:
    """Leads references to layers and tensors of a network over to those of its copy."""

    def __init__(self, new: dict[int, Any]) -> None:
        self._new = new
        self._done: dict[int, tuple[Any, Any]] = {}
        """Values by their identity, held so that it stays theirs."""

    def __call__(self, value: Any, depth: int = _DEPTH) -> Any:
        """Return a value with all references led over; the same object if it has none."""
        key = id(value)
        if key in self._new:
            return self._new[key]
        if depth == 0 or isinstance(value, type | ModuleType | Tensor):
            return value
        if key not in self._done:
            self._done[key] = (value, value)  # for what refers to itself
            self._done[key] = (value, self._rebuilt(value, depth - 1))
        return self._done[key][1]

    def _rebuilt(self, value: Any, depth: int) -> Any:
        if isinstance(value, list | tuple | set | frozenset):
            items = [self(item, depth) for item in value]
            if _same(items, value):
                return value
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        if isinstance(value, dict):
            items = [self(item, depth) for item in value.values()]
            if _same(items, value.values()):
                return value
            result = copy.copy(value)
            result.update(zip(value, items, strict=True))
            return result
        if isinstance(value, MethodType):
            owner = self(value.__self__, depth)
            return value if owner is value.__self__ else MethodType(value.__func__, owner)
        if isinstance(value, partial):
            parts = (value.func, value.args, value.keywords)
            f, args, named = (self(part, depth) for part in parts)
            return value if _same((f, args, named), parts) else partial(f, *args, **named)
        if isinstance(value, FunctionType):
            return self._function(value, depth)
        if not hasattr(value, "__dict__"):
            return value
        own = {name: self(item, depth) for name, item in vars(value).items()}
        if _same(own.values(), vars(value).values()):
            return value
        result = copy.copy(value)
        vars(result).update(own)
        return result

    def _function(self, function: FunctionType, depth: int) -> FunctionType:
        cells = function.__closure__ or ()
        try:
            old = [cell.cell_contents for cell in cells]
        except ValueError:  # a variable without a value yet
            return function
        held = [self(item, depth) for item in old]
        defaults = self(function.__defaults__, depth)
        if _same(held, old) and defaults is function.__defaults__:
            return function
        result = FunctionType(
            function.__code__, function.__globals__, function.__name__, defaults,
            tuple(CellType(item) for item in held),
        )  # fmt: skip
        result.__kwdefaults__ = function.__kwdefaults__
        return result


def _same(new: Any, old: Any) -> bool:
    return all(a is b for a, b in zip(new, old, strict=True))
