"""Multi-stage segmentation: patches become vectors, a U-Net reads the map of a slide's vectors.

Source: multi-stage-segmentation-2019. Training is in :mod:`slidelens.families.multistage_train`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from slidelens.errors import ModelError
from slidelens.families.base import (
    Event,
    Family,
    FamilyConfig,
    MapSpec,
    Model,
    Patch,
    SlideScore,
    View,
    no_tissue,
)
from slidelens.geometry import Affine, Box
from slidelens.nn.backbones import BackboneName
from slidelens.nn.map_batches import map_batches
from slidelens.nn.multistage import Method, MultiStage, arrange
from slidelens.nn.pixels import normalize
from slidelens.nn.precision import cast_once
from slidelens.tiling.grid import GridSpec
from slidelens.tiling.lumps import find_lumps, split_windows
from slidelens.tiling.patch_labels import within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from slidelens.families.base import Batch
    from slidelens.tiling.grid import Grid

__all__ = [
    "FAMILY",
    "MultistageConfig",
    "grid_spec",
    "map_logits",
    "picture_logits",
    "pieces",
]

_WINDOW = 32
"""``segmentation`` sees so many patches along an edge at once: 1024 px in the paper (section 4.2.1:
reduced to an eighth, where a patch of 256 px is 32 px)."""

_THRESHOLD = 0.5
"""Of tumour (section 4.1, evaluation)."""


class MultistageConfig(FamilyConfig):
    """What defines a multi-stage model; training has its own (:class:`~.MultistageTraining`)."""

    method: Method = Field(
        "multistage",
        description="multistage (the paper's), or for comparison: classifier (each patch alone), "
        "segmentation (U-Net on the downsampled image), imagenet (U-Net on an untrained backbone)",
    )
    backbone: BackboneName = Field("googlenet", description="torchvision network, ImageNet-trained")
    tile: int = Field(256, ge=32, le=4096, description="patch side in px")
    mpp: float = Field(0.5, gt=0, le=100, description="resolution of the patches in µm/px")
    min_tissue: float = Field(0.8, ge=0, le=1, description="smallest tissue fraction of a patch")
    fine: int = Field(
        1, ge=1, le=8, description="shifted grids per axis; 4 gives cells of a quarter patch"
    )
    lumps: Literal["together", "separate"] = Field(
        "together", description="pieces of tissue on one feature map, or on one each"
    )
    vector: int = Field(16, ge=1, le=4096, description="length of a patch's feature vector")
    width: int = Field(32, ge=1, le=512, description="channels of the U-Net's first level")
    depth: int = Field(3, ge=0, le=6, description="downsampling steps of the U-Net")
    reduce: int = Field(
        8, ge=1, le=64, description="downsampling factor of the method segmentation"
    )
    batch_size: int = Field(32, ge=1, le=4096, description="patches per forward pass")

    run_fields: ClassVar[frozenset[str]] = frozenset({"min_tissue", "fine", "lumps", "batch_size"})

    @model_validator(mode="after")
    def _divisible(self) -> MultistageConfig:
        if self.tile % self.fine:
            raise ValueError(f"a patch of {self.tile} px cannot be shifted by 1/{self.fine} of it")
        if self.method == "segmentation" and self.tile % self.reduce:
            raise ValueError(f"a patch of {self.tile} px cannot be reduced by {self.reduce}")
        return self

    def finest_mpp(self, extent_um: float) -> float:  # noqa: ARG002  # the same for all slides
        """Return that of the patches or, if no patch is read, of the reduced picture."""
        return self.mpp * (self.reduce if self.method == "segmentation" else 1)


def grid_spec(config: MultistageConfig, fine: int = 1) -> GridSpec:
    """Return the grid of patches: edge to edge in training, ``fine`` per patch in inference."""
    overlap = config.tile - config.tile // fine
    return GridSpec(config.tile, config.mpp, overlap, config.min_tissue)


def build(config: MultistageConfig, n_classes: int) -> MultiStage:
    """Build the networks, with random weights.

    Raises
    ------
    ModelError
        Not two classes.
    """
    if n_classes != 2:
        raise ModelError(
            "multi-stage segmentation tells tumour from normal patches, so slides are of two "
            f"classes, negative first; the labels have {n_classes}."
        )
    return MultiStage(config.method, config.backbone, config.vector, config.width, config.depth)


def pieces(config: MultistageConfig, index: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Group patches (``(N, 2)`` column, row) into those that share a map."""
    groups = find_lumps(index) if config.lumps == "separate" else [np.arange(len(index))]
    if config.method != "segmentation":
        return groups
    return [rows[part] for rows in groups for part in split_windows(index[rows], _WINDOW)]


def map_logits(
    network: Callable[..., torch.Tensor],
    config: MultistageConfig,
    vectors: torch.Tensor,
    index: NDArray[np.int64],
) -> torch.Tensor:
    """Segment one slide's vectors ``(N, D)`` at ``index`` ``(N, 2)``: a logit ``(N,)`` each."""
    logits = vectors.new_zeros(len(index), dtype=torch.float32)
    for rows in pieces(config, index):
        some = torch.from_numpy(rows).to(vectors.device)
        laid, cells = arrange(vectors[some], index[rows])
        segmented = network(laid, "segment").float().flatten()[cells]
        logits = logits.index_copy(0, some, segmented)
    return logits


def picture_logits(
    network: Callable[..., torch.Tensor],
    config: MultistageConfig,
    view: View,
    grid: Grid,
    prepare: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Segment a slide's reduced picture, patch by patch averaged: ``(N,)`` logits.

    ``prepare`` turns ``(1, 3, H, W)`` uint8 RGB into the network's input, on its device. The paper
    does not say how this method classifies patches; the mean over a patch is our choice.
    """
    logits = torch.zeros(len(grid))
    for rows in pieces(config, grid.index):
        index = grid.index[rows] - grid.index[rows].min(0)
        width, height = (index.max(0) + 1).tolist()
        left, top = grid.boxes[rows, :2].min(0).tolist()
        box = Box(left, top, width * grid.boxes[0, 2], height * grid.boxes[0, 3])
        pixels = torch.from_numpy(view.read(box, config.mpp * config.reduce))
        segmented = network(prepare(pixels.permute(2, 0, 1)[None]), "segment").float()
        means = torch.nn.functional.adaptive_avg_pool2d(segmented, (height, width)).flatten()
        cells = torch.from_numpy(index[:, 1] * width + index[:, 0]).to(means.device)
        some = torch.from_numpy(rows).to(means.device)
        logits = logits.to(means.device).index_copy(0, some, means[cells])
    return logits


def infer(model: Model[MultistageConfig], view: View) -> Iterator[Event]:
    """Draw each patch's probability of tumour, and a label map where it is at least one half.

    With ``fine`` above 1, ``fine * fine`` shifted grids are each segmented as in training; a cell
    is a mean of the patches over it, weighted by how close it is to their centres, and cells that
    are mostly background are left out. The slide's score is its highest patch of the grid that is
    not shifted: the same for any ``fine``, and what training chose the threshold by (our choice:
    the paper uses a random forest; see :mod:`slidelens.engine.staging.stage`). If only shifted
    patches hold enough tissue, it is the highest of these.

    Raises
    ------
    SlideError
        No patch holds enough tissue.
    """
    config = model.config
    grid = _patches(view, config)
    if len(grid) == 0:
        raise no_tissue(grid.spec)
    view.total(len(grid))
    tumour = torch.sigmoid(_all_logits(model, view, grid)).cpu().numpy()
    plain = tumour[(grid.index % config.fine == 0).all(1)]
    highest = float(plain.max() if len(plain) else tumour.max())
    boxes, cells = _cells(grid, tumour, config.fine)
    if config.fine > 1:  # a patch may reach over the border: its corner is no tissue
        # Judged as patches are, by what lies inside the slide: so each patch has a cell that stays.
        inside = within(boxes, view.size)
        kept = view.tissue.fraction(inside) >= min(0.5, config.min_tissue) - 1e-9
        kept &= (inside[:, 2:] > 0).all(1)
        boxes, cells = boxes[kept], cells[kept]
    yield Patch("probability", boxes, np.stack([1 - cells, cells], 1))
    yield Patch("segmentation", boxes, (cells >= _THRESHOLD).astype(np.float32)[:, None])
    yield SlideScore((1 - highest, highest))


def maps(config: MultistageConfig, classes: Sequence[str]) -> Sequence[MapSpec]:
    """Return the map of probabilities and the label map of tumour, a cell per step of the grid."""
    cell = config.tile // config.fine * config.mpp
    return (
        MapSpec("probability", "probability", tuple(classes), cell, True, _THRESHOLD),
        MapSpec("segmentation", "labels", tuple(classes[1:]), cell),
    )


def _patches(view: View, config: MultistageConfig) -> Grid:
    """Lay the grid of training and, with ``fine`` above 1, those that are shifted against it.

    Patches of one grid have the same remainder of ``index`` by ``fine``; it is 0 in training's.
    """
    plain = view.grid(grid_spec(config))
    if config.fine == 1:
        return plain
    # Not all of the plain grid's patches are in the fine one, which ends sooner.
    both = view.grid(grid_spec(config, config.fine))
    boxes = np.concatenate([plain.boxes, both.boxes])
    step = np.array(both.affine[:2])
    index = np.rint(boxes[:, :2] / step).astype(np.int64)
    _, once = np.unique(index[:, ::-1], axis=0, return_index=True)  # row by row
    first = index.min(0, initial=np.iinfo(np.int64).max) // config.fine * config.fine
    index = index[once] - first
    columns, rows = (index.max(0, initial=-1) + 1).tolist()
    place = first * step + (config.fine - 1) / 2 * step
    return replace(
        both,
        boxes=boxes[once],
        cores=np.concatenate([plain.cores, both.cores])[once],
        index=index,
        tissue=np.concatenate([plain.tissue, both.tissue])[once],
        shape=(rows, columns),
        affine=Affine(*step.tolist(), *place.tolist()),
    )


def _all_logits(model: Model[MultistageConfig], view: View, grid: Grid) -> torch.Tensor:
    """Return the logit of each patch of a grid, for any method."""
    config, network = model.config, cast_once(model.module)

    def prepare(images: torch.Tensor) -> torch.Tensor:
        return normalize(images.to(model.device), model.mean, model.std)

    outputs = []
    if config.method != "segmentation":
        part = "classify" if config.method == "classifier" else "vectors"

        def computed(batch: Batch) -> torch.Tensor:
            found: torch.Tensor = network(prepare(batch.images), part).float()
            return found

        batches = view.batches(grid, config.batch_size)
        for found in map_batches(computed, batches, model.device, config.tile):
            outputs.append(found)
            view.step(len(found))
        if config.method == "classifier":
            return torch.cat(outputs)[:, 0]
    logits = torch.zeros(len(grid), device=model.device)
    for rows in _shifts(grid.index, config.fine):
        some = torch.from_numpy(rows).to(logits.device)
        shifted = replace(grid.take(rows), index=grid.index[rows] // config.fine)
        if config.method == "segmentation":
            found = picture_logits(network, config, view, shifted, prepare)
            view.step(len(rows))
        else:
            found = map_logits(network, config, torch.cat(outputs)[some], shifted.index)
        logits = logits.index_copy(0, some, found)
    return logits


def _shifts(index: NDArray[np.int64], fine: int) -> list[NDArray[np.int64]]:
    """Split patches into grids whose patches lie edge to edge."""
    shift = index % fine
    kinds = np.unique(shift, axis=0)
    return [np.flatnonzero((shift == kind).all(1)) for kind in kinds]


def _cells(
    grid: Grid, values: NDArray[np.float32], fine: int
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Blend overlapping patches: boxes ``(M, 4)`` and values ``(M,)`` of the cells they cover."""
    if fine == 1:
        return grid.boxes, values
    shape = (grid.shape[0] + fine - 1, grid.shape[1] + fine - 1)
    total, weight = np.zeros(shape), np.zeros(shape)
    column, row = grid.index.T
    window = np.sin(np.pi * (np.arange(fine) + 0.5) / fine) ** 2
    for dy, dx in np.ndindex(fine, fine):
        total[row + dy, column + dx] += window[dy] * window[dx] * values
        weight[row + dy, column + dx] += window[dy] * window[dx]
    y, x = np.nonzero(weight)
    side = grid.boxes[0, 2:] / fine
    corner = grid.boxes[0, :2] + (np.stack([x, y], 1) - grid.index[0]) * side
    boxes = np.concatenate([corner, np.broadcast_to(side, corner.shape)], 1)
    return boxes, (total[y, x] / weight[y, x]).astype(np.float32)


FAMILY = Family(
    name="multistage",
    title="Multi-stage segmentation",
    about="Turns each patch into a vector; a U-Net segments the map of these vectors.",
    config=MultistageConfig,
    build=build,
    infer=infer,
    maps=maps,
    trainer="slidelens.families.multistage_train:MultistageTask",
    version=2,
)
