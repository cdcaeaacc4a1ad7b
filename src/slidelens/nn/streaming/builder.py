"""Build the nodes of a graph from the calls of a program traced by torch.fx."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from slidelens.errors import StreamingError
from slidelens.nn.streaming.fold import fold_norms
from slidelens.nn.streaming.graph import Call, LocalGraph, Node, Ref

__all__ = ["Builder", "Operation", "Pieces", "Rule"]


@dataclass(frozen=True)
class Operation:
    """A call of the traced program with its arguments resolved, as the rules see it."""

    name: str
    kind: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    module: nn.Module | None = None

    @property
    def what(self) -> str:
        """Name of the operation as a user knows it."""
        if self.module is not None:
            return type(self.module).__name__
        return str(getattr(self.target, "__name__", self.target))

    def refuse(self, why: str) -> StreamingError:
        """Error that names the layer."""
        return StreamingError(f"layer {self.name!r} ({self.what}) cannot be streamed: {why}")

    def bind(self, signature: str, **defaults: Any) -> dict[str, Any]:
        """Arguments by name, for a function whose parameters are ``signature``."""
        names = signature.split()
        bound = {**defaults, **dict(zip(names, self.args, strict=False)), **self.kwargs}
        unknown = set(bound) - set(names)
        if unknown:
            raise self.refuse(f"argument {sorted(unknown)} is not understood")
        return bound


@dataclass(frozen=True)
class Pieces:
    """The result of a chunk: several slices of channels, of which the program picks."""

    call: Call
    source: int


Rule = Callable[["Builder", Operation], Any]
FoundT = TypeVar("FoundT")


class Builder:
    """Turns the calls of a traced program into nodes.

    Parameters
    ----------
    root
        The traced module.
    rule_for
        Returns the rule that makes a node of an operation, or raises `StreamingError`.
    mutates
        Tells whether an operation writes into its first argument.
    made
        Tensors that ``forward()`` makes, by the names that the traced program gives them.
    """

    def __init__(
        self,
        root: nn.Module,
        rule_for: Callable[[Operation], Rule],
        mutates: Callable[[Operation], bool],
        made: Mapping[str, Tensor],
    ) -> None:
        self.root, self.rule_for, self.mutates = root, rule_for, mutates
        self._made = made
        self._owned = {id(tensor) for tensor in (*root.parameters(), *root.buffers())}
        self.nodes: list[Node] = []
        self._env: dict[fx.Node, Any] = {}
        self._constants: dict[int, Any] = {}
        self._alias: dict[int, int] = {}
        self._stale: dict[int, str] = {}

    def build(self, graph: fx.Graph) -> LocalGraph:
        """Make the graph of a traced program; ``StreamingError`` if it cannot be streamed."""
        for node in graph.nodes:
            if node.op == "placeholder":
                self._env[node] = self._placeholder(node)
            elif node.op == "get_attr":
                self._env[node] = self._attribute(node)
            elif node.op == "output":
                return LocalGraph(*fold_norms(self.nodes, self._output(node), self.root))
            else:
                self._env[node] = self._operation(node)
        raise StreamingError("the traced module returns nothing")

    # What rules use -------------------------------------------------------------------------

    def add(self, op: Operation, kind: Any, *, view: bool = False, **fields: Any) -> Ref:
        """Append a node; its inputs are the references in ``args`` and ``kwargs`` of ``op``."""
        refs = list(dict.fromkeys(_refs((op.args, op.kwargs))))
        index = len(self.nodes)
        streamed = [r.node for r in refs if not self.is_constant(r)]
        fields.setdefault("roles", self.nodes[streamed[0]].roles if streamed else "nchw")
        self.nodes.append(
            Node(
                index=index,
                name=op.name,
                kind=kind,
                inputs=tuple(streamed),
                constants=tuple(r.node for r in refs if self.is_constant(r)),
                view=view,
                **fields,
            )
        )
        self._alias[index] = self._alias[streamed[0]] if view and streamed else index
        return Ref(index)

    def call(self, op: Operation, *, mutates: bool = False) -> Call:
        """Return the call that runs ``op`` as it was written."""
        kinds: dict[str, Any] = {
            "call_module": "module",
            "call_function": "function",
            "call_method": "method",
        }
        return Call(kinds[op.kind], op.target, op.args, tuple(op.kwargs.items()), mutates=mutates)

    def is_constant(self, ref: Any) -> bool:
        """Whether the value does not depend on the image."""
        return not isinstance(ref, Ref) or ref.node in self._constants

    def shape_of(self, ref: Ref) -> tuple[int, ...]:
        """Shape of a constant tensor."""
        value = self._constants[ref.node]
        return tuple(value.shape) if isinstance(value, Tensor) else ()

    def roles(self, op: Operation) -> str:
        """Axes of the values that ``op`` reads, which must agree."""
        found = {self.nodes[r.node].roles for r in self.streamed(op)}
        if len(found) != 1:
            raise op.refuse(f"its inputs have axes {sorted(found)}; permute them alike")
        return found.pop()

    def streamed(self, op: Operation) -> list[Ref]:
        """Return the references in ``op`` to values that depend on the image."""
        return [r for r in _refs((op.args, op.kwargs)) if not self.is_constant(r)]

    # The program ----------------------------------------------------------------------------

    def _placeholder(self, node: fx.Node) -> Ref:
        if self.nodes:
            raise StreamingError(
                f"forward() takes a second input {node.target!r}; a trunk takes one image"
            )
        self.nodes.append(Node(0, "input", "input"))
        self._alias[0] = 0
        return Ref(0)

    def _attribute(self, node: fx.Node) -> Ref:
        path = str(node.target)
        made = path in self._made
        op = Operation(path, "get_attr", path, (), {})
        call = Call("value", self._made[path]) if made else Call("attribute", path)
        value = call.run(self.root, {})
        if isinstance(value, Tensor) and value.requires_grad and id(value) not in self._owned:
            raise StreamingError(
                f"forward() uses {'a tensor' if made else f'the tensor {path!r}'} that requires a "
                "gradient and is no parameter of the network, so it would get none: make it an "
                "nn.Parameter of the module, or take its detach()"
            )
        ref = self.add(op, "constant", call=call)
        self._constants[ref.node] = value
        return ref

    def _operation(self, node: fx.Node) -> Any:
        module = self.root.get_submodule(str(node.target)) if node.op == "call_module" else None
        op = Operation(
            _name(node), node.op, node.target, self._resolve(node.args),
            self._resolve(node.kwargs), module,
        )  # fmt: skip
        pieces = _found((op.args, op.kwargs), Pieces)
        if pieces and op.target is not operator.getitem:
            raise op.refuse("it takes several pieces of a chunk at once; pick them one by one")
        if not self.streamed(op) and not pieces:
            return self._constant(op)
        for ref in self.streamed(op):
            if ref.node in self._stale:
                raise op.refuse(
                    f"it reads a view of what {self._stale[ref.node]!r} changed in place; "
                    "make that operation out-of-place"
                )
        result = self.rule_for(op)(self, op)
        if self.mutates(op):
            self._written(node, op, result)
        return result

    def _constant(self, op: Operation) -> Ref:
        call = self.call(op)
        module = op.target if op.kind == "call_module" else None
        ref = self.add(op, "constant", call=call, module=module)
        with torch.no_grad():
            self._constants[ref.node] = call.run(self.root, self._constants)
        return ref

    def _written(self, node: fx.Node, op: Operation, result: Ref) -> None:
        """Redirect later readers of a value that was written in place to the result."""
        old = self._env[node.args[0]]  # type: ignore[index]
        if not isinstance(old, Ref) or self.is_constant(old):
            return
        root = self._alias[old.node]
        for index, alias in self._alias.items():
            if alias == root and index not in (old.node, result.node):
                self._stale[index] = op.name
        for key, value in self._env.items():
            if value == old:
                self._env[key] = result
        self._alias[result.node] = result.node

    def _resolve(self, arg: Any) -> Any:
        return fx.map_arg(arg, lambda n: self._env[n])

    def _output(self, node: fx.Node) -> int:
        result = self._resolve(node.args[0])
        if not isinstance(result, Ref) or self.is_constant(result):
            raise StreamingError(
                f"the module returns {type(result).__name__} instead of one map of features; "
                "wrap it so that forward() returns one tensor"
            )
        roles = self.nodes[result.node].roles
        if roles != "nchw":
            raise StreamingError(f"the module returns axes {roles!r}; permute them to 'nchw'")
        return result.node


def _refs(arg: Any) -> list[Ref]:
    return _found(arg, Ref)


def _found(arg: Any, kind: type[FoundT]) -> list[FoundT]:
    """Return the objects of a kind among arguments, also within lists and mappings."""
    if isinstance(arg, kind):
        return [arg]
    if isinstance(arg, dict):
        arg = tuple(arg.values())
    if isinstance(arg, list | tuple):
        return [found for item in arg for found in _found(item, kind)]
    return []


def _name(node: fx.Node) -> str:
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack") or {}
    where = next(reversed(stack), "") if stack else ""
    what = str(getattr(node.target, "__name__", node.target))
    return f"{where}.{what}" if where else what
