"""A family's first run: random weights, a small phantom, everything checked that comes out."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from slidelens.engine.predict import predict
from slidelens.errors import ModelError
from slidelens.families.base import Family, Model
from slidelens.slide.array import from_array
from slidelens.testing.phantom import PhantomSpec, draw

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from slidelens.maps.result import Result
    from slidelens.slide.base import Slide

__all__ = ["trial_model", "trial_predict", "trial_slide"]

CLASSES = ("normal", "tumour")
_SIZE = (1024, 896)


def trial_slide(mpp: float = 0.5) -> Slide:
    """Return a phantom in memory, 1024 x 896 px, that states ``mpp`` µm/px."""
    return from_array(_pixels(), mpp=mpp, name="trial")


@cache
def _pixels() -> NDArray[np.uint8]:
    return draw(PhantomSpec(size=_SIZE, seed=5, lesions=1))


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
        module = family.build(settings, len(CLASSES)).eval()
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
    """Run a model on the trial slide, at the resolution that it wants, and check the result.

    Raises
    ------
    ModelError
        What it gives is not what it declares.
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
        if map_.kind == "probability" and (np.nanmin(values) < 0 or np.nanmax(values) > 1):
            raise ModelError(f"map {name!r} of model {model.name!r} leaves 0..1.")
    return result
