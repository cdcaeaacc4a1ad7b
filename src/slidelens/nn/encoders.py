"""Encoders turn tiles into feature vectors: torchvision's networks, and those of plugins.

A plugin's encoder is named ``<plugin>/<variant>``, such as ``timm/vit_small_patch16_224``. Unlike
the dense trunks of :mod:`slidelens.nn.backbones` it need not be convolutional, so only
multiple-instance learning takes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import AfterValidator

from slidelens.errors import ModelError, PluginError
from slidelens.nn.backbones import (
    BACKBONES,
    Encoder,
    Features,
    LoadReport,
    build_features,
    load_weights,
)
from slidelens.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import nn

__all__ = [
    "ENCODERS",
    "Encoder",
    "EncoderFacts",
    "EncoderName",
    "EncoderSource",
    "LoadReport",
    "build_encoder",
    "described",
    "description_of",
    "encoder_facts",
    "load_encoder",
    "may_ask_network",
    "network_asked",
]

_RGB = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class EncoderFacts:
    """The input that an encoder expects.

    Attributes
    ----------
    mean, std
        Normalisation of RGB in 0..1.
    tile
        Side of a tile in px; ``None`` for any.
    mpp
        µm/px at which it was trained; ``None`` if not known.
    """

    mean: _RGB
    std: _RGB
    tile: int | None = None
    mpp: float | None = None


@dataclass(frozen=True)
class EncoderSource:
    """A plugin's encoders, for the entry-point group ``slidelens.backbones``.

    Attributes
    ----------
    build
        ``build(variant)`` makes the network with random weights. It and ``facts`` ask the network
        only where :func:`may_ask_network` says so: packages of others name variants too.
    load
        ``load(module, variant, weights)`` loads its weights: ``"imagenet"`` for those that come
        with the variant, or a safetensors file. Raises ``ModelError``.
    facts
        ``facts(variant)``, without building the network.
    sample
        A small variant for ``slidelens doctor`` to try; it is built with random weights and must
        not need the network. If ``None``, the plugin is loaded but not tried.
    rebuild
        ``rebuild(variant, description)`` makes a network again from its
        :attr:`~slidelens.nn.backbones.Encoder.description`, as a package keeps it, with random
        weights and without the network. For plugins whose encoders have one; a package may come
        from anyone.
    """

    build: Callable[[str], Encoder]
    load: Callable[[Any, str, str | Path], LoadReport]
    facts: Callable[[str], EncoderFacts]
    sample: str | None = None
    rebuild: Callable[[str, Mapping[str, Any]], Encoder] | None = None


ENCODERS: Registry[EncoderSource] = Registry(
    "slidelens.backbones", "slidelens.nn.encoders:EncoderSource", {}
)


_asked: ContextVar[bool] = ContextVar("asked", default=False)
_described: ContextVar[Mapping[str, Any] | None] = ContextVar("described", default=None)


@contextmanager
def network_asked() -> Iterator[None]:
    """Let plugins ask the network what an encoder is like: in the block, the user has named it."""
    token = _asked.set(True)
    try:
        yield
    finally:
        _asked.reset(token)


def may_ask_network() -> bool:
    """Whether a plugin may ask the network what an encoder is like.

    It may when the user names an encoder to train with, and not when a model package does, whose
    maker would be told who opens it.
    """
    return _asked.get()


@contextmanager
def described(description: Mapping[str, Any] | None) -> Iterator[None]:
    """Build encoders in the block from what a package keeps of its own; ``None``: by name alone."""
    token = _described.set(description)
    try:
        yield
    finally:
        _described.reset(token)


def description_of(network: nn.Module) -> dict[str, Any] | None:
    """Return what a package must keep of the encoder in a network; ``None``: its name is enough."""
    encoders = (part for part in network.modules() if isinstance(part, Encoder))
    found = (encoder.description for encoder in encoders)
    return next((dict(one) for one in found if isinstance(one, Mapping)), None)


def build_encoder(name: str) -> Encoder:
    """Build an encoder with random weights; in :func:`described`, as it is described.

    Raises
    ------
    ModelError
        No such backbone or plugin, or a plugin that does not load.
    """
    if name in BACKBONES:
        return build_features(cast("Any", name))
    source, variant = _source(name)
    description = _described.get()
    if description is None or source.rebuild is None:
        module = source.build(variant)
    else:
        module = source.rebuild(variant, description)
    if not isinstance(module, Encoder):
        raise ModelError(f"plugin encoder {name!r} is a {type(module).__name__}, not an Encoder.")
    return module


def load_encoder(module: Encoder, name: str, weights: str | Path) -> LoadReport:
    """Load weights into an encoder made by :func:`build_encoder` with the same name.

    Parameters
    ----------
    module, name
        The encoder and its name.
    weights
        ``"imagenet"`` for those that come with the encoder, or a safetensors file.

    Raises
    ------
    ModelError
        No such encoder, or weights that are not its own.
    """
    if isinstance(module, Features):
        return load_weights(module, weights)
    source, variant = _source(name)
    return source.load(module, variant, weights)


def encoder_facts(name: str) -> EncoderFacts | None:
    """Return the input that a plugin's encoder expects; None for torchvision's (ImageNet's).

    Raises
    ------
    ModelError
        No such encoder, or a plugin that does not load.
    """
    if name in BACKBONES:
        return None
    source, variant = _source(name)
    with ENCODERS.blaming(name.partition("/")[0], "to state its facts"):
        return source.facts(variant)


def _source(name: str) -> tuple[EncoderSource, str]:
    plugin, slash, variant = name.partition("/")
    if not slash or not variant or plugin not in ENCODERS:
        plugins = "".join(f", {other}/NAME" for other in ENCODERS)
        raise ModelError(f"no backbone {name!r}: choose one of {', '.join(BACKBONES)}{plugins}.")
    try:
        return ENCODERS.get(plugin), variant
    except PluginError as error:
        raise ModelError(str(error)) from error


def _known(name: str) -> str:
    if name not in BACKBONES:
        try:
            _source(name)
        except ModelError as error:
            raise ValueError(str(error)) from error
    return name


EncoderName = Annotated[str, AfterValidator(_known)]
"""A backbone of torchvision, or ``<plugin>/<variant>``."""
