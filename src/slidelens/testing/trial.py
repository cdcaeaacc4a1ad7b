"""First runs of plugins, with a check of everything that they return.

A family runs on a small phantom with random weights, an encoder on noise, an exporter on a made-up
result, and a reader is shown a file of another format.
"""

from __future__ import annotations

import inspect
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from slidelens.engine.contract import build_network
from slidelens.engine.predict import predict
from slidelens.errors import ModelError, PluginError, ResultError
from slidelens.export.base import check_written
from slidelens.families.base import Family, Model
from slidelens.nn.encoders import Encoder
from slidelens.slide.array import from_array
from slidelens.testing.phantom import PhantomSpec, draw, truth
from slidelens.testing.results import make_result

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from slidelens.export.base import Exporter
    from slidelens.maps.result import Result
    from slidelens.nn.encoders import EncoderSource
    from slidelens.slide.base import Slide
    from slidelens.slide.reader import Reader

__all__ = [
    "trial_encoder",
    "trial_export",
    "trial_model",
    "trial_predict",
    "trial_result",
    "trial_slide",
    "trial_sniff",
]

CLASSES = ("normal", "tumour")
_SPEC = PhantomSpec(size=(1024, 896), seed=5, lesions=1)


def trial_slide(mpp: float = 0.5) -> Slide:
    """Return a phantom in memory, 1024 x 896 px, that states ``mpp`` µm/px."""
    return from_array(_pixels(), mpp=mpp, name="trial")


@cache
def _pixels() -> NDArray[np.uint8]:
    return draw(_SPEC)


def trial_model(family: Family[Any], config: Mapping[str, Any] | None = None) -> Model[Any]:
    """Build a family's model for two classes with random weights.

    Parameters
    ----------
    config
        Fields of its configuration; the others keep their defaults.

    Raises
    ------
    Exception
        Whatever the family raises.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = family.config.model_validate(dict(config or {}))
        module = build_network(family, settings, len(CLASSES)).eval()
    return Model(
        name=f"trial-{family.name}",
        family=family.name,
        config=settings,
        classes=CLASSES,
        module=module,
        device=torch.device("cpu"),
        card={"mpp": getattr(settings, "mpp", 0.5)},
    )


def trial_predict(model: Model[Any]) -> Result:
    """Run a model on the trial slide, at the resolution that it needs, and check the result.

    Raises
    ------
    ModelError
        It does not return what it declares.
    Exception
        Whatever the family raises.
    """
    mpp = float(getattr(model.config, "mpp", 0.5))
    with trial_slide(mpp) as slide:
        result = predict(slide, model, device="cpu", precision="fp32")
    total = sum(result.probabilities.values())
    if abs(total - 1) > 1e-3:
        raise ModelError(
            f"model {model.name!r} gave probabilities that add up to {total:.3f}, not to 1."
        )
    for name, map_ in result.maps.items():
        values = np.asarray(map_.read(), np.float64)
        if np.isnan(values).all():
            raise ModelError(f"model {model.name!r} declared a map {name!r} and drew nothing.")
    return result


def trial_result() -> Result:
    """Return what a MIL model might predict for the trial slide; no model made it."""
    return make_result(truth(_SPEC), "trial", "mil", 0.8)


def trial_export(exporter: Exporter, folder: Path, result: Result | None = None) -> Path | None:
    """Let an exporter write a result into an empty folder; return what it wrote.

    Parameters
    ----------
    exporter
        Its name, description and suffix are checked too.
    folder
        Empty.
    result
        By default :func:`trial_result`, which has a probability map, tiles and regions. An exporter
        that lacks something in it (``ResultError``) is not at fault: None is returned.

    Raises
    ------
    PluginError
        The output is not the one file or folder that was requested.
    Exception
        Whatever the exporter raises.
    """
    for field in ("name", "about", "suffix"):
        if not getattr(exporter, field):
            raise PluginError(f"an exporter's {field} is empty.")
    result = result or trial_result()
    target = folder / f"{result.slide.id}{exporter.suffix}"
    try:
        exporter.write(result, target)
    except ResultError:
        return None
    found = sorted(path.name for path in folder.iterdir())
    if found != [target.name]:
        raise PluginError(f"asked to write {target.name}, it left {', '.join(found) or 'nothing'}.")
    check_written(exporter, target)
    return target


def trial_sniff(reader: type[Reader]) -> None:
    """Show a reader a text file and an empty folder, neither of which it may accept.

    Raises
    ------
    PluginError
        It lacks a method or its name, or takes them for slides.
    Exception
        Whatever it raises.
    """
    if inspect.isabstract(reader):
        missing = ", ".join(sorted(reader.__abstractmethods__))
        raise PluginError(f"{reader.__name__} does not define {missing}.")
    if not getattr(reader, "backend", ""):
        raise PluginError(f"{reader.__name__} sets no backend, its name.")
    text = b"no slide\n" * 100
    with tempfile.TemporaryDirectory() as name:
        file, empty = Path(name, "text.txt"), Path(name, "empty")
        file.write_bytes(text)
        empty.mkdir()
        for path, head in ((file, text), (empty, b"")):
            if reader.sniff(path, head):
                raise PluginError(f"{reader.__name__} takes {path.name} for a slide of its format.")


def trial_encoder(source: EncoderSource, variant: str) -> Encoder:
    """Build one of a plugin's encoders with random weights and encode two tiles of noise.

    Raises
    ------
    PluginError
        Not an :class:`~slidelens.nn.encoders.Encoder`, vectors of another shape than ``(2, dim)``,
        or impossible facts.
    Exception
        Whatever the plugin raises.
    """
    facts = source.facts(variant)
    if not (len(facts.mean) == len(facts.std) == 3 and min(facts.std) > 0):
        raise PluginError(
            f"mean {facts.mean} and std {facts.std}: expected three each, std above 0."
        )
    if (facts.tile is not None and facts.tile < 1) or (facts.mpp is not None and facts.mpp <= 0):
        raise PluginError(f"tiles of {facts.tile} px at {facts.mpp} µm/px: expected above 0.")
    encoder = source.build(variant).eval()
    if not isinstance(encoder, Encoder):
        raise PluginError(f"it built a {type(encoder).__name__}, expected an Encoder.")
    side = facts.tile or 224
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        vectors = encoder(torch.randn(2, 3, side, side))
    if tuple(vectors.shape) != (2, encoder.dim) or not bool(vectors.isfinite().all()):
        raise PluginError(
            f"two tiles became a tensor of shape {tuple(vectors.shape)}; expected finite vectors "
            f"of shape {(2, encoder.dim)}."
        )
    return encoder
