"""Streamed SmoothGrad of whole images, without seams between tiles.

Source: Smilkov, Thorat, Kim, Viégas, Wattenberg, "SmoothGrad: removing noise by adding noise"
(2017). Defaults are those of Pinckaers et al. (streaming prostate, section on saliency): 25
samples, noise of 5 % of the image-wide standard deviation, mean of the signed gradients. The sd is
taken over all channels of the normalised image, and channels are averaged: our choice.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from slidelens.errors import StreamingError
from slidelens.nn.noise import PositionNoise
from slidelens.nn.windows import Rect
from slidelens.steps import Steps

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from torch import Tensor

    from slidelens.nn.source import LazyImage, Source
    from slidelens.nn.streaming import StreamingTrunk
    from slidelens.nn.streaming.tape import Tape

__all__ = ["SaliencyPart", "image_sd", "iter_smoothgrad", "smoothgrad"]

Quantity = Literal["signed", "absolute", "squared", "input"]
_STRIP = 1024


class SaliencyPart(NamedTuple):
    """A contribution to a saliency map, to be added to what is there.

    ``values`` ``(h, w)`` are for the map's rows from ``top`` on, over its full width; without rows
    after a tile of the forward pass. ``done`` of ``steps`` tiles, forward and backward, are through
    for all samples, of which ``sample`` (from 0) is under way.
    """

    sample: int
    done: int
    steps: int
    top: int
    values: Tensor


def iter_smoothgrad(
    trunk: StreamingTrunk,
    head: Callable[[Tensor], Tensor],
    image: Tensor | LazyImage,
    target: int,
    *,
    samples: int = 25,
    noise: float = 0.05,
    quantity: Quantity = "signed",
    cell: int = 1,
    seed: int = 0,
    sd: float | None = None,
    mask: Tensor | None = None,
) -> Iterator[SaliencyPart]:
    """Yield the parts of a saliency map as they are done; closing the iterator cancels.

    Parameters
    ----------
    trunk, head
        The network: ``head(trunk(image))`` are logits ``(1, classes)``.
    image
        As `StreamingTrunk.forward` takes it, one image.
    target
        Index of the class.
    samples, noise
        Noisy copies, and the sd of their noise as a fraction of the image's sd. ``noise=0,
        samples=1`` is the plain gradient.
    quantity
        What is averaged over samples, channels and pixels of a cell: the ``signed`` gradient, its
        ``absolute`` value, its square (``squared``: SmoothGrad-squared), or its product with the
        normalised ``input``.
    cell
        Pixels of the image per cell of the map.
    seed
        Of the noise.
    sd
        The image's sd, if known; else the image is read once to find it.
    mask
        As `StreamingTrunk.forward` takes it.

    Raises
    ------
    StreamingError
        More than one image, a class that the head does not have, or numbers that make no sense: a
        negative or infinite ``noise`` or ``sd``, fewer than one of ``samples`` or ``cell``.
    """
    _check(quantity, samples, cell, noise, sd)
    clean = trunk.source(image, mask)
    if clean.shape[0] != 1:
        raise StreamingError(f"saliency of {clean.shape[0]} images at once: give one")
    if noise and sd is None:
        sd = image_sd(clean)
    tensors = {name: value.detach() for name, value in trunk.tensors().items()}
    for sample in range(samples):
        field = PositionNoise(noise * sd, seed, sample) if noise and sd else None
        tape = trunk.tape(trunk.source(image, mask, noise=field), record=True, input_grad=True)
        steps = 2 * samples * len(tape.tiles)
        done = 2 * sample * len(tape.tiles)
        features = (yield from _forward(tape, tensors, sample, done, steps)).requires_grad_()
        done += len(tape.tiles)
        with torch.enable_grad():
            logits = head(features)
        if logits.dim() != 2 or not 0 <= target < logits.shape[1]:
            raise StreamingError(
                f"class {target} of a head that gives shape {tuple(logits.shape)}: expected "
                "(1, classes) and a class among them"
            )
        (grad,) = torch.autograd.grad(logits[0, target], features)
        for band in tape.backward(tensors, grad, {}):
            done += tape.columns.tiles
            values = _quantity(quantity, band.values, band.top, clean) / samples
            yield SaliencyPart(sample, done, steps, *_pool(values, band.top, cell, clean))


def smoothgrad(
    trunk: StreamingTrunk,
    head: Callable[[Tensor], Tensor],
    image: Tensor | LazyImage,
    target: int,
    *,
    samples: int = 25,
    noise: float = 0.05,
    quantity: Quantity = "signed",
    cell: int = 1,
    seed: int = 0,
    sd: float | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the whole saliency map ``(ceil(H / cell), ceil(W / cell))``, on the CPU.

    All arguments (``trunk``, ``head``, the image ``(1, C, H, W)``, ``target``, ``samples``,
    ``noise``, ``quantity``, ``cell`` in px, ``seed``, ``sd``, ``mask``) are those of
    `iter_smoothgrad`, and so are the errors (`StreamingError`). `abs` of a signed map is what is
    usually shown.
    """
    _check(quantity, samples, cell, noise, sd)
    source = trunk.source(image, mask)
    rows, columns = -(-source.height // cell), -(-source.width // cell)
    result = torch.zeros((rows, columns), dtype=torch.promote_types(source.dtype, torch.float32))
    for part in iter_smoothgrad(
        trunk, head, image, target, samples=samples, noise=noise, quantity=quantity,
        cell=cell, seed=seed, sd=sd, mask=mask,
    ):  # fmt: skip
        if part.values.numel():
            result[part.top : part.top + part.values.shape[0]] += part.values.to(result)
    return result


def _forward(
    tape: Tape, tensors: dict[str, Tensor], sample: int, done: int, steps: int
) -> Generator[SaliencyPart, None, Tensor]:
    """Compute the trunk's output, with a part without rows after each tile."""
    nothing = torch.zeros((0, 0), device=tape.source.device)
    forward = Steps(tape.iter_forward(tensors))
    for tiles in forward:
        yield SaliencyPart(sample, done + tiles, steps, 0, nothing)
    return forward.result


def image_sd(source: Source) -> float:
    """Return the standard deviation of a normalised image over all pixels and channels."""
    count, mean, spread = 0, 0.0, 0.0
    for top in range(0, source.height, _STRIP):
        rect = Rect(top, min(top + _STRIP, source.height), 0, source.width)
        values = source.prepare(source.pixels(rect), rect).double()
        n, new = values.numel(), float(values.mean())
        # Sums of two parts (Chan, Golub, LeVeque 1979).
        spread += float((values - new).square().sum())
        spread += (new - mean) ** 2 * count * n / (count + n)
        mean += (new - mean) * n / (count + n)
        count += n
    return float((spread / count) ** 0.5)


def _check(quantity: str, samples: int, cell: int, noise: float, sd: float | None) -> None:
    if quantity not in ("signed", "absolute", "squared", "input"):
        raise StreamingError(
            f"quantity {quantity!r}: expected 'signed', 'absolute', 'squared' or 'input'"
        )
    if samples < 1 or cell < 1:
        raise StreamingError(f"samples={samples}, cell={cell}: expected at least 1")
    for name, value in (("noise", noise), ("sd", sd)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise StreamingError(f"{name}={value}: expected a finite number that is not negative")


def _quantity(quantity: Quantity, grad: Tensor, top: int, clean: Source) -> Tensor:
    """Return what is averaged, ``(h, w)``."""
    if quantity == "absolute":
        grad = grad.abs()
    elif quantity == "squared":
        grad = grad.square()
    elif quantity == "input":
        rect = Rect(top, top + grad.shape[2], 0, clean.width)
        grad = grad * clean.prepare(clean.pixels(rect), rect)
    return grad[0].mean(0)


def _pool(values: Tensor, top: int, cell: int, source: Source) -> tuple[int, Tensor]:
    """Return the first map row that rows of pixels from ``top`` on touch, and their share of it."""
    if cell == 1:
        return top, values
    first, last = top // cell, -(-(top + values.shape[0]) // cell)
    columns = -(-source.width // cell)
    rows = torch.arange(top, top + values.shape[0], device=values.device) // cell - first
    across = torch.arange(source.width, device=values.device) // cell
    summed = values.new_zeros((last - first, values.shape[1])).index_add_(0, rows, values)
    pooled = values.new_zeros((last - first, columns)).index_add_(1, across, summed)
    heights = _extent(source.height, cell, values)[first:last]
    return first, pooled / (heights[:, None] * _extent(source.width, cell, values))


def _extent(n: int, cell: int, like: Tensor) -> Tensor:
    """Pixels of each cell along an axis: fewer in the last."""
    starts = torch.arange(0, n, cell, device=like.device)
    return (n - starts).clamp(max=cell).to(like.dtype)
