"""A network as a graph of local operations that can be computed piece by piece.

There are five kinds of node:

``input``
    The image.
``constant``
    A tensor that does not depend on the image: a weight, or a function of weights.
``local``
    One cell in, one cell out: activations, frozen norms, linear layers and layer norms over the
    channels, concatenation and slicing of channels, permutation of axes.
``join``
    Arithmetic between two branches, such as the addition of a residual block.
``window``
    Convolution, pooling, padding: an output cell reads a window of input cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from slidelens.errors import StreamingError
from slidelens.nn.receptive import ReceptiveField, Window

if TYPE_CHECKING:
    from torch import nn

    from slidelens.nn.windows import WindowOp

__all__ = ["Call", "LocalGraph", "Node", "Ref", "attribute"]

_MANY = 64
"""Strides of an image that is large enough for any network."""

Values = Mapping[int, Any]


class Ref(NamedTuple):
    """A reference to a node's value among the arguments of a call."""

    node: int


@dataclass(frozen=True)
class Call:
    """One operation of the network: a module, a function, a method, a weight, or a fixed tensor.

    It holds names, not modules, so that it always uses the current weights.
    """

    kind: Literal["module", "function", "method", "attribute", "value"]
    target: Any
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()
    mutates: bool = False
    """It would write into its first argument, so it gets a copy."""
    pick: int | None = None
    """Which of several results."""

    def run(self, root: nn.Module, values: Values) -> Any:
        """Compute the operation on ``values`` with the weights of ``root``."""
        if self.kind == "attribute":
            return attribute(root, self.target)
        if self.kind == "value":
            return self.target
        args = [_fill(arg, values) for arg in self.args]
        kwargs = {key: _fill(arg, values) for key, arg in self.kwargs}
        if self.mutates:
            args[0] = args[0].clone()
        if self.kind == "module":
            result = root.get_submodule(self.target)(*args, **kwargs)
        elif self.kind == "method":
            result = getattr(args[0], self.target)(*args[1:], **kwargs)
        else:
            result = self.target(*args, **kwargs)
        return result if self.pick is None else result[self.pick]


def attribute(root: nn.Module, path: str) -> Any:
    """Return what a network has at a path such as ``block.conv.weight``."""
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _fill(arg: Any, values: Values) -> Any:
    if isinstance(arg, Ref):
        return values[arg.node]
    if isinstance(arg, list | tuple):
        return type(arg)(_fill(item, values) for item in arg)
    return arg


@dataclass(frozen=True)
class Node:
    """One operation, in the order of execution; see the module's docstring."""

    index: int
    name: str
    kind: Literal["input", "constant", "local", "join", "window"]
    inputs: tuple[int, ...] = ()
    """The nodes it reads that depend on the image."""
    constants: tuple[int, ...] = ()
    """The constants it reads."""
    roles: str = "nchw"
    """What the axes of its value are."""
    call: Call | None = None
    window: WindowOp | None = None
    module: str | None = None
    """The module whose parameters it uses."""
    norm: str | None = None
    """The frozen norm that the module has taken over: it runs with other weights."""
    weights: tuple[Ref | None, ...] = ()
    """Weights of a functional convolution."""
    view: bool = False
    """Its value shares the memory of its input."""
    fresh: bool = False
    """Its value is a tensor of its own, which its own gradient does not need."""
    overwrites: bool = False
    """A ReLU that may write into its input: nothing else needs it."""

    @property
    def dims(self) -> tuple[int, int]:
        """Axes of rows and columns."""
        return self.roles.index("h"), self.roles.index("w")

    def window_weights(self, root: nn.Module, values: Values) -> tuple[Any, ...]:
        """Weight and bias of a convolution; nothing for other windows.

        An untraced module takes the place of its weights.
        """
        if self.window is not None and self.window.kind == "opaque":
            return (root,)
        if self.window is None or self.window.kind != "conv":
            return ()
        if self.module is not None:
            layer = root.get_submodule(self.module)
            return layer.weight, layer.bias
        return tuple(None if ref is None else values[ref.node] for ref in self.weights)

    def renumbered(self, new: Mapping[int, int] | Sequence[int]) -> Node:
        """Return this node with its references renumbered: ``new`` maps old to new numbers."""

        def ref(arg: Any) -> Any:
            if isinstance(arg, Ref):
                return Ref(new[arg.node])
            if isinstance(arg, list | tuple):
                return type(arg)(ref(item) for item in arg)
            return arg

        call = self.call and replace(
            self.call, args=ref(self.call.args), kwargs=ref(self.call.kwargs)
        )
        return replace(
            self,
            index=new[self.index],
            inputs=tuple(new[i] for i in self.inputs),
            constants=tuple(new[i] for i in self.constants),
            call=call,
            weights=ref(self.weights),
        )


class LocalGraph:
    """The nodes of a network from the image to its output, and properties derived from them."""

    def __init__(self, nodes: Sequence[Node], output: int) -> None:
        self.nodes, self.output = _reachable(nodes, output)
        self.readers: list[tuple[int, ...]] = _readers(self.nodes)
        self.nodes = [self._overwriting(node) for node in self.nodes]
        self.rectified = {node.inputs[0]: node.index for node in self.nodes if node.overwrites}
        """By node that only an overwriting ReLU reads: that ReLU."""
        self.last_use = [max(readers, default=i) for i, readers in enumerate(self.readers)]
        self.last_use[self.output] = len(self.nodes)
        self.fields = (self._fields(0), self._fields(1))

    @property
    def field(self) -> tuple[ReceptiveField, ReceptiveField]:
        """Receptive field of the output in the image, along y and x."""
        fields = tuple(axis[self.output] for axis in self.fields)
        assert fields[0] is not None
        assert fields[1] is not None
        return fields[0], fields[1]

    @property
    def lost(self) -> tuple[int, int]:
        """Cells missing along y and x, compared to the image's strides: layers without padding."""
        y, x = (
            _MANY - self.sizes(axis, _MANY * field.stride)[self.output]
            for axis, field in enumerate(self.field)
        )
        return y, x

    @property
    def streamed(self) -> list[Node]:
        """The nodes that depend on the image."""
        return [node for node in self.nodes if node.kind != "constant"]

    @property
    def opaque(self) -> bool:
        """Whether it is one layer: a module whose own code is run."""
        return any(node.window is not None and node.window.kind == "opaque" for node in self.nodes)

    @property
    def kept(self) -> list[Node]:
        """The nodes whose values tiles pass on instead of computing them again."""
        return [node for node in self.nodes if node.kind in ("window", "join")]

    def axis(self, node: Node, axis: int) -> Window | None:
        """Window of a node along y (0) or x (1)."""
        if node.window is None:
            return None
        return node.window.x if axis else node.window.y

    def sizes(self, axis: int, n: int) -> list[int]:
        """Cells of every node along one axis of an image of ``n`` pixels (constants: 0).

        Raises
        ------
        StreamingError
            The image is too small for a layer, or branches of different sizes meet.
        """
        result: list[int] = []
        for node in self.nodes:
            sizes = {result[i] for i in node.inputs}
            if node.kind == "input":
                size = n
            elif node.kind == "constant":
                size = 0
            elif len(sizes) > 1:
                raise StreamingError(
                    f"layer {node.name!r} joins branches of {sorted(sizes)} cells: "
                    "the network does not take an image of this size"
                )
            else:
                size = sizes.pop()
            window = self.axis(node, axis)
            if window is not None:
                if window.mode == "reflect" and max(window.before, window.after) >= size:
                    raise StreamingError(
                        f"layer {node.name!r} reflects more pixels than its input of {size} has: "
                        "the image is too small for this network"
                    )
                size = window.size(size)
                if size <= 0:
                    raise StreamingError(
                        f"layer {node.name!r} has no output: an image of {n} px is too small "
                        "for this network; pad it"
                    )
            result.append(size)
        return result

    def live(self, root: nn.Module, input_live: bool) -> list[bool]:
        """Which nodes need a gradient, given whether the image needs one."""
        result: list[bool] = []
        for node in self.nodes:
            own = input_live if node.kind == "input" else False
            for name in (node.module, node.norm):
                if name is not None:
                    own |= any(p.requires_grad for p in root.get_submodule(name).parameters())
            if node.call is not None and node.call.kind == "attribute":
                own |= bool(getattr(attribute(root, node.call.target), "requires_grad", False))
            result.append(own or any(result[i] for i in (*node.inputs, *node.constants)))
        return result

    def _fields(self, axis: int) -> list[ReceptiveField | None]:
        result: list[ReceptiveField | None] = []
        for node in self.nodes:
            if node.kind == "constant":
                result.append(None)
                continue
            fields = [f for f in (result[i] for i in node.inputs) if f is not None]
            try:
                field = ReceptiveField.union(fields) if fields else ReceptiveField()
            except ValueError as error:
                raise StreamingError(
                    f"layer {node.name!r} cannot be streamed: {error}; branches that meet must "
                    "have one stride"
                ) from error
            window = self.axis(node, axis)
            result.append(field.through(window) if window is not None else field)
        return result

    def _overwriting(self, node: Node) -> Node:
        """Let a ReLU work in place where nothing else reads its input and no gradient needs it."""
        if node.kind != "local" or node.call is None or node.call.target is not torch.relu:
            return node
        source = self.nodes[node.inputs[0]]
        alone = self.readers[source.index] == (node.index,)
        return replace(node, overwrites=source.fresh and alone)


def _reachable(nodes: Sequence[Node], output: int) -> tuple[list[Node], int]:
    """Keep the image and the nodes that the output depends on, and renumber them."""
    keep, todo = {0}, [output]
    while todo:
        index = todo.pop()
        if index not in keep:
            keep.add(index)
            todo += [*nodes[index].inputs, *nodes[index].constants]
    new = {old: i for i, old in enumerate(sorted(keep))}
    return [nodes[old].renumbered(new) for old in sorted(keep)], new[output]


def _readers(nodes: Sequence[Node]) -> list[tuple[int, ...]]:
    readers: list[list[int]] = [[] for _ in nodes]
    for node in nodes:
        for i in {*node.inputs, *node.constants}:
            readers[i].append(node.index)
    return [tuple(r) for r in readers]
