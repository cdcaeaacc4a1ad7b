"""What streaming is held to: the module itself, un-streamed, and random networks to try it on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

TOLERANCE = 1e-10
SIZES = st.tuples(st.integers(7, 96), st.integers(7, 96))
EXAMPLES = settings(
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
"""The same networks every time; the caller says how many."""


def settle(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give a network weights, norm statistics and affine weights that are not the default ones."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            if name.endswith("running_var"):
                tensor.copy_(noise.abs() + 0.5)
            elif tensor.dim() > 1:
                fan = tensor[0].numel()
                tensor.copy_(noise * (2 / fan) ** 0.5)
            else:
                tensor.copy_(0.5 * noise + (1.0 if name.endswith("weight") else 0.0))
    return module


def image_of(size: tuple[int, int], batch: int, *, nhwc: bool) -> Tensor:
    """Return random images of a size, in either order of memory."""
    generator = torch.Generator().manual_seed(size[0] * 100 + size[1])
    image = torch.randn(batch, 3, *size, generator=generator, dtype=torch.float64)
    return image.to(memory_format=torch.channels_last if nhwc else torch.contiguous_format)


@dataclass
class Gradients:
    """Output, gradient of the image, gradients of the parameters."""

    output: Tensor
    image: Tensor | None
    parameters: dict[str, Tensor]


def gradients(
    call: Callable[[Tensor], Tensor], module: nn.Module, image: Tensor, seed: int = 1
) -> Gradients:
    """Run forward and backward with a fixed random gradient of the output."""
    module.zero_grad(set_to_none=True)
    leaf = image.detach().clone(memory_format=torch.preserve_format)
    leaf.requires_grad_(image.requires_grad)
    output = call(leaf)
    generator = torch.Generator().manual_seed(seed)
    grad = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    output.backward(grad.to(output.dtype))
    found = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    return Gradients(output.detach(), leaf.grad, copy.copy(found))


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Largest difference relative to the largest reference value."""
    assert value.shape == reference.shape
    if not reference.numel():
        return 0.0
    scale = float(reference.abs().max())
    return float((value - reference).abs().max()) / (scale or 1.0)


def errors(value: Gradients, reference: Gradients) -> dict[str, float]:
    """Relative errors of the output and of every gradient."""
    assert value.parameters.keys() == reference.parameters.keys()
    result = {"output": relative_error(value.output, reference.output)}
    if reference.image is not None:
        assert value.image is not None
        result["image"] = relative_error(value.image, reference.image)
    for name, grad in reference.parameters.items():
        result[name] = relative_error(value.parameters[name], grad)
    return result


class Add(nn.Module):
    """Residual: module(x) + shortcut(x), written in place or not."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, *, in_place: bool) -> None:
        super().__init__()
        self.body, self.shortcut, self.in_place = body, shortcut, in_place

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        if self.in_place:
            out += self.shortcut(x)
            return out
        return out + self.shortcut(x)


class Concat(nn.Module):
    """Branches side by side, as in Inception and DenseNet."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Halves(nn.Module):
    """One half of the channels gates the other after a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        values, gate = self.conv(x).chunk(2, dim=1)
        return values * gate.sigmoid()


class NextBlock(nn.Module):
    """ConvNeXt block: large depthwise kernel, channels last, layer norm, linear, layer scale."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, 2 * channels)
        self.reduce = nn.Linear(2 * channels, channels)
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        out = self.reduce(F.gelu(self.expand(out))).permute(0, 3, 1, 2)
        return x + self.scale * out


@st.composite
def convolutions(draw: st.DrawFn, cin: int, cout: int, *, keep: bool = False) -> nn.Module:
    """Any convolution; with ``keep`` one whose output has the size of its input."""
    kernel = (draw(st.sampled_from([1, 2, 3, 5])), draw(st.sampled_from([1, 3, 4, 7])))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 3)))
    groups = 2 if cin % 2 == cout % 2 == 0 and draw(st.booleans()) else 1
    mode = draw(st.sampled_from(["zeros", "zeros", "zeros", "reflect", "replicate", "circular"]))
    common = {"groups": groups, "bias": draw(st.booleans()), "dilation": dilation}
    if keep:
        return nn.Conv2d(cin, cout, kernel, padding="same", **common)
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    padding = tuple(draw(st.integers(0, k)) for k in kernel)
    return nn.Conv2d(cin, cout, kernel, stride, padding, padding_mode=mode, **common)


@st.composite
def pools(draw: st.DrawFn) -> nn.Module:
    kernel = (draw(st.integers(2, 4)), draw(st.integers(2, 3)))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    ceil = draw(st.booleans())
    if draw(st.booleans()):
        dilation = draw(st.integers(1, 2))
        return nn.MaxPool2d(kernel, stride, padding, dilation=dilation, ceil_mode=ceil)
    divisor = draw(st.sampled_from([None, None, 3]))
    return nn.AvgPool2d(kernel, stride, padding, ceil, draw(st.booleans()), divisor)


@st.composite
def layers(draw: st.DrawFn, channels: int) -> tuple[nn.Module, int]:
    """One layer or block, and its output channels."""
    kind = draw(st.integers(0, 9))
    out = draw(st.sampled_from([2, 4]))
    if kind <= 2:
        return draw(convolutions(channels, out)), out
    if kind == 3:
        return draw(pools()), channels
    if kind == 4:
        norm = nn.BatchNorm2d(channels, affine=draw(st.booleans()))
        return nn.Sequential(norm, nn.ReLU(inplace=draw(st.booleans()))), channels
    if kind == 5:
        body = nn.Sequential(
            draw(convolutions(channels, out, keep=True)),
            nn.BatchNorm2d(out),
            draw(st.sampled_from([nn.ReLU(True), nn.SiLU(True), nn.ELU(inplace=True), nn.GELU()])),
            draw(convolutions(out, out, keep=True)),
        )
        shortcut = nn.Identity() if out == channels else nn.Conv2d(channels, out, 1)
        return Add(body, shortcut, in_place=draw(st.booleans())), out
    if kind == 6:
        branches = [draw(convolutions(channels, 2, keep=True)) for _ in range(2)]
        return Concat(nn.Identity(), *branches), channels + 4
    if kind == 7:
        return Halves(channels), channels
    # A norm over two channels gives -1 and 1 whatever comes: its gradient is rounding alone.
    if kind == 8 and channels > 2:
        return NextBlock(channels, draw(st.sampled_from([3, 7, 11]))), channels
    sides = tuple(draw(st.integers(0, 3)) for _ in range(4))
    pad = draw(st.sampled_from([nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d]))
    return pad(sides), channels


@st.composite
def networks(draw: st.DrawFn, most: int = 8) -> nn.Module:
    """A network of up to ``most`` layers with random weights."""
    channels, parts = 3, []
    for _ in range(draw(st.integers(1, most))):
        layer, channels = draw(layers(channels))
        parts.append(layer)
    if not any(True for part in parts for _ in part.parameters()):
        parts.append(nn.Conv2d(channels, 2, 1))
    return settle(nn.Sequential(*parts), draw(st.integers(0, 1000)))
