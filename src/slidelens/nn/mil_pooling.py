"""Learnt poolings of tiles: attention, dual stream, clustering-constrained, recurrent.

A bag is the feature vectors ``(N, D)`` of one slide's tiles. Sizes of layers default to those of
each method's paper (:mod:`slidelens.families.mil`). All mathematics is float32. The transformer is
in :mod:`slidelens.nn.mil_transformer`.
"""

from __future__ import annotations

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slidelens.nn.mil import BagOutput, BagPooling, bag_loss, outputs, slide_loss

__all__ = [
    "AttentionPooling",
    "ClamPooling",
    "DualStreamPooling",
    "RecurrentPooling",
    "margin_loss",
]

_BAG_WEIGHT = 0.7
"""Share of the slide's loss in CLAM's."""


class AttentionPooling(BagPooling):
    """Weighted mean of embedded tiles, the weights learnt; with or without gate.

    Source: Ilse et al. 2018, "Attention-based deep multiple instance learning", equations 8 and 9.

    Parameters
    ----------
    dim, n_classes
        Length of the vectors, number of classes.
    embed
        Width of the embedding before the attention; 0 takes the vectors as they are.
    hidden
        Width of the attention's hidden layer.
    gated
        Multiply the tanh layer by a sigmoid one.
    dropout
        Of the embedding.
    """

    def __init__(
        self, dim: int, n_classes: int, *, embed: int, hidden: int, gated: bool, dropout: float
    ) -> None:
        super().__init__()
        self.embed = _embedding(dim, embed, dropout)
        width = embed or dim
        self.attention = _AttentionScores(width, hidden, 1, gated=gated, dropout=0.0)
        self.classifier = nn.Linear(width, outputs(n_classes))

    def forward(
        self, vectors: Tensor, label: Tensor | None = None, smoothing: float = 0.0
    ) -> BagOutput:
        """Pool ``(N, D)``; see :class:`~slidelens.nn.mil.BagPooling`."""
        hidden = self.embed(vectors)
        weights = torch.softmax(self.attention(hidden), 1)
        logits = self.classifier(weights @ hidden)[0]
        return BagOutput(logits, weights, bag_loss(logits, label, smoothing))

    def instances(self, vectors: Tensor) -> Tensor:
        """Return ``(N, K)``: the logits of each tile alone."""
        logits: Tensor = self.classifier(self.embed(vectors))
        return logits


class ClamPooling(BagPooling):
    """Gated attention whose extremes are also clustered, one binary cluster problem per class.

    The tiles of highest attention are evidence for the slide's class and against the others; those
    of lowest attention are not evidence for it. Single branch (SB): one attention for all classes;
    multi-branch (MB): one per class, each with its own classifier.

    Source: Lu et al. 2021, "Data-efficient and weakly supervised computational pathology on
    whole-slide images" (CLAM): embedding 512, gated attention 256, 8 tiles, margin loss, slide's
    loss weighted 0.7. Our choices: classes exclude each other, so every class has its cluster loss
    (the paper's subtyping; the mean over classes); a bag of fewer than 16 tiles clusters half of
    its tiles as high and half as low, one of a single tile none.

    Parameters
    ----------
    dim, n_classes, embed, hidden, dropout
        As for :class:`AttentionPooling`; dropout is in the attention too.
    multi
        One attention per class (MB) instead of one for all (SB).
    top
        Tiles of highest and of lowest attention that are clustered.
    """

    def __init__(
        self,
        dim: int,
        n_classes: int,
        *,
        embed: int,
        hidden: int,
        dropout: float,
        multi: bool,
        top: int,
    ) -> None:
        super().__init__()
        self.top = top
        self.embed = _embedding(dim, embed, dropout)
        width = embed or dim
        branches = n_classes if multi else 1
        self.attention = _AttentionScores(width, hidden, branches, gated=True, dropout=dropout)
        self.classifier = nn.Linear(width, n_classes if multi else outputs(n_classes))
        self.clusters = nn.ModuleList(nn.Linear(width, 2) for _ in range(n_classes))

    def forward(
        self, vectors: Tensor, label: Tensor | None = None, smoothing: float = 0.0
    ) -> BagOutput:
        """Pool ``(N, D)``; see :class:`~slidelens.nn.mil.BagPooling`."""
        hidden = self.embed(vectors)
        scores = self.attention(hidden)
        weights = torch.softmax(scores, 1)
        pooled = weights @ hidden
        if len(pooled) == 1:
            logits = self.classifier(pooled)[0]
        else:
            logits = (self.classifier.weight * pooled).sum(1) + self.classifier.bias
        loss = bag_loss(logits, label, smoothing)
        if label is not None and loss is not None:
            clustered = self._cluster_loss(hidden, scores.detach(), int(label))
            loss = _BAG_WEIGHT * loss + (1 - _BAG_WEIGHT) * clustered
        return BagOutput(logits, weights, loss)

    def instances(self, vectors: Tensor) -> Tensor:
        """Return ``(N, K)``: the logits of each tile alone."""
        logits: Tensor = self.classifier(self.embed(vectors))
        return logits

    def _cluster_loss(self, hidden: Tensor, scores: Tensor, label: int) -> Tensor:
        """Return the mean over classes of their cluster loss; ``hidden`` is ``(N, W)``."""
        count = min(self.top, len(hidden) // 2)
        if count == 0:  # highest and lowest would be one and the same tile
            return hidden.new_zeros(())
        total = hidden.new_zeros(())
        for number, cluster in enumerate(self.clusters):
            score = scores[number if len(scores) > 1 else 0]
            high = cluster(hidden[score.topk(count).indices])
            if number == label:
                low = cluster(hidden[score.topk(count, largest=False).indices])
                targets = torch.arange(2 * count, device=hidden.device) < count
                total = total + margin_loss(torch.cat((high, low)), targets.long())
            else:
                total = total + margin_loss(high, high.new_zeros(count, dtype=torch.long))
        return total / len(self.clusters)


class DualStreamPooling(BagPooling):
    """The most suspicious tile, and attention to tiles similar to it.

    Stream one scores tiles and takes the highest (the critical tile). Stream two compares every
    tile's query with the critical tile's and averages the tiles with these weights; the slide's
    logit is the mean of both streams' logits, and each stream has a loss.

    Source: Li et al. 2021, "Dual-stream multiple instance learning network" (DSMIL), section 3.2.

    Parameters
    ----------
    dim, n_classes, embed, hidden, dropout
        As for :class:`AttentionPooling`; ``hidden`` is the length of a query.
    """

    def __init__(
        self, dim: int, n_classes: int, *, embed: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.embed = _embedding(dim, embed, dropout)
        width, k = embed or dim, outputs(n_classes)
        self.tile = nn.Linear(width, k)
        self.query = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.Tanh()
        )
        self.classifier = nn.Linear(k * width, k)

    def forward(
        self, vectors: Tensor, label: Tensor | None = None, smoothing: float = 0.0
    ) -> BagOutput:
        """Pool ``(N, D)``; see :class:`~slidelens.nn.mil.BagPooling`."""
        hidden = self.embed(vectors)
        scores = self.tile(hidden)
        queries = self.query(hidden)
        highest, critical = scores.max(0)
        similar = queries[critical] @ queries.T / sqrt(queries.shape[1])
        weights = torch.softmax(similar, 1)
        pooled = self.classifier((weights @ hidden).flatten())
        loss = None
        if label is not None:
            losses = slide_loss(torch.stack((pooled, highest)), label.expand(2), smoothing)
            loss = losses.mean()
        return BagOutput((pooled + highest) / 2, weights, loss)

    def instances(self, vectors: Tensor) -> Tensor:
        """Return ``(N, K)``: the logits of each tile alone."""
        hidden = self.embed(vectors)
        k = self.tile.out_features
        # Alone in its bag, a tile is what every output's attention finds.
        weight = self.classifier.weight.view(k, k, -1).sum(1)
        logits: Tensor = (F.linear(hidden, weight, self.classifier.bias) + self.tile(hidden)) / 2
        return logits


class RecurrentPooling(BagPooling):
    """A recurrent network over the most suspicious tiles, from the highest score down.

    Source: Campanella et al. 2019, supplement: ten tiles, state 128, one ReLU layer. There the tile
    classifier is trained first; here both are trained in the same step, the tile classifier on the
    highest tile, without sharing a layer. With more than two classes (our choice) the tiles are the
    highest of each class in turn.

    Parameters
    ----------
    dim, n_classes
        Length of the vectors, number of classes.
    hidden
        Length of the state.
    top
        Tiles that are read.
    """

    def __init__(self, dim: int, n_classes: int, *, hidden: int, top: int) -> None:
        super().__init__()
        self.top = top
        self.tile = nn.Linear(dim, outputs(n_classes))
        self.input = nn.Linear(dim, hidden)
        self.recur = nn.Linear(hidden, hidden)
        self.classifier = nn.Linear(hidden, outputs(n_classes))

    def forward(
        self, vectors: Tensor, label: Tensor | None = None, smoothing: float = 0.0
    ) -> BagOutput:
        """Pool ``(N, D)``; see :class:`~slidelens.nn.mil.BagPooling`."""
        scores = self.tile(vectors)
        found = scores.topk(min(self.top, len(scores)), 0)
        steps = self.input(vectors[found.indices.flatten()[: self.top]])
        state = steps.new_zeros(self.recur.in_features)
        for step in steps:
            state = torch.relu(step + self.recur(state))
        logits = self.classifier(state)
        loss = None
        if label is not None:
            both = torch.stack((logits, found.values[0]))
            loss = slide_loss(both, label.expand(2), smoothing).sum()
        return BagOutput(logits, None, loss)

    def instances(self, vectors: Tensor) -> Tensor:
        """Return ``(N, K)``: the logits of each tile alone."""
        logits: Tensor = self.tile(vectors)
        return logits


class _AttentionScores(nn.Module):
    """Scores of embedded tiles ``(N, D)`` to ``(branches, N)``, before the softmax."""

    def __init__(
        self, dim: int, hidden: int, branches: int, *, gated: bool, dropout: float
    ) -> None:
        super().__init__()
        self.content = nn.Linear(dim, hidden)
        self.gate = nn.Linear(dim, hidden) if gated else None
        self.score = nn.Linear(hidden, branches, bias=False)  # softmax would ignore one
        self.dropout = nn.Dropout(dropout)

    def forward(self, tiles: Tensor) -> Tensor:
        found = self.dropout(torch.tanh(self.content(tiles)))
        if self.gate is not None:
            found = found * self.dropout(torch.sigmoid(self.gate(tiles)))
        scores: Tensor = self.score(found)
        return scores.T


def margin_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the smooth top-1 SVM loss: cross entropy that asks for a margin of 1.

    ``logits`` ``(N, C)``, ``targets`` ``(N,)``. Source: Berrada et al. 2018, "Smooth loss functions
    for deep top-k classification", equation 10 with k = 1 and temperature 1.
    """
    margin = 1 - F.one_hot(targets, logits.shape[1]).to(logits.dtype)
    return F.cross_entropy(logits + margin, targets)


def _embedding(dim: int, width: int, dropout: float) -> nn.Module:
    if not width:
        return nn.Dropout(dropout)
    return nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Dropout(dropout))
