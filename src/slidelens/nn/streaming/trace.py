"""Trace a module into its graph of local operations by torch.fx."""

from __future__ import annotations

import operator
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from slidelens.errors import StreamingError
from slidelens.nn.frozen import FrozenNorm
from slidelens.nn.streaming.builder import Builder
from slidelens.nn.streaming.rules import mutates, rule_for

if TYPE_CHECKING:
    from slidelens.nn.streaming.graph import LocalGraph

__all__ = ["trace"]

_tracing = Lock()
"""torch.fx puts its own into ``nn.Module`` while it traces, and takes it out afterwards: two traces
at once would leave it there."""


def trace(module: nn.Module) -> LocalGraph:
    """Trace a module that takes an image ``(N, C, H, W)`` and returns one map of features.

    Raises
    ------
    StreamingError
        The module cannot be traced, or has a layer that needs more than a neighbourhood of each
        cell; the message names the layer and a remedy.
    """
    tracer = _Tracer()
    try:
        with _tracing:
            graph = tracer.trace(module)
    except StreamingError:
        raise
    except Exception as error:
        # torch.fx raises whatever the module's code raises on a symbolic value.
        raise StreamingError(
            f"{type(module).__name__} cannot be traced by torch.fx: {error}. Take control flow "
            "that depends on the image or its shape out of forward(), or give scheme='halo' with "
            "field=ReceptiveField(...)"
        ) from error
    return Builder(module, rule_for, mutates).build(graph)


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


class _Tracer(fx.Tracer):
    """Traces its own thread only, not networks that run in others meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = get_ident()

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        if get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # A single layer given as the whole module is a leaf too.
        leaf = super().is_leaf_module(m, module_qualified_name) or isinstance(m, FrozenNorm)
        return leaf and not isinstance(m, nn.Sequential | nn.ModuleList | nn.ModuleDict)
