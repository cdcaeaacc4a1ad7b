"""Rules for convolution, pooling and padding layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

from slidelens.nn.receptive import PaddingMode, Window
from slidelens.nn.windows import WindowOp

if TYPE_CHECKING:
    from slidelens.nn.streaming.builder import Builder, Operation, Rule
    from slidelens.nn.streaming.graph import Ref

__all__ = ["conv", "functional_conv", "pad", "pool"]

_Pair = int | tuple[int, ...]


def _pair(value: _Pair) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, second = value if len(value) == 2 else (value[0], value[0])
    return first, second


def _windows(
    kernel: _Pair, stride: _Pair, padding: Any, dilation: _Pair, **more: Any
) -> tuple[Window, Window]:
    """Windows along y and x; ``padding`` as PyTorch's layers take it, or (before, after) pairs."""
    axes = []
    for axis, (k, s, d) in enumerate(
        zip(_pair(kernel), _pair(stride), _pair(dilation), strict=True)
    ):
        if padding == "valid":
            before = after = 0
        elif padding == "same":
            before = d * (k - 1) // 2
            after = d * (k - 1) - before
        else:
            before = after = _pair(padding)[axis]
        axes.append(Window(k, s, d, before, after, **more))
    return axes[0], axes[1]


def _window(b: Builder, op: Operation, window: WindowOp, **fields: Any) -> Ref:
    if b.roles(op) != "nchw":
        raise op.refuse("it takes axes (N, C, H, W)")
    fields.setdefault("module", op.target if op.module is not None else None)
    return b.add(op, "window", window=window, fresh=window.kind == "conv", **fields)


def conv(b: Builder, op: Operation) -> Ref:
    """``nn.Conv2d``."""
    layer: Any = op.module
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    y, x = _windows(layer.kernel_size, layer.stride, layer.padding, layer.dilation, mode=mode)
    return _window(b, op, WindowOp("conv", y, x, groups=layer.groups))


def functional_conv(b: Builder, op: Operation) -> Ref:
    """``F.conv2d``, with weights that do not depend on the image."""
    a = op.bind(
        "input weight bias stride padding dilation groups",
        bias=None, stride=1, padding=0, dilation=1, groups=1,
    )  # fmt: skip
    if not (b.is_constant(a["weight"]) and b.is_constant(a["bias"])):
        raise op.refuse("its weights depend on the image")
    y, x = _windows(b.shape_of(a["weight"])[2:], a["stride"], a["padding"], a["dilation"])
    window = WindowOp("conv", y, x, groups=a["groups"])
    return _window(b, op, window, weights=(a["weight"], a["bias"]))


_POOL_SIGNATURES = {
    "max": "input kernel_size stride padding dilation ceil_mode return_indices",
    "average": "input kernel_size stride padding ceil_mode count_include_pad divisor_override",
}


def pool(kind: Literal["max", "average"]) -> Rule:
    """Return the rule of a pooling layer or function."""

    def rule(b: Builder, op: Operation) -> Ref:
        names = _POOL_SIGNATURES[kind].split()[1:]
        defaults: dict[str, Any] = dict.fromkeys(names[:2]) | {
            "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False,
            "count_include_pad": True, "divisor_override": None,
        }  # fmt: skip
        if op.module is not None:
            a: dict[str, Any] = defaults | {name: getattr(op.module, name) for name in names}
        else:
            a = defaults | op.bind(_POOL_SIGNATURES[kind])
        if a["return_indices"]:
            raise op.refuse("indices of maxima differ from tile to tile; return values only")
        y, x = _windows(
            a["kernel_size"], a["stride"] or a["kernel_size"], a["padding"], a["dilation"],
            ceil=a["ceil_mode"],
        )  # fmt: skip
        window = WindowOp(
            kind, y, x, fill=float("-inf") if kind == "max" else 0.0,
            count_padding=a["count_include_pad"], divisor=a["divisor_override"],
        )  # fmt: skip
        return _window(b, op, window)

    return rule


def pad(b: Builder, op: Operation) -> Ref:
    """``nn.ZeroPad2d`` and its like, and ``F.pad``."""
    layer: Any = op.module
    if layer is not None:
        kinds = {"Zero": "constant", "Constant": "constant", "Reflection": "reflect",
                 "Replication": "replicate", "Circular": "circular"}  # fmt: skip
        mode = next(kinds[k] for k in kinds if type(layer).__name__.startswith(k))
        sides, fill = layer.padding, float(getattr(layer, "value", 0.0))
    else:
        a = op.bind("input pad mode value", mode="constant", value=None)
        sides, mode, fill = a["pad"], a["mode"], float(a["value"] or 0.0)
    sides = (sides,) * 4 if isinstance(sides, int) else tuple(sides) + (0,) * (4 - len(sides))
    if len(sides) > 4 or min(sides) < 0:
        raise op.refuse("only rows and columns can be padded, and none cut off")
    mode = cast("PaddingMode", mode)
    x, y = (Window(before=p, after=q, mode=mode) for p, q in (sides[:2], sides[2:]))
    return _window(b, op, WindowOp("pad", y, x, fill=fill))
