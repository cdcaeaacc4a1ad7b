"""Magnifying networks: choose windows of a slide, look closer layer by layer, classify.

Source: magnifying-networks-2023, section 3. Where the paper (as published, without its appendix) is
silent the choice is ours, and the docstring says so.
"""

from __future__ import annotations

from math import ceil, log, prod
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn

from slidelens.nn.pixels import IMAGENET_MEAN, IMAGENET_STD
from slidelens.nn.sampling import inside, multi_sample
from slidelens.nn.sparsemax import spatial_sparsemax
from slidelens.nn.zoom import (
    Attention,
    Centre,
    FeatureAttention,
    Sees,
    early_part,
    places,
    read_out,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from slidelens.nn.judge import Judge

    Look = Callable[[Tensor, int, int], Tensor]
    Until = Literal["probes", "windows", "verdict"]

__all__ = ["MagNet", "Seen"]

_SHADOW = 1.2
"""How much larger than a window the place is where it inhibits others."""
_BLACK = 1e-3
"""By how much the sum of a black pixel's normalised channels may be off."""
_NEVER = 1e3
"""What keeps a cell out of sparsemax's support whatever its score."""


class Seen(NamedTuple):
    """The results of a forward pass for B slides, with N windows in a layer, T in the last.

    Attributes
    ----------
    logits
        ``(B, T, K)`` after each window of the last layer.
    alone
        ``(B, T, K)`` of each of these windows alone.
    windows
        Per layer ``(B, N, 3)``: scale and centre in the whole picture.
    scores, attention
        Per layer ``(B, N, h, w)``, in the window's parent, before and after sparsemax; even for a
        frozen patch.
    auxiliary
        Layer (from 1) to ``(B, K)`` logits of its auxiliary classifier; empty in evaluation.
    probed
        ``(B, M, K)`` of each probe alone, those with known features last.
    """

    logits: Tensor
    alone: Tensor
    windows: tuple[Tensor, ...]
    scores: tuple[Tensor, ...]
    attention: tuple[Tensor, ...]
    auxiliary: Mapping[int, Tensor]
    probed: Tensor


class _Choice(NamedTuple):
    """The windows chosen by one layer in each parent: ``(B, N, P, ...)``."""

    windows: Tensor
    scores: Tensor
    attention: Tensor

    @classmethod
    def join(cls, choices: Sequence[_Choice], dim: int) -> _Choice:
        return cls(*(torch.stack(parts, dim) for parts in zip(*choices, strict=True)))


class MagNet(nn.Module):
    """Magnifying layers and a classification layer.

    Parameters
    ----------
    judge
        The classification layer.
    auxiliary
        Layer (from 1) to a classifier of single windows, ``(N, 3, h, w)`` to ``(N, K)``.
    patches
        Windows per window of the layer before, by layer.
    glance, look
        Side in px of what magnifying layers and the classification layer see.
    width
        Channels of the attention's convolutions.
    frozen
        The first patch of the second layer is its whole parent (section 4.3).
    shared
        One attention per layer for all parents and patches, instead of one for each; inhibition is
        then what makes patches differ.
    inhibition
        What attention, times its gain, loses where an earlier patch of the same parent looks
        already. (Ours: without inhibition of return patches tend to find the same place; 0 is the
        paper's.)
    gain
        By layer, factor of the scores before sparsemax: low spreads attention, high gathers it.
    least, reach, centre
        See :func:`read_out`; reach is by layer. With one of nearly 0, every window of a layer is
        the smallest there is.
    radius
        See :func:`~slidelens.nn.sampling.multi_sample`.
    sees
        What attention reads: the picture's ``colours``, by convolutions of its own, or early
        ``features`` of the judge's network, without a gradient to it.
    tissue
        No attention to pixels that the grey filter blackened; pictures must then be normalised as
        ImageNet's. (Ours; the paper filters pictures and lets attention go anywhere.)
    """

    def __init__(
        self,
        judge: Judge,
        auxiliary: Mapping[int, nn.Module],
        *,
        patches: Sequence[int],
        glance: int = 56,
        look: int = 224,
        width: int = 16,
        frozen: bool = True,
        shared: bool = False,
        inhibition: float = 0.0,
        gain: Sequence[float] = (1.0,),
        least: float = 0.05,
        reach: Sequence[float] = (1.0,),
        centre: Centre = "exact",
        radius: float = 1.0,
        tissue: bool = False,
        sees: Sees = "colours",
    ) -> None:
        super().__init__()
        self.judge = judge
        self.auxiliary = nn.ModuleDict({str(layer): part for layer, part in auxiliary.items()})
        self.patches = tuple(patches)
        self.glance, self.look = glance, look
        self.frozen, self.shared, self.inhibition = frozen, shared, inhibition
        self.gain, self.reach = (
            tuple(given) if len(given) > 1 else tuple(given) * len(self.patches)
            for given in (gain, reach)
        )
        self.least = least
        self.centre, self.radius, self.tissue = centre, radius, tissue
        early: list[nn.Module] = []
        dim = 0
        if sees == "features":
            trunk = judge.features.get_submodule("trunk")
            assert isinstance(trunk, nn.Sequential)
            early, dim = early_part(trunk)
        self._early = early  # in a list: the modules are the judge's
        self.attention = nn.ModuleList(
            nn.ModuleDict(
                {
                    f"{parent}_{patch}": FeatureAttention(dim) if dim else Attention(width)
                    for parent in range(1 if shared else prod(self.patches[:layer]))
                    for patch in ((count - 1,) if shared else range(count))
                    if not self.is_frozen(layer, patch)
                }
            )
            for layer, count in enumerate(self.patches)
        )

    def is_frozen(self, layer: int, patch: int) -> bool:
        """Return whether a patch (both counted from 0) is its whole parent."""
        return self.frozen and layer == 1 and patch == 0

    def forward(
        self,
        overview: Tensor,
        look: Look,
        *,
        finest: Tensor | None = None,
        probes: Tensor | None = None,
        known: Tensor | None = None,
        until: Until = "verdict",
    ) -> Seen:
        """Run the network on B slides.

        Parameters
        ----------
        overview
            ``(B, 3, glance, glance)`` normalised pictures of the whole slides, padded to squares.
        look
            ``look(windows, size, margin)`` reads windows ``(B, N, 3)``, which have no gradient, as
            ``(B, N, 3, side, side)`` with ``side = size + 2 * margin``: the windows at ``size`` px
            and ``margin`` px more on each side, normalised. It is asked once per layer.
        finest
            ``(B,)``: no window gets a smaller scale in the whole picture.
        probes
            ``(B, M, 3)`` windows to judge as well, each alone.
        known
            ``(B, N, dim)`` features of windows that were looked at before, to be judged alone too.
        until
            ``probes``: choose no windows, judge the probes only. ``windows``: choose windows, none
            of which has a gradient, and do not look into those of the last layer.
        """
        probed = self._probe(overview, look, probes, known)
        if until == "probes":
            return Seen(probed[:, :0], probed[:, :0], (), (), (), {}, probed)
        windows = overview.new_tensor((1.0, 0.0, 0.0)).expand(len(overview), 1, 3)
        pictures = overview[:, None]
        found, chosen, auxiliary = [], [], {}
        for layer in range(len(self.patches)):
            least = torch.full_like(windows[..., 0], self.least)
            if finest is not None:
                least = torch.maximum(least, finest[:, None] / windows[..., 0].detach()).clamp(
                    max=1
                )
            choice = self._choose(layer, pictures, least)
            windows = inside(windows[:, :, None], choice.windows).flatten(1, 2)
            if until == "windows":
                windows = windows.detach()
            found.append(windows)
            chosen.append(choice)
            last = layer + 1 == len(self.patches)
            if last and until == "windows":
                break
            pictures = self._see(windows, self.look if last else self.glance, look)
            name = str(layer + 1)
            if self.training and name in self.auxiliary:
                single = self.auxiliary[name](pictures.flatten(0, 1)).view(*pictures.shape[:2], -1)
                auxiliary[layer + 1] = single.logsumexp(1) - log(single.shape[1])
        logits, alone = (probed[:, :0],) * 2 if until == "windows" else self.judge(pictures)
        scores = tuple(choice.scores.flatten(1, 2) for choice in chosen)
        attention = tuple(choice.attention.flatten(1, 2) for choice in chosen)
        return Seen(logits, alone, tuple(found), scores, attention, auxiliary, probed)

    def _probe(
        self, overview: Tensor, look: Look, probes: Tensor | None, known: Tensor | None
    ) -> Tensor:
        """Classify probes ``(B, M, 3)`` and known features ``(B, N, dim)``: ``(B, M + N, K)``."""
        vectors = [] if known is None else [known]
        if probes is not None:
            images = look(probes, self.look, 0)
            seen = self.judge.features(images.flatten(0, 1))
            vectors.insert(0, seen.view(*images.shape[:2], -1))
        if not vectors:
            return overview.new_zeros(len(overview), 0, self.judge.single.out_features)
        return self.judge.alone(torch.cat(vectors, 1))

    def _choose(self, layer: int, pictures: Tensor, least: Tensor) -> _Choice:
        """Choose windows in each of ``(B, N, 3, h, w)`` pictures, relative to it.

        ``least`` is the smallest scale ``(B, N)`` of a window in each. It applies before windows
        are read, so that inhibition covers what is really read.
        """
        nets, gain, reach = self.attention[layer], self.gain[layer], self.reach[layer]
        assert isinstance(nets, nn.ModuleDict)
        found: list[_Choice] = []
        for parent, picture in enumerate(pictures.unbind(1)):
            choices: list[_Choice] = []
            taken: list[Tensor] = []
            for patch in range(self.patches[layer]):
                if self.is_frozen(layer, patch):
                    choices.append(_whole(picture))
                    continue
                if not (self.shared and taken):
                    name = f"0_{self.patches[layer] - 1}" if self.shared else f"{parent}_{patch}"
                    scores = self._scores(nets[name], picture)
                allowed = self._inhibited(self._kept(scores * gain, picture), taken)
                mass = spatial_sparsemax(allowed)
                window = read_out(mass, least=least[:, parent], reach=reach, centre=self.centre)
                choices.append(_Choice(window, scores, mass))
                taken.append(window.detach())
            found.append(_Choice.join(choices, 1))
        return _Choice.join(found, 1)

    def _scores(self, net: nn.Module, picture: Tensor) -> Tensor:
        """Score the places of ``(B, 3, h, w)`` pictures: ``(B, h, w)``.

        In the picture's precision, even under autocast: sparsemax sums over a whole map.
        """
        if not self._early:
            scores: Tensor = net(picture)
            return scores.to(picture.dtype)
        features = picture
        with torch.no_grad():
            for module in self._early:
                features = module(features)
        read: Tensor = net(features, picture.shape[-1])
        return read.to(picture.dtype)

    def _kept(self, scores: Tensor, picture: Tensor) -> Tensor:
        """Lower scores ``(B, h, w)`` where the grey filter blackened ``(B, 3, h, w)`` pictures.

        An entirely black picture keeps its scores.
        """
        if not self.tissue:
            return scores
        black = sum(-m / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True))
        glass = picture.detach().sum(1) < black + _BLACK
        return scores - _NEVER * (glass & ~glass.all(-1, True).all(-2, True))

    def _inhibited(self, scores: Tensor, windows: Sequence[Tensor]) -> Tensor:
        """Lower scores ``(B, h, w)`` in and around windows ``(B, 3)`` that are chosen already.

        Around them too, since attention to the rim of a window would have its mean inside it.
        """
        if not self.inhibition:
            return scores
        x, y = places(scores.shape[-1], scores), places(scores.shape[-2], scores)
        for window in windows:
            scale, left, top = window[:, :, None].unbind(1)
            across, down = ((x - left).abs() < _SHADOW * scale, (y - top).abs() < _SHADOW * scale)
            scores = scores - self.inhibition * (down[:, :, None] & across[:, None, :])
        return scores

    def _see(self, windows: Tensor, size: int, look: Look) -> Tensor:
        """Read windows ``(B, N, 3)``; their pixels have a gradient to their positions."""
        fixed = windows.detach()
        if not (torch.is_grad_enabled() and windows.requires_grad):
            return look(fixed, size, 0)
        margin = ceil(3 * self.radius)
        source = look(fixed, size, margin)
        extent = fixed[..., :1] * (1 + 2 * margin / size)
        relative = torch.cat((windows[..., :1], windows[..., 1:] - fixed[..., 1:]), -1) / extent
        seen = multi_sample(source.flatten(0, 1), relative.flatten(0, 1), size, radius=self.radius)
        return seen.view(*source.shape[:3], size, size)


def _whole(picture: Tensor) -> _Choice:
    """Return the window that is the whole of ``(B, 3, h, w)``."""
    even = torch.zeros_like(picture[:, 0])
    window = picture.new_tensor((1.0, 0.0, 0.0)).expand(len(picture), 3)
    return _Choice(window, even, even + 1 / even[0].numel())
