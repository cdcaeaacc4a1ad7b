"""Trace a module into its graph of local operations by torch.fx."""

from __future__ import annotations

import operator
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from slidelens.errors import StreamingError
from slidelens.nn.frozen import FrozenNorm
from slidelens.nn.streaming.builder import Builder
from slidelens.nn.streaming.rules import mutates, rule_for

if TYPE_CHECKING:
    from slidelens.nn.streaming.graph import LocalGraph

__all__ = ["trace"]

_MADE = "_tensor_constant"
"""How torch.fx names tensors that ``forward()`` makes."""
_tracing = Lock()
"""torch.fx puts its own into ``nn.Module`` while it traces, and takes it out afterwards: two traces
at once would leave it there."""


def trace(module: nn.Module) -> LocalGraph:
    """Trace a module that takes an image ``(N, C, H, W)`` and returns one map of features.

    Raises
    ------
    StreamingError
        The module cannot be traced, or has a layer that needs more than a neighbourhood of each
        cell; the message names the layer and a remedy. Or what it does would be lost: random
        numbers that it draws, contexts such as ``torch.no_grad`` that it enters.
    """
    with _tracing:
        program = _Program.of(module)
    return Builder(module, rule_for, mutates, program.made).build(program.graph)


class _Program(NamedTuple):
    """What torch.fx records of a module."""

    graph: fx.Graph
    made: dict[str, Tensor]
    """Tensors that ``forward()`` makes without the image: fixed numbers, but for random ones."""

    @classmethod
    def of(cls, module: nn.Module) -> _Program:
        """Trace a module, which stays as it is, and see that it does the same a second time."""
        program = cls._once(module)
        if not program.equals(cls._once(module)):
            raise StreamingError(
                f"{type(module).__name__} draws random numbers in forward(), or does something "
                "else every time: a trunk would draw them once and for all tiles. Keep them in a "
                "buffer, or take them out of forward()"
            )
        return program

    @classmethod
    def _once(cls, module: nn.Module) -> _Program:
        own = set(vars(module))
        try:
            # Modes of its own, so that any that forward() enters are seen to differ.
            with torch.inference_mode(mode=False), torch.enable_grad():
                graph = _Tracer().trace(module)
            return cls(graph, {name: getattr(module, name) for name in _made(module, own)})
        except StreamingError:
            raise
        except Exception as error:
            # torch.fx raises whatever the module's code raises on a symbolic value.
            raise StreamingError(
                f"{type(module).__name__} cannot be traced by torch.fx: {error}. Take control flow "
                "that depends on the image or its shape out of forward(), or give scheme='halo' "
                "with field=ReceptiveField(...)"
            ) from error
        finally:
            for name in _made(module, own):  # torch.fx keeps them in the module
                delattr(module, name)

    def equals(self, other: _Program) -> bool:
        """Whether another trace did the same."""
        steps = [
            [(n.op, n.target, repr(n.args), repr(n.kwargs)) for n in program.graph.nodes]
            for program in (self, other)
        ]
        return (
            steps[0] == steps[1]
            and self.made.keys() == other.made.keys()
            and all(_equal(tensor, other.made[name]) for name, tensor in self.made.items())
        )


def _made(module: nn.Module, own: set[str]) -> list[str]:
    """Return the names of tensors that tracing has put into a module, beside its ``own`` names."""
    return [name for name in vars(module) if name.startswith(_MADE) and name not in own]


def _equal(one: Tensor, other: Tensor) -> bool:
    alike = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
    return alike and bool(torch.eq(one, other).logical_or(one.isnan() & other.isnan()).all())


class _Proxy(fx.Proxy):
    """Records ``a += b`` as a write into ``a``."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})

    def __ipow__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.ipow, (self, other), {})


class _Tracer(fx.Tracer):
    """Traces its own thread only, not networks that run in others meanwhile."""

    # What is computed of a buffer follows it when it changes.
    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self._thread = get_ident()
        self._modes = _modes()

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        if get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_proxy(self, kind: str, target: Any, *args: Any, **more: Any) -> fx.Proxy:
        modes = _modes()
        for what, hint in _CONTEXTS.items():
            if modes[what] != self._modes[what]:
                name = getattr(target, "__name__", target)
                raise StreamingError(
                    f"{name!r} runs in {what} that forward() enters, which would not hold for "
                    f"tiles: {hint}, or give scheme='halo' with field=ReceptiveField(...)"
                )
        return super().create_proxy(kind, target, *args, **more)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # A single layer given as the whole module is a leaf too.
        leaf = super().is_leaf_module(m, module_qualified_name) or isinstance(m, FrozenNorm)
        return leaf and not isinstance(m, nn.Sequential | nn.ModuleList | nn.ModuleDict)


_CONTEXTS = {
    "a grad mode (torch.no_grad and its like)": "take detach() of a value, or requires_grad_(False)"
    " of weights, instead",
    "torch.autocast": "enter it around the trunk instead",
}
"""Contexts whose effect torch.fx does not record, and what to do instead."""


def _modes() -> dict[str, Any]:
    """Return the contexts that this thread is in."""
    # The number of autocasts tells of one more, even one of the same precision.
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    grad = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    return dict(zip(_CONTEXTS, (grad, depth), strict=True))
