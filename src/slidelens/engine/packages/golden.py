"""Golden tensors: an input and the output that the model gave when it was packed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slidelens.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from slidelens.families.base import Bag, Model

__all__ = ["GOLDEN", "WITHIN", "compare", "make_golden", "read_golden", "replay"]

GOLDEN = "golden.safetensors"
WITHIN = 1e-4
"""How far another machine's output may be from the golden one, in fp32 on a CPU."""
_CELL = 8
"""Side in px of what stands for a tile in a picture whose values are taken for feature vectors."""


def read_golden(folder: Path) -> dict[str, torch.Tensor]:
    """Read a package's golden tensors: ``input`` and the outputs.

    Raises
    ------
    ModelError
        No such file, or another one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / GOLDEN
    try:
        kept: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read golden tensors {path}: {error}.") from error
    if "input" not in kept:
        raise ModelError(f"cannot read golden tensors {path}: it holds no input.")
    shape, kind = tuple(kept["input"].shape), str(kept["input"].dtype).removeprefix("torch.")
    if len(shape) != 3 or shape[2] != 3 or 0 in shape or kind != "uint8":
        raise ModelError(
            f"cannot read golden tensors {path}: its input is {shape} of {kind}, expected a "
            "picture, (height, width, 3) of uint8."
        )
    return kept


def make_golden(model: Model[Any], picture: NDArray[np.uint8]) -> dict[str, torch.Tensor]:
    """Run a model, as :func:`replay` does, on ``picture``; return that and the outputs.

    Raises
    ------
    ModelError
        Probabilities that are not finite, such as those of damaged weights.
    """
    import torch

    outputs = replay(model, picture)
    _check_finite(outputs, model.name)
    return {"input": torch.from_numpy(picture.copy()), **outputs}


def replay(model: Model[Any], image: NDArray[np.uint8]) -> dict[str, torch.Tensor]:
    """Run a model, in fp32 on the CPU, on one picture at its resolution.

    Parameters
    ----------
    model
        On the CPU.
    image
        ``(H, W, 3)`` uint8 RGB, all of it taken for tissue. A model that begins with feature
        vectors is given its values for such.

    Returns
    -------
    dict
        ``probabilities``, ``(classes,)``, and for each map ``map.<name>``, its patches' values: one
        after another, in a row where patches have different sizes.
    """
    import numpy as np
    import torch

    from slidelens.engine.contract import events_of
    from slidelens.engine.device import evaluating
    from slidelens.engine.loader import SlideView
    from slidelens.families.base import Patch, SlideScore
    from slidelens.slide.array import from_array
    from slidelens.tiling.tissue import TissueSettings

    bag = _bag(image, getattr(model.config, "bag_dim", 0))
    with (
        from_array(image, mpp=float(model.card["mpp"])) as slide,
        SlideView(
            slide,
            tissue=TissueSettings(method="whole"),
            device=torch.device("cpu"),
            stain="none" if bag is not None else model.config.stain_normalization,
            bag=bag,
        ) as view,
        evaluating(torch.device("cpu"), bf16=False),
    ):
        events = list(events_of(model, view))
    values: dict[str, list[NDArray[np.float32]]] = {}
    outputs: dict[str, torch.Tensor] = {}
    for event in events:
        if isinstance(event, Patch) and len(event.boxes):  # an empty one only says "still at work"
            values.setdefault(event.map, []).append(np.asarray(event.values, np.float32))
        elif isinstance(event, SlideScore):
            outputs["probabilities"] = torch.tensor(event.probabilities, dtype=torch.float32)
    for name, parts in values.items():
        alike = len({part.shape[1:] for part in parts}) == 1
        joined = np.concatenate(parts if alike else [part.ravel() for part in parts])
        outputs[f"map.{name}"] = torch.from_numpy(np.ascontiguousarray(joined))
    return outputs


def _bag(image: NDArray[np.uint8], dim: int) -> Bag | None:
    """Take a picture's values, from -1 to 1, for feature vectors of small tiles in it."""
    if not dim:
        return None
    import numpy as np

    from slidelens.families.base import Bag

    rows, columns = (side // _CELL for side in image.shape[:2])
    count = max(min(image.size // dim, rows * columns), 1)
    y, x = np.divmod(np.arange(count), columns)
    boxes = np.stack([x, y, np.ones_like(x), np.ones_like(y)], 1) * float(_CELL)
    values = image.ravel().astype(np.float32) / 127.5 - 1
    return Bag(boxes, np.resize(values, (count, dim)))


def compare(
    now: Mapping[str, torch.Tensor], kept: Mapping[str, torch.Tensor], folder: Path
) -> float:
    """Return the largest deviation of an output from the golden one.

    Raises
    ------
    ModelError
        Other outputs or shapes, a deviation above :data:`WITHIN`, or probabilities that are not
        finite.
    """
    _check_finite(now, folder.name)
    if _shapes(now) != _shapes(kept):
        raise ModelError(
            f"{folder.name} does not give its golden output: {GOLDEN} holds {_shapes(kept)}, the "
            f"model now gives {_shapes(now)}. Weights, family code or torch have changed."
        )
    worst = max(float((now[k] - kept[k]).abs().nan_to_num(0.0).max()) for k in kept)
    nans = any(bool((now[k].isnan() != kept[k].isnan()).any()) for k in kept)
    if nans or worst > WITHIN:
        how = "one of the two is not finite where the other is"
        raise ModelError(
            f"{folder.name} does not give its golden output: "
            f"{how if nans else f'it differs by {worst:.2g} (at most {WITHIN:g} is expected)'}. "
            "Weights, family code or torch have changed."
        )
    return worst


def _check_finite(outputs: Mapping[str, torch.Tensor], name: str) -> None:
    """Refuse probabilities that are none; a map is NaN where its model did not look."""
    said = outputs.get("probabilities")
    if said is not None and not bool(said.isfinite().all()):
        raise ModelError(
            f"{name} gives probabilities {said.tolist()}, which are not finite: its weights are "
            "damaged, or its training diverged."
        )


def _shapes(outputs: Mapping[str, torch.Tensor]) -> str:
    return ", ".join(f"{k} {'x'.join(map(str, v.shape))}" for k, v in sorted(outputs.items()))
