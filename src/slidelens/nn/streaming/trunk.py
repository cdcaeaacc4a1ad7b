"""Run a convolutional trunk on whole images in the memory of one tile, exactly.

Source: Pinckaers, van Ginneken, Litjens, "Streaming convolutional neural networks for end-to-end
learning with multi-megapixel images" (TPAMI 2020), for the idea of streaming; the schemes here are
our own. ``docs/streaming.md`` explains how they work and what they cost.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from slidelens.errors import StreamingError
from slidelens.nn.heap import HeapGuard
from slidelens.nn.pixels import IMAGENET_MEAN, IMAGENET_STD
from slidelens.nn.receptive import ReceptiveField
from slidelens.nn.source import LazyImage, Source
from slidelens.nn.streaming.costs import count_costs, image_channels
from slidelens.nn.streaming.fold import folded_tensors
from slidelens.nn.streaming.layer_state import (
    layer_states,
    refuse_changes,
    refuse_hooks,
    refuse_training,
)
from slidelens.nn.streaming.opaque import opaque_graph
from slidelens.nn.streaming.plan import (
    Planner,
    Scheme,
    StreamingPlan,
    free_memory,
    tile_sides,
    too_little,
)
from slidelens.nn.streaming.tape import StreamingReport, Tape
from slidelens.nn.streaming.trace import trace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from slidelens.nn.noise import PositionNoise
    from slidelens.nn.streaming.costs import Costs

__all__ = ["StreamingTrunk"]

# Share of the free memory that tile_size="auto" plans with: the plan is an estimate, and the head,
# the optimiser and the allocator want their part.
_SHARE = 0.6


class StreamingTrunk(nn.Module):
    """Runs a convolutional network on images of any size, tile by tile.

    ``trunk(x)`` equals ``module(x)``, and so do its gradients with respect to parameters and
    ``x``; it takes the memory of one tile, thin seams between tiles, and the output. The trunk is
    a module like any other: its own hooks, DDP, gradient accumulation, ``torch.autograd.grad`` and
    ``no_grad`` work.

    The module stays in the mode it is given in; `train` does not change it, since batch statistics
    cannot be computed for an image that is never whole. Affine weights of norms are trained. Layers
    must not have hooks, or methods replaced on them, since none is called on the whole image. Their
    settings, and attributes that are numbers or text, have to stay as they are. The module is never
    written to: threads may share it, and the trunk.

    Parameters
    ----------
    module
        Takes ``(N, C, H, W)`` and returns one map ``(N, C', H', W')``. Its layers must be local,
        and norms and dropout in eval mode.
    tile_size
        Side, or (height, width), of a tile in px. ``"auto"``: the largest that fits the memory.
    scheme
        ``"seam"``: tiles pass strips of their feature maps to their neighbours; nothing is computed
        twice, and any tile size works. ``"halo"``: each tile reads all that its output depends on.
        ``"auto"`` is seam, or halo if seams do not fit into the memory or if halo computes less
        because a mask marks background.
    device
        Where tiles are computed; the module is moved there. Default: the module's device.
    memory
        Bytes that a training step may take, without weights and image. An ``"auto"`` tile and
        scheme are chosen to fit, and the rest keeps graphs of tiles, which the backward pass then
        need not recompute. Default: 60 % of the memory that is free when an image arrives if the
        tile is ``"auto"``, else no limit, and one tile's graph is kept.
    mean, std
        Normalisation of uint8 images, per channel for values from 0 to 1.
    field
        Receptive field (along y and x) of a module of three-channel images that torch.fx cannot
        trace. It is not checked, and the module is streamed by halo.

    Raises
    ------
    StreamingError
        The module has a layer that cannot be streamed, or a layer with a hook; or its own code does
        what tiles would not: draw random numbers, enter ``torch.no_grad`` or ``torch.autocast``,
        use tensors that need a gradient and are no parameters.
    """

    def __init__(
        self,
        module: nn.Module,
        tile_size: int | tuple[int, int] | Literal["auto"] = "auto",
        *,
        scheme: Literal["auto", "seam", "halo"] = "auto",
        device: torch.device | str | None = None,
        memory: int | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        field: ReceptiveField | tuple[ReceptiveField, ReceptiveField] | None = None,
    ) -> None:
        super().__init__()
        if scheme not in ("auto", "seam", "halo"):
            raise StreamingError(f"scheme {scheme!r}: expected 'auto', 'seam' or 'halo'")
        self.module = module if device is None else module.to(device)
        self.tile_size = _tile(tile_size)
        self.scheme: Literal["auto", "seam", "halo"] = scheme
        self.memory, self.mean, self.std = memory, mean, std
        self.report: StreamingReport | None = None
        """What was computed for the last image, and what was skipped."""
        self._layers = layer_states(module)
        refuse_hooks(module)
        if field is None:
            self.graph = trace(module)
            # Counted now, not in the first forward pass, which may run under someone's profiler.
            channels = image_channels(self.graph, module)
            self._costs: dict[int, Costs] = {}
            with suppress(StreamingError):  # a guess: images may come with other channels
                self._costs[channels] = count_costs(self.graph, module, channels)
        else:
            if scheme == "seam" or self.tile_size is None:
                raise StreamingError(
                    "with a stated receptive field the module is not looked into: give "
                    "scheme='halo' and a tile_size"
                )
            refuse_training(module)
            self.scheme = "halo"
            fields = (field, field) if isinstance(field, ReceptiveField) else field
            self.graph, costs = opaque_graph(module, fields, channels=3)
            self._costs = {3: costs}
        self._planners: dict[tuple[int, ...], Planner] = {}
        self._guard = HeapGuard()

    def train(self, mode: bool = True) -> StreamingTrunk:
        """Set the mode of the trunk itself; the module keeps its own."""
        self.training = mode
        return self

    def plan(
        self,
        height: int,
        width: int,
        *,
        channels: int = 3,
        batch: int = 1,
        mask: Tensor | None = None,
        training: bool = True,
    ) -> StreamingPlan:
        """Return how an image would be streamed, and what a training step would need.

        The image is ``(batch, channels, height, width)`` px. ``mask`` is that of `forward`,
        ``(h, w)`` bool; ``training`` says whether there will be a backward pass.

        Raises
        ------
        StreamingError
            The image is too small for the network, the tile for the halo, or the memory for any
            tile.
        """
        planner = self._planner((height, width), channels, batch)
        schemes: tuple[Scheme, ...] = ("seam", "halo") if self.scheme == "auto" else (self.scheme,)
        budget = self._budget()
        plans: list[StreamingPlan] = []
        for scheme in schemes:
            if plans and mask is None:
                break  # seams fit, and compute nothing twice
            try:
                plans += self._planned(planner, scheme, budget, mask)
            except StreamingError:
                if self.scheme != "auto":  # else: the tile is smaller than the halo
                    raise
        if not plans:
            raise StreamingError(too_little(planner, schemes, self.tile_size, budget or 0))
        return min(plans, key=lambda plan: plan.work(training=training))

    def whole_bytes(self, height: int, width: int, channels: int = 3) -> tuple[int, int]:
        """Estimate the memory of a forward pass over an image in one piece, without a graph.

        Parameters
        ----------
        height, width
            Size of the image in px.
        channels
            Channels of the image.

        Returns
        -------
        An estimate of the bytes held at once beside the weights, and the number of values of the
        largest map.
        """
        planner = self._planner((height, width), channels, 1)
        held, largest = planner.values()
        return held * planner.itemsize, largest

    def forward(self, image: Tensor | LazyImage, mask: Tensor | None = None) -> Tensor:
        """Compute ``module(image)``.

        Parameters
        ----------
        image
            Floating-point tensor ``(N, C, H, W)``, used unchanged; or a uint8 tensor on any device
            or an object with ``shape`` ``(H, W, C)`` and ``read(box)``, which is moved to the
            device and normalised tile by tile.
        mask
            ``(h, w)`` bool at any resolution over the whole image; where it is False the image is
            painted white (uint8 and lazy images only).

        Returns
        -------
        Tensor
            ``(N, C', H', W')``.
        """
        source = self.source(image, mask)
        tensors = self.tensors()
        input_grad = isinstance(image, Tensor) and image.requires_grad
        needed = input_grad or any(tensor.requires_grad for tensor in tensors.values())
        record = torch.is_grad_enabled() and needed
        tape = self.tape(source, record=record, input_grad=input_grad)
        if tape.record:
            given = image if isinstance(image, Tensor) else None
            result: Tensor = _Stream.apply(tape, list(tensors), given, *tensors.values())
        else:
            result = tape.forward(tensors)
        self.report = tape.report
        return result

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters and buffers that the module is run with, by name.

        Each has its own shape; frozen norms are folded into the convolutions before them.

        Raises
        ------
        StreamingError
            Layers have changed since the trunk was made: replaced, switched between train and eval
            mode, given other settings, hooks, methods or parametrizations.
        """
        refuse_changes(self.module, self._layers)
        return folded_tensors(self.graph.nodes, self.module)

    def source(
        self,
        image: Tensor | LazyImage,
        mask: Tensor | None = None,
        noise: PositionNoise | None = None,
    ) -> Source:
        """Return the reader of an image ``(N, C, H, W)`` and mask ``(h, w)``, as in `forward`.

        ``noise`` is added to every pixel as it is read.
        """
        return Source(
            image, device=self._device, dtype=self._dtype, mean=self.mean, std=self.std,
            mask=mask, noise=noise,
        )  # fmt: skip

    def tape(self, source: Source, *, record: bool, input_grad: bool) -> Tape:
        """Prepare the forward and backward pass of one image.

        ``source`` reads it (see `source`); ``record`` keeps what a backward pass needs;
        ``input_grad`` also computes the gradient of the image's pixels.

        Raises
        ------
        StreamingError
            As `plan`.
        """
        batch, channels, *size = source.shape
        plan = self.plan(
            size[0], size[1], channels=channels, batch=batch, mask=source.mask, training=record
        )
        layout = self._planner((size[0], size[1]), channels, batch).layout(plan.scheme, plan.tile)
        # In a forward pass alone the output grows to its full size (a plan counts it twice).
        grows = 0 if record else plan.bytes_output // 2
        settle = partial(self._guard, plan.bytes_moving + grows)
        return Tape(
            self.graph, self.module, layout, source,
            graphs=plan.graphs if record else 0, input_grad=input_grad, settle=settle,
        )  # fmt: skip

    def _planner(self, size: tuple[int, int], channels: int, batch: int) -> Planner:
        itemsize = self._dtype.itemsize
        kind = self._device.type
        if torch.is_autocast_enabled(kind):
            itemsize = min(itemsize, torch.get_autocast_dtype(kind).itemsize)
        key = (*size, channels, batch, itemsize)
        planner = self._planners.get(key)
        if planner is None:
            costs = self._costs.get(channels)
            if costs is None:
                costs = self._costs[channels] = count_costs(self.graph, self.module, channels)
            planner = Planner(self.graph, costs, size, itemsize, batch)
            self._planners = {key: planner}  # of one image: others' threads keep their own
        return planner

    def _planned(
        self, planner: Planner, scheme: Scheme, budget: int | None, mask: Tensor | None
    ) -> list[StreamingPlan]:
        """Plan one scheme with the given tile, or the largest; none if it exceeds the budget."""
        sides = tile_sides(planner, scheme) if self.tile_size is None else [self.tile_size]
        plans = (planner.plan(scheme, side) for side in reversed(sides))
        plan = next((p for p in plans if budget is None or p.bytes <= budget), None)
        if plan is None:
            return []
        if mask is not None:
            plan = planner.plan(scheme, plan.tile, mask)
        return [plan if budget is None else plan.within(budget)]

    def _budget(self) -> int | None:
        """Bytes that a step may take; None for no limit."""
        if self.memory is None and self.tile_size is None:
            return int(_SHARE * free_memory(self._device))
        return self.memory

    @property
    def _dtype(self) -> torch.dtype:
        floats = (t.dtype for t in self._own() if t.is_floating_point())
        return next(floats, torch.get_default_dtype())

    @property
    def _device(self) -> torch.device:
        return next((t.device for t in self._own()), torch.device("cpu"))

    def _own(self) -> Iterator[Tensor]:
        yield from self.module.parameters()
        yield from self.module.buffers()


class _Stream(Function):
    """The pass over all tiles as one operation of autograd, with gradients to parameters."""

    @staticmethod
    def forward(
        ctx: Any, tape: Tape, names: list[str], image: Tensor | None, *tensors: Tensor
    ) -> Tensor:
        ctx.tape, ctx.names = tape, names
        ctx.save_for_backward(image, *tensors)
        return tape.forward(dict(zip(names, tensors, strict=True)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        # Reading saved tensors raises where weights or image were changed in place since.
        image, *tensors = ctx.saved_tensors
        into: dict[str, Tensor] = {}
        image_grad = torch.zeros_like(image) if ctx.tape.input_grad else None
        weights = dict(zip(ctx.names, tensors, strict=True))
        for band in ctx.tape.backward(weights, grad, into):
            if image_grad is not None:
                bottom = band.top + band.values.shape[2]
                image_grad[:, :, band.top : bottom] = band.values
        found = (
            into[name].to(weight.dtype) if name in into else None
            for name, weight in weights.items()
        )
        return None, None, image_grad, *found


def _tile(tile_size: int | tuple[int, int] | Literal["auto"]) -> tuple[int, int] | None:
    if tile_size == "auto":
        return None
    sides = (tile_size, tile_size) if isinstance(tile_size, int) else tile_size
    if not (
        isinstance(sides, tuple) and len(sides) == 2
        and all(isinstance(s, int) and s > 0 for s in sides)
    ):  # fmt: skip
        raise StreamingError(
            f"tile_size {tile_size!r}: expected a number of pixels, (height, width) or 'auto'"
        )
    return sides
