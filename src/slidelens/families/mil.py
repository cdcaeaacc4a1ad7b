"""Multiple-instance learning: what a slide's tiles say together, by one of eleven poolings.

Sources: streaming-prostate-2020, section IV.B, after Campanella et al. 2019 (top-1); the papers of
the other poolings are named where they are built (:mod:`slidelens.nn.mil_pooling`,
:mod:`slidelens.nn.mil_transformer`). Training is in :mod:`slidelens.families.mil_train`.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator
from safetensors.torch import save

from slidelens.errors import ModelError, SlideError
from slidelens.families.base import (
    BAG_FIELDS,
    Bag,
    Batch,
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
from slidelens.families.mil_given import learnt_facts, stated, taken, unlike, wrong_length
from slidelens.families.mil_heads import (
    HEAD_FIELDS,
    PoolingName,
    attention_channels,
    build_network,
)
from slidelens.nn.backbones import Features
from slidelens.nn.encoders import EncoderName, build_encoder, encoder_facts, may_ask_network
from slidelens.nn.map_batches import map_batches
from slidelens.nn.mil import MilNetwork, class_probabilities, encoded
from slidelens.nn.pixels import normalize
from slidelens.nn.precision import cast_once
from slidelens.nn.unchanged import WhileUnchanged
from slidelens.tiling.grid import GridSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import nn

__all__ = [
    "FAMILY",
    "MilConfig",
    "backbone_sha256",
    "grid_spec",
    "network_of",
    "vector_facts",
]

_known: WhileUnchanged[str] = WhileUnchanged()
"""Checksums of backbones: summed once, not for every slide."""

_Vectors = tuple["NDArray[np.float64]", torch.Tensor]
"""Boxes ``(N, 4)`` of tiles in level-0 px, and their feature vectors ``(N, D)``."""

_AT_ONCE = 4096
"""Given vectors that are scored at once."""

_OWN = "; default: as in the pooling's paper"


class MilConfig(FamilyConfig):
    """What defines a MIL model; training has its own (:class:`~.mil_schedule.MilTraining`).

    The fields from ``embed`` on belong to some poolings only (:data:`~.mil_heads.HEAD_FIELDS`):
    they are ``None`` in a model that has no use for them.
    """

    backbone: EncoderName = Field(
        "resnet34", description="torchvision network, or a plugin's, such as timm/NAME"
    )
    tile: int = Field(224, ge=32, le=4096, description="tile side in px")
    mpp: float = Field(0.5, gt=0, le=100, description="resolution of the tiles in µm/px")
    overlap: int = Field(0, ge=0, description="overlap of neighbouring tiles in px")
    min_tissue: float = Field(0.5, ge=0, le=1, description="smallest tissue fraction of a tile")
    pooling: PoolingName = Field("top1", description="how tiles are pooled into a slide score")
    batch_size: int = Field(32, ge=1, le=4096, description="tiles per forward pass")
    orientations: int = Field(
        1,
        ge=1,
        le=8,
        description="orientations of each tile over which feature vectors are averaged",
    )
    bag_dim: int = Field(
        0, ge=0, description="length of precomputed feature vectors; 0: computed by the backbone"
    )
    keep_features: bool = Field(
        True, description="save the tiles' feature vectors in the result, for export"
    )
    embed: int | None = Field(
        None, ge=0, le=8192, description=f"width of the tile embedding, 0 for none{_OWN}"
    )
    hidden: int | None = Field(
        None, ge=1, le=8192, description=f"width of the attention layer or the RNN's state{_OWN}"
    )
    dropout: float | None = Field(None, ge=0, lt=1, description=f"dropout of the embedding{_OWN}")
    top: int | None = Field(
        None, ge=1, description=f"tiles that topk averages, rnn reads, clam clusters{_OWN}"
    )
    heads: int | None = Field(None, ge=1, description=f"attention heads of transmil{_OWN}")
    landmarks: int | None = Field(None, ge=1, description=f"landmarks of transmil{_OWN}")

    run_fields: ClassVar[frozenset[str]] = frozenset(
        {"overlap", "min_tissue", "batch_size", "keep_features"}
    )

    @model_validator(mode="before")
    @classmethod
    def _encoder_wishes(cls, values: Any) -> Any:
        """Read tiles as a plugin's encoder expects them, unless this is set, as in a package."""
        if not isinstance(values, Mapping) or "/" not in str(values.get("backbone", "")):
            return values
        if {"tile", "mpp"} <= values.keys() and not may_ask_network():
            return values
        try:
            facts = encoder_facts(str(values["backbone"]))
        except ModelError as error:
            raise ValueError(str(error)) from error
        wishes = {} if facts is None else {"tile": facts.tile, "mpp": facts.mpp}
        return {k: v for k, v in wishes.items() if v is not None} | dict(values)

    @model_validator(mode="before")
    @classmethod
    def _pooling_fields(cls, values: Any) -> Any:
        """Fill in the pooling's own fields; refuse those of other poolings."""
        pooling = values.get("pooling", "top1") if isinstance(values, Mapping) else None
        if not isinstance(pooling, str) or pooling not in HEAD_FIELDS:
            return values
        own = HEAD_FIELDS[pooling]
        given = {k: v for k, v in values.items() if v is not None}
        strange = [k for k in given if k not in own and any(k in f for f in HEAD_FIELDS.values())]
        if strange:
            has = f"its own fields are {', '.join(own)}" if own else "it has no fields of its own"
            raise ValueError(f"pooling {pooling} has no {', '.join(strange)}: {has}")
        return {**own, **given}

    @model_validator(mode="after")
    def _sizes_fit(self) -> MilConfig:
        if self.overlap >= self.tile:
            raise ValueError(f"overlap {self.overlap} px must be below the tile's {self.tile} px")
        if self.heads and self.embed and self.embed % self.heads:
            raise ValueError(f"embed {self.embed} does not divide into {self.heads} heads")
        if self.pooling == "transmil" and not self.embed:
            raise ValueError("pooling transmil needs embed, the width of its tokens")
        return self

    @classmethod
    def fine_tuned(cls, base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``base`` changed by ``given``; another pooling starts from its own sizes."""
        if given.get("pooling", base["pooling"]) != base["pooling"]:
            base = {k: v for k, v in base.items() if not any(k in f for f in HEAD_FIELDS.values())}
        return {**base, **given}


def grid_spec(config: MilConfig) -> GridSpec:
    """Return the grid that a model with this configuration reads, in training and inference."""
    return GridSpec(config.tile, config.mpp, config.overlap, config.min_tissue)


def backbone_sha256(network: MilNetwork) -> str:
    """Return the checksum of the backbone's weights, which identifies its feature vectors."""
    assert network.features is not None
    weights = network.features.state_dict()
    return sha256(save({k: v.detach().cpu().contiguous() for k, v in weights.items()})).hexdigest()


def build(config: MilConfig, n_classes: int) -> nn.Module:
    """Build the network, with random weights."""
    features = config.bag_dim or build_encoder(config.backbone)
    own = {name: getattr(config, name) for name in HEAD_FIELDS[config.pooling]}
    network = build_network(config.pooling, features, n_classes, own)
    network.orientations = config.orientations
    return network


def infer(model: Model[MilConfig], view: View) -> Iterator[Event]:
    """Draw each tile's probabilities, then the attention; at the end, yield the slide's score.

    A tile's probabilities are those of a slide with only this tile (for the RNN: of its tile
    classifier). They are drawn as tiles are read; attention and score need all tiles.

    Raises
    ------
    SlideError
        No tile holds enough tissue; of a model on feature vectors that were made elsewhere: vectors
        of another length, backbone, kind of tiles or slide, or none in the region.
    ModelError
        Such a model, and no vectors.
    """
    config = model.config
    network: Any = model.module
    facts: dict[str, str] = {}
    seen, places = [], []
    for boxes, vectors in _given(model, view) if config.bag_dim else _encoded(model, view):
        logits = network.instances(vectors)
        values = class_probabilities(logits).cpu().numpy()
        yield Patch("probability", boxes, values)
        if config.keep_features and not config.bag_dim:
            facts = facts or vector_facts(model)
            yield Bag(boxes, vectors.half().cpu().numpy(), facts)
        seen.append(network.essence(vectors, logits))
        places.append(boxes)
        view.step(len(values))
    output = network(bag=torch.cat(seen))
    if output.attention is not None:
        yield Patch("attention", np.concatenate(places), output.attention.T.cpu().numpy())
    yield SlideScore(tuple(class_probabilities(output.logits[None])[0].tolist()))


def _encoded(model: Model[MilConfig], view: View) -> Iterator[_Vectors]:
    """Encode the tiles of a slide, batch by batch."""
    network: Any = model.module
    config, features = model.config, network.features
    grid = view.grid(grid_spec(config))
    if len(grid) == 0:
        raise no_tissue(grid.spec)
    view.total(len(grid))
    batches = view.batches(grid, config.batch_size)  # read while the weights are cast
    if isinstance(features, Features):  # a plugin's may cast as it likes
        features = cast_once(features)

    def vectors(batch: Batch) -> _Vectors:
        images = normalize(batch.images, model.mean, model.std)
        return batch.boxes, encoded(features, images, config.orientations).float()

    yield from map_batches(vectors, batches, model.device, config.tile)


def _given(model: Model[MilConfig], view: View) -> Iterator[_Vectors]:
    """Yield the given vectors of the region's tiles."""
    bag = view.bag
    if bag is None:
        raise ModelError(
            f"model {model.name!r} was trained on feature vectors made elsewhere, has no backbone "
            "to make them of a slide, and was given none."
        )
    try:
        _check_made_alike(model, bag)
        rows = taken(bag, view.size, view.region)
    except SlideError as error:
        raise SlideError(f"{view.name}.h5: {error}") from error
    view.total(len(rows))
    for start in range(0, len(rows), _AT_ONCE):
        some = rows[start : start + _AT_ONCE]
        vectors = torch.from_numpy(bag.vectors[some].astype(np.float32))
        yield bag.boxes[some], vectors.to(model.device or "cpu")


def _check_made_alike(model: Model[MilConfig], bag: Bag) -> None:
    """Refuse vectors that are not such as the model learnt from."""
    if bag.vectors.shape[1] != model.config.bag_dim:
        raise SlideError(wrong_length(bag, model.config.bag_dim))
    fault = unlike(stated(bag.facts), learnt_facts(model.card), "the model learnt from")
    if fault:
        raise SlideError(fault)


def network_of(model: Model[MilConfig]) -> MilNetwork:
    """Return the model's network by its type."""
    assert isinstance(model.module, MilNetwork)
    return model.module


def vector_facts(model: Model[MilConfig]) -> dict[str, str]:
    """Return what identifies the feature vectors of a model that has a backbone."""
    config = model.config
    digest = _known.get(model.module)
    if digest is None:
        digest = backbone_sha256(network_of(model))
        _known.keep(model.module, digest)
    return {
        **{name: str(getattr(config, name)) for name in BAG_FIELDS},
        "backbone": config.backbone,
        "backbone_sha256": digest,
    }


def maps(config: MilConfig, classes: Sequence[str]) -> Sequence[MapSpec]:
    """Return the tiles' probabilities and, if the pooling has one, their attention."""
    cell = (config.tile - config.overlap) * config.mpp
    found = [MapSpec("probability", "probability", tuple(classes), cell, instances=True)]
    channels = attention_channels(config.pooling, classes)
    if channels:
        found.append(MapSpec("attention", "attention", channels, cell))
    return tuple(found)


FAMILY = Family(
    name="mil",
    title="Multiple-instance learning",
    about="Looks at each tile, and pools the tiles into a score for the slide.",
    config=MilConfig,
    build=build,
    infer=infer,
    maps=maps,
    trainer="slidelens.families.mil_train:MilTask",
)
