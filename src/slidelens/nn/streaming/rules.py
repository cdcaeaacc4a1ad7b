"""Rules that turn local operations into nodes; all other operations are refused."""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from slidelens.nn.streaming.builder import Builder, Operation, Pieces, Rule
from slidelens.nn.streaming.graph import Call, Ref
from slidelens.nn.streaming.window_rules import conv, functional_conv, pad, pool

__all__ = ["mutates", "rule_for"]

# Elementwise: no cell sees another.
_ACTIVATIONS = (
    nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid,
    nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Hardshrink, nn.Softplus, nn.Softshrink,
    nn.Softsign, nn.Tanhshrink, nn.LogSigmoid, nn.Threshold,
)  # fmt: skip
_UNARY = {
    F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.sigmoid, F.tanh,
    F.hardswish, F.hardsigmoid, F.hardtanh, F.softplus, F.softsign, F.logsigmoid, F.threshold,
    F.leaky_relu_, F.elu_, F.hardtanh_,
    torch.sigmoid, torch.tanh, torch.abs, torch.exp, torch.log, torch.sqrt, torch.rsqrt,
    torch.square, torch.neg, torch.clamp, torch.clone, operator.neg,
}  # fmt: skip
_BINARY = {
    operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, torch.add, torch.sub,
    torch.mul, torch.div, torch.pow, torch.maximum, torch.minimum,
}  # fmt: skip
_IN_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ipow: operator.pow,
}
_UNARY_METHODS = [
    "sigmoid", "tanh", "abs", "exp", "log", "sqrt", "rsqrt", "square", "neg", "clamp",
    "clamp_min", "clamp_max", "clone", "sigmoid_", "tanh_", "abs_", "neg_", "clamp_",
    "contiguous", "float", "double", "half", "bfloat16", "detach",
]  # fmt: skip
_BINARY_METHODS = [
    "add", "sub", "mul", "div", "pow", "add_", "sub_", "mul_", "div_", "pow_",
]  # fmt: skip
_VIEWS = {"contiguous", "float", "double", "half", "bfloat16", "detach"}

_GLOBAL = (
    "it sees the whole image at once; end the trunk before it and put it into the head, which "
    "runs on the trunk's output"
)
_STATISTICS = (
    "its statistics come from the whole image; use batch normalisation in eval mode instead"
)
_TRAINING = "it is in training mode; call eval() on the trunk (its weights still train)"
_RESAMPLE = "layers that enlarge the image are not supported; put them into the head"
_WHY: list[tuple[tuple[str, ...], str]] = [
    (("Adaptive", "adaptive_", "flatten", "Flatten", "FractionalMaxPool", "mean", "sum", "amax",
      "amin", "max", "min", "norm", "var", "std"), _GLOBAL),
    (("InstanceNorm", "GroupNorm", "group_norm", "instance_norm"), _STATISTICS),
    (("Attention", "Transformer", "scaled_dot_product", "matmul", "bmm", "einsum", "softmax"),
     "attention joins all cells of the image; end the trunk before it"),
    (("Upsample", "interpolate", "ConvTranspose", "conv_transpose", "PixelShuffle", "Fold"),
     _RESAMPLE),
    (("getattr", "size", "view", "reshape", "dim"),
     "it asks for the shape of the image, or changes it; put it into the head"),
]  # fmt: skip


def rule_for(op: Operation) -> Rule:
    """Return the rule that makes a node of ``op``.

    Raises
    ------
    StreamingError
        There is no rule: the operation is not known to be local.
    """
    if op.module is not None:
        for kinds, rule in _MODULES:
            if isinstance(op.module, kinds):
                return rule
    elif op.kind == "call_method":
        if op.target in _METHODS:
            return _METHODS[op.target]
    else:
        for functions, rule in _FUNCTIONS:
            if op.target in functions:
                return rule
        if op.what == "stochastic_depth":  # torchvision hides it from torch.fx
            return _stochastic_depth
    for names, why in _WHY:
        if any(name in op.what for name in names):
            raise op.refuse(why)
    raise op.refuse("it is not known to see only a neighbourhood of each cell; " + _GLOBAL)


def mutates(op: Operation) -> bool:
    """Whether ``op`` writes into its first argument."""
    if op.module is not None:
        return bool(getattr(op.module, "inplace", False)) and not isinstance(op.module, _DropoutNd)
    name = op.what
    if op.kind == "call_method" or name.endswith("_"):
        return name.endswith("_") and not name.endswith("__")
    if op.target in _IN_PLACE:
        return True
    if "inplace" in op.kwargs:
        return bool(op.kwargs["inplace"])
    try:
        names = list(inspect.signature(op.target).parameters)
    except (TypeError, ValueError):  # builtins show no signature, and write only when named so
        return False
    place = names.index("inplace") if "inplace" in names else len(op.args)
    return place < len(op.args) and bool(op.args[place])


# Local operations ---------------------------------------------------------------------------


def _unary(b: Builder, op: Operation) -> Ref:
    roles = b.roles(op)
    if len(b.streamed(op)) != 1:
        raise op.refuse("it takes one tensor")
    _check_constants(b, op, roles)
    module = op.target if op.module is not None else None
    call = b.call(op, mutates=mutates(op))
    return b.add(op, "local", roles=roles, call=call, module=module, view=op.target in _VIEWS)


def _check_constants(b: Builder, op: Operation, roles: str) -> None:
    """Refuse a constant tensor that is not the same for all cells."""
    for arg in (*op.args, *op.kwargs.values()):
        if isinstance(arg, Ref) and b.is_constant(arg):
            shape = b.shape_of(arg)
            spatial = [
                n for n, r in zip(reversed(shape), reversed(roles), strict=False) if r in "hw"
            ]
            if len(shape) > 4 or any(n != 1 for n in spatial):
                raise op.refuse(
                    f"its constant of shape {shape} differs from cell to cell (a position "
                    "embedding?)"
                )


def _relu(b: Builder, op: Operation) -> Ref:
    call = Call("function", torch.relu, (b.streamed(op)[0],))
    return b.add(op, "local", roles=b.roles(op), call=call)


def _identity(b: Builder, op: Operation) -> Ref:
    return b.streamed(op)[0]


def _binary(b: Builder, op: Operation) -> Ref:
    roles, call = b.roles(op), b.call(op, mutates=mutates(op))
    if op.target in _IN_PLACE:
        call = Call("function", _IN_PLACE[op.target], op.args)
    refs = b.streamed(op)
    _check_constants(b, op, roles)
    kind = "join" if len(refs) > 1 else "local"
    fresh = kind == "join" and op.what.strip("_") not in (
        "pow",
        "ipow",
    )  # its gradient needs its result
    return b.add(op, kind, roles=roles, call=call, fresh=fresh)


def _batch_norm(b: Builder, op: Operation) -> Ref:
    norm: Any = op.module
    if norm.running_mean is None:
        raise op.refuse(_STATISTICS)
    if norm.training:
        raise op.refuse(_TRAINING)
    return b.add(op, "local", roles=b.roles(op), call=b.call(op), module=op.target, fresh=True)


def _functional_batch_norm(b: Builder, op: Operation) -> Ref:
    a = op.bind("input running_mean running_var weight bias training momentum eps", training=False)
    if a["training"] or a.get("running_mean") is None:
        raise op.refuse(_TRAINING)
    return b.add(op, "local", roles=b.roles(op), call=b.call(op), fresh=True)


def _dropout(b: Builder, op: Operation) -> Ref:
    layer: Any = op.module
    if layer.training and layer.p > 0:
        raise op.refuse(_TRAINING)
    return _identity(b, op)


def _functional_dropout(b: Builder, op: Operation) -> Ref:
    a = op.bind("input p training inplace", p=0.5, training=True)
    if a["training"] and a["p"] > 0:
        raise op.refuse(_TRAINING)
    return _identity(b, op)


def _stochastic_depth(b: Builder, op: Operation) -> Ref:
    a = op.bind("input p mode training", training=True)
    if a["training"] and a["p"] > 0:
        raise op.refuse(_TRAINING)
    return _identity(b, op)


def _over_channels(b: Builder, op: Operation) -> Ref:
    """Linear layers and layer norms: over the last axis, which must be the channels."""
    roles = b.roles(op)
    layer: Any = op.module
    over = 1
    if isinstance(layer, nn.LayerNorm):
        over = len(layer.normalized_shape)
    elif op.target is F.layer_norm:
        over = len(op.bind("input normalized_shape weight bias eps")["normalized_shape"])
    if over != 1 or roles[-1] != "c":
        raise op.refuse(
            "it works on the last axis, which is not the channels alone; permute the channels "
            "last, as ConvNeXt does"
        )
    module = op.target if op.module is not None else None
    return b.add(op, "local", roles=roles, call=b.call(op), module=module)


def _channel_axis(b: Builder, op: Operation, dim: Any) -> None:
    roles = b.roles(op)
    dims = [dim] if isinstance(dim, int) else list(dim or range(4))
    if any(roles[d] != "c" for d in dims):
        raise op.refuse(f"it works along {[roles[d] for d in dims]}, not the channels; " + _GLOBAL)


def _softmax(b: Builder, op: Operation) -> Ref:
    layer: Any = op.module
    dim = layer.dim if layer is not None else op.bind("input dim _stacklevel dtype")["dim"]
    _channel_axis(b, op, dim)
    return b.add(op, "local", call=b.call(op))


def _reduce(b: Builder, op: Operation) -> Ref:
    """Mean or sum over the channels only, with the axis kept."""
    a = op.bind("input dim keepdim dtype", dim=None, keepdim=False)
    _channel_axis(b, op, a["dim"])
    if not a["keepdim"]:
        raise op.refuse("it drops the axis of channels; give keepdim=True")
    return b.add(op, "local", call=b.call(op))


def _channels_second(b: Builder, op: Operation) -> Ref:
    """Layers with channels on the second axis that read one cell only."""
    if b.roles(op) != "nchw":
        raise op.refuse("it takes channels on the second axis")
    return _unary(b, op)


def _cat(b: Builder, op: Operation) -> Ref:
    a = op.bind("tensors dim axis", dim=0)
    _channel_axis(b, op, a.get("axis", a["dim"]))
    if any(b.is_constant(r) for r in a["tensors"]):
        raise op.refuse("it joins the image with a constant")
    return b.add(op, "local", roles=b.roles(op), call=b.call(op))


def _pieces(b: Builder, op: Operation) -> Pieces:
    a = op.bind("input count dim", dim=0)
    _channel_axis(b, op, a["dim"])
    return Pieces(b.call(op), b.streamed(op)[0].node)


def _getitem(b: Builder, op: Operation) -> Ref:
    source, key = op.args
    if isinstance(source, Pieces):
        call = source.call
        call = Call(call.kind, call.target, call.args, call.kwargs, pick=key)
        reads = Operation(op.name, op.kind, op.target, (Ref(source.source),), {})
        return b.add(reads, "local", call=call, view=True)
    roles = b.roles(op)
    keys = list(key) if isinstance(key, tuple) else [key]
    if Ellipsis in keys:
        place = keys.index(Ellipsis)
        keys[place : place + 1] = [slice(None)] * (len(roles) - len(keys) + 1)
    for role, k in zip(roles, keys, strict=False):
        if not isinstance(k, slice) or (role != "c" and k != slice(None)):
            raise op.refuse("only slices of channels can be taken of the image")
    return b.add(op, "local", call=b.call(op), view=True)


def _permute(b: Builder, op: Operation) -> Ref:
    roles, dims = b.roles(op), op.args[1:] or (op.kwargs.get("dims"),)
    order = dims[0] if isinstance(dims[0], list | tuple) else dims
    return b.add(op, "local", roles="".join(roles[d] for d in order), call=b.call(op), view=True)


def _transpose(b: Builder, op: Operation) -> Ref:
    a = op.bind("input dim0 dim1")
    axes = list(b.roles(op))
    axes[a["dim0"]], axes[a["dim1"]] = axes[a["dim1"]], axes[a["dim0"]]
    return b.add(op, "local", roles="".join(axes), call=b.call(op), view=True)


# The tables ---------------------------------------------------------------------------------

_MODULES: list[tuple[tuple[type[nn.Module], ...], Rule]] = [
    ((nn.Conv2d,), conv),
    ((nn.MaxPool2d,), pool("max")),
    ((nn.AvgPool2d,), pool("average")),
    ((_BatchNorm, _InstanceNorm), _batch_norm),
    ((_DropoutNd,), _dropout),
    ((nn.Identity,), _identity),
    ((nn.ReLU,), _relu),
    (_ACTIVATIONS, _unary),
    ((nn.PReLU, nn.ChannelShuffle, nn.LocalResponseNorm, nn.Softmax2d), _channels_second),
    ((nn.Softmax, nn.LogSoftmax), _softmax),
    ((nn.Linear, nn.LayerNorm), _over_channels),
    ((nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d),
     pad),
]  # fmt: skip

_FUNCTIONS: list[tuple[set[Any], Rule]] = [
    ({F.conv2d}, functional_conv),
    ({F.max_pool2d, torch.max_pool2d}, pool("max")),
    ({F.avg_pool2d}, pool("average")),
    ({F.pad}, pad),
    ({F.relu, F.relu_, torch.relu, torch.relu_}, _relu),
    ({operator.pos, torch.positive}, _identity),  # the tensor itself, not another
    (_UNARY, _unary),
    (_BINARY | set(_IN_PLACE), _binary),
    ({F.batch_norm}, _functional_batch_norm),
    ({F.dropout, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout}, _functional_dropout),
    ({F.linear, F.layer_norm}, _over_channels),
    ({F.softmax, F.log_softmax, torch.softmax}, _softmax),
    ({torch.mean, torch.sum}, _reduce),
    ({torch.cat, torch.concat}, _cat),
    ({torch.chunk, torch.split}, _pieces),
    ({operator.getitem}, _getitem),
    ({torch.permute}, _permute),
    ({torch.transpose}, _transpose),
]

_METHODS: dict[str, Rule] = {
    **dict.fromkeys(_UNARY_METHODS, _unary),
    **dict.fromkeys(_BINARY_METHODS, _binary),
    **dict.fromkeys(("relu", "relu_"), _relu),
    "positive": _identity,
    **dict.fromkeys(("mean", "sum"), _reduce),
    **dict.fromkeys(("chunk", "split"), _pieces),
    "permute": _permute,
    "transpose": _transpose,
}
