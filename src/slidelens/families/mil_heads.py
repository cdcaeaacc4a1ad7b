"""The poolings of a MIL model: their fields, layer sizes and networks."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

from slidelens.nn.mil import (
    BagClassifier,
    LinearPooling,
    MilNetwork,
    TileClassifier,
    outputs,
)
from slidelens.nn.mil_pooling import (
    AttentionPooling,
    ClamPooling,
    DualStreamPooling,
    RecurrentPooling,
)
from slidelens.nn.mil_transformer import TransformerPooling

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from slidelens.nn.backbones import Encoder
    from slidelens.nn.mil import BagPooling

__all__ = ["HEAD_FIELDS", "POOLINGS", "PoolingName", "attention_channels", "build_network"]

PoolingName = Literal[
    LinearPooling,
    "rnn",
    "abmil",
    "gated-abmil",
    "dsmil",
    "clam-sb",
    "clam-mb",
    "transmil",
]
POOLINGS: tuple[PoolingName, ...] = get_args(PoolingName)

HEAD_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "top1": {},
    "topk": {"top": 5},
    "mean": {},
    "max": {},
    "rnn": {"hidden": 128, "top": 10},
    "abmil": {"embed": 512, "hidden": 128, "dropout": 0.25},
    "gated-abmil": {"embed": 512, "hidden": 128, "dropout": 0.25},
    "dsmil": {"embed": 0, "hidden": 128, "dropout": 0.0},
    "clam-sb": {"embed": 512, "hidden": 256, "dropout": 0.25, "top": 8},
    "clam-mb": {"embed": 512, "hidden": 256, "dropout": 0.25, "top": 8},
    "transmil": {"embed": 512, "heads": 8, "landmarks": 256, "dropout": 0.1},
}
"""Pooling to the fields that it has, with the sizes of its paper (``topk``: ours)."""

_HEADS: Mapping[str, Callable[..., BagPooling]] = {
    "rnn": RecurrentPooling,
    "abmil": partial(AttentionPooling, gated=False),
    "gated-abmil": partial(AttentionPooling, gated=True),
    "dsmil": DualStreamPooling,
    "clam-sb": partial(ClamPooling, multi=False),
    "clam-mb": partial(ClamPooling, multi=True),
    "transmil": TransformerPooling,
}
_LINEAR: tuple[LinearPooling, ...] = get_args(LinearPooling)


def build_network(
    pooling: PoolingName,
    features: Encoder | int,
    n_classes: int,
    fields: Mapping[str, Any],
) -> MilNetwork:
    """Build a network with random weights.

    Parameters
    ----------
    pooling
        What pools the tiles.
    features
        The backbone, or the length of vectors that were made elsewhere.
    n_classes
        Number of classes.
    fields
        Values of the pooling's :data:`HEAD_FIELDS`.
    """
    if pooling in _LINEAR:
        return TileClassifier(features, n_classes, pooling, **fields)
    if isinstance(features, int):
        return BagClassifier(None, _HEADS[pooling](features, n_classes, **fields))
    return BagClassifier(features, _HEADS[pooling](features.dim, n_classes, **fields))


def attention_channels(pooling: PoolingName, classes: Sequence[str]) -> tuple[str, ...]:
    """Name the planes of the attention map: one for all, one per class, or none."""
    if pooling in _LINEAR or pooling == "rnn":
        return ()
    one_each = pooling == "clam-mb" or (pooling == "dsmil" and outputs(len(classes)) > 1)
    return tuple(classes) if one_each else ("attention",)
