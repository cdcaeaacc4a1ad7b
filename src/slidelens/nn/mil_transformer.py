"""TransMIL: a small transformer over the tiles of a slide.

Source: Shao et al. 2021, "TransMIL: transformer based correlated multiple instance learning",
algorithms 1 and 2; attention over many tiles by Xiong et al. 2021, "Nyströmformer", equation 13.
"""

from __future__ import annotations

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slidelens.nn.mil import BagOutput, BagPooling, bag_loss, outputs

__all__ = ["NystromAttention", "TransformerPooling"]

_INVERSE_STEPS = 6
_LEAST_SUM = 1e-6
_INSTANCES = 4096
"""Tiles that go through the transformer at once, each as a bag of its own."""


class NystromAttention(nn.Module):
    """Self-attention of several heads, approximate where there are more tokens than landmarks.

    Up to ``landmarks`` tokens it is exact (our choice: cheaper there, and without error). Beyond, a
    landmark is the mean of neighbouring tokens, in groups as equal as can be (ours: no padding that
    would draw attention). The depthwise convolution over values is left out: tiles in a row of a
    list need not be neighbours.

    Parameters
    ----------
    dim, heads
        Width of a token, and heads that share it.
    landmarks
        Number of landmarks.
    """

    def __init__(self, dim: int, heads: int, landmarks: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"width {dim} does not divide into {heads} heads")
        self.heads, self.landmarks = heads, landmarks
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(B, T, dim)`` of tokens ``(B, T, dim)``, and attention ``(B, T)``.

        The attention is that of the first token to every token, the mean over heads.
        """
        parts: Tensor = self.qkv(tokens).view(*tokens.shape[:2], 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind()
        query = query / query.shape[-1] ** 0.5
        if tokens.shape[1] <= self.landmarks:
            weights = torch.softmax(query @ key.mT, -1)
            mixed, attention = weights @ value, weights[:, :, 0]
        else:
            some_queries, some_keys = self._means(query), self._means(key)
            inverse = _inverse(torch.softmax(some_queries @ some_keys.mT, -1))
            left = torch.softmax(query @ some_keys.mT, -1) @ inverse
            right = torch.softmax(some_queries @ key.mT, -1)
            mixed, attention = left @ (right @ value), (left[:, :, :1] @ right)[:, :, 0]
        return mixed.transpose(1, 2).flatten(2), attention.mean(1)

    def _means(self, tokens: Tensor) -> Tensor:
        """Average ``(B, heads, T, d)`` to ``(B, heads, landmarks, d)``."""
        means = F.adaptive_avg_pool1d(tokens.flatten(0, 1).mT, self.landmarks).mT
        return means.reshape(*tokens.shape[:2], self.landmarks, -1)


class TransformerPooling(BagPooling):
    """A class token that attends to all tiles, twice, with a position code in between.

    The tiles are laid out in a square in the order they come in (the first ones repeated to fill
    it), so that depthwise convolutions can code their positions (PPEG).

    Parameters
    ----------
    dim, n_classes
        Length of the vectors, number of classes.
    embed
        Width of a token.
    heads, landmarks
        See :class:`NystromAttention`.
    dropout
        Of the embedding and of what each attention adds.
    """

    def __init__(
        self,
        dim: int,
        n_classes: int,
        *,
        embed: int,
        heads: int,
        landmarks: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(dim, embed), nn.ReLU(), nn.Dropout(dropout))
        self.token = nn.Parameter(torch.randn(embed) * 0.02)
        self.layers = nn.ModuleList(_Layer(embed, heads, landmarks, dropout) for _ in range(2))
        self.position = nn.ModuleList(
            nn.Conv2d(embed, embed, side, padding=side // 2, groups=embed) for side in (7, 5, 3)
        )
        self.norm = nn.LayerNorm(embed)
        self.classifier = nn.Linear(embed, outputs(n_classes))

    def forward(
        self, vectors: Tensor, label: Tensor | None = None, smoothing: float = 0.0
    ) -> BagOutput:
        """Pool ``(N, D)``; see :class:`~slidelens.nn.mil.BagPooling`."""
        logits, attention = self._bags(vectors[None])
        return BagOutput(logits[0], attention, bag_loss(logits[0], label, smoothing))

    def instances(self, vectors: Tensor) -> Tensor:
        """Return ``(N, K)``: the logits of each tile alone."""
        parts = torch.split(vectors, _INSTANCES)
        return torch.cat([self._bags(part[:, None])[0] for part in parts])

    def _bags(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``(B, K)`` and attention ``(B, N)`` of bags ``(B, N, D)`` of one size.

        The attention is the tiles' part of the class token's, brought to a sum of 1.
        """
        count = vectors.shape[1]
        side = isqrt(count - 1) + 1
        tiles = self.embed(vectors)
        tiles = torch.cat((tiles, tiles[:, : side * side - count]), 1)
        tokens = torch.cat((self.token.expand(len(tiles), 1, -1), tiles), 1)
        tokens, _ = self.layers[0](tokens)
        square = tokens[:, 1:].mT.reshape(len(tokens), -1, side, side)
        square = square + sum(code(square) for code in self.position)
        tokens, attention = self.layers[1](torch.cat((tokens[:, :1], square.flatten(2).mT), 1))
        weights = attention[:, 1 : count + 1].clone()
        repeats = attention[:, count + 1 :]  # of the first tiles, which fill the square
        weights[:, : repeats.shape[1]] += repeats
        weights = weights / weights.sum(1, keepdim=True).clamp(min=_LEAST_SUM)
        return self.classifier(self.norm(tokens[:, 0])), weights


class _Layer(nn.Module):
    """Norm, attention, and the tokens themselves added."""

    def __init__(self, dim: int, heads: int, landmarks: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = NystromAttention(dim, heads, landmarks)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        found, attention = self.attention(self.norm(tokens))
        return tokens + self.dropout(found), attention


def _inverse(matrices: Tensor) -> Tensor:
    """Approximate pseudo-inverses ``(B, heads, m, m)`` by iteration (Nyströmformer, section 3.3).

    The start is scaled by the largest sums over all heads of a bag.
    """
    sums = matrices.abs().sum(-1).amax((1, 2)) * matrices.abs().sum(-2).amax((1, 2))
    guess = matrices.mT / sums[:, None, None, None]
    one = torch.eye(matrices.shape[-1], device=matrices.device, dtype=matrices.dtype)
    for _ in range(_INVERSE_STEPS):
        product = matrices @ guess
        inner = 15 * one - product @ (7 * one - product)
        guess = guess @ (13 * one - product @ inner) / 4
    return guess
