"""Pack a model to share it, and check one that was received."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from slidelens.engine.evaluation.memory import read_kept
from slidelens.engine.package import GOLDEN, load_model, locate_model, verify, write_golden
from slidelens.engine.packages.card import model_card
from slidelens.engine.packages.manifest import (
    MANIFEST,
    PARTS,
    WEIGHTS,
    Manifest,
    read_manifest,
)
from slidelens.engine.packages.sums import SUMS, compare_sums, write_sums
from slidelens.errors import ModelError
from slidelens.faults import first_fault
from slidelens.files import staged_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CARD", "check_package", "pack"]

CARD = "README.md"


def pack(
    model: str | Path,
    out: str | Path,
    *,
    name: str | None = None,
    evaluation: str | Path | None = None,
    licence: str | None = None,
    intended_use: str | None = None,
) -> Path:
    """Write a package with card, golden tensors and checksums into ``out``, ready to upload.

    Parameters
    ----------
    model
        Name or folder of a package; what else lies in its folder (logs, checkpoints, the paths in
        a training's configuration) stays behind.
    name
        Another name for it.
    evaluation
        Folder of ``slidelens evaluate`` whose figures of this model go into the card.
    licence, intended_use
        For a package that does not state them yet.

    Raises
    ------
    ModelError
        No licence or intended use; an evaluation that lacks this model, or is of one of the same
        name with other weights.
    ResultError
        ``out`` holds more than a package, such as the training of this one: it would be lost.
    """
    from slidelens.nn.encoders import description_of

    folder, out = locate_model(model), Path(out)
    stated = read_manifest(folder)
    changes: dict[str, Any] = {"name": name or stated.name, **_without_places(stated)}
    if stated.encoder is None and "/" in str(stated.config.get("backbone")):
        changes["encoder"] = description_of(load_model(folder, "cpu").module)  # an old one has none
    if evaluation is not None:
        figures = _figures(Path(evaluation), stated)
        changes["metrics"] = {**stated.metrics, "evaluation": figures}
    for key, given in (("licence", licence), ("intended_use", intended_use)):
        changes[key] = given or getattr(stated, key)
    lacking = [key for key in ("licence", "intended_use") if not changes[key]]
    if lacking:
        what = " and no ".join(key.replace("_", " ") for key in lacking)
        raise ModelError(
            f"{folder} states no {what}, without which nobody can use it: give "
            f"{' and '.join('--' + key.replace('_', '-') for key in lacking)}."
        )
    try:
        manifest = Manifest.model_validate({**stated.model_dump(), **changes})
    except ValidationError as error:
        raise ModelError(f"cannot pack {folder}: {first_fault(error)}.") from error
    with staged_folder(out, PARTS) as staging:
        shutil.copyfile(folder / WEIGHTS, staging / WEIGHTS)
        text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False)
        (staging / MANIFEST).write_text(text + "\n", encoding="utf-8")
        write_golden(staging, _picture(folder, manifest))  # loads the package: it is sound
        (staging / CARD).write_text(model_card(manifest), encoding="utf-8")
        write_sums(staging)
    return out


def check_package(model: str | Path) -> list[str]:
    """Check a package and return what was found to hold, a line each.

    Raises
    ------
    ModelError
        A file that is not the one that was packed, weights that do not load, or another output
        than the golden one.
    """
    folder = locate_model(model)
    manifest = read_manifest(folder)
    held = []
    if compare_sums(folder):
        held.append(f"{SUMS}: every file is the one that was packed")
    load_model(folder, "cpu")
    held.append(f"{WEIGHTS}: sha256 {manifest.weights_sha256}, loads as {manifest.family}")
    if (folder / GOLDEN).is_file():
        held.append(f"{GOLDEN}: replayed, largest deviation {verify(folder):.1g}")
    else:
        held.append(f"no {GOLDEN}: its output cannot be compared with that of its maker")
    return held


def _without_places(stated: Manifest) -> dict[str, Any]:
    """Return what a package says of its training, without names of folders and files."""
    found = stated.model_dump()
    places = {"training": ("bags", "bag_cache"), "training_data": ("labels",)}
    kept = {
        key: {k: v for k, v in found[key].items() if k not in names}
        for key, names in places.items()
        if isinstance(found.get(key), dict)
    }
    if "backbone_weights" in (data := kept.get("training_data", {})):
        data["backbone_weights"] = _unnamed(data["backbone_weights"])
    return kept


def _unnamed(source: Any) -> Any:
    """Return where weights came from, without the name of a file; MagNet has several backbones."""
    if isinstance(source, dict):
        return {key: _unnamed(one) for key, one in source.items()}
    return "a file" if str(source).endswith((".safetensors", ".pt", ".pth", ".bin")) else source


def _figures(evaluation: Path, stated: Manifest) -> dict[str, Any]:
    name, path = stated.name, evaluation / "metrics.json"
    try:
        models: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["models"]
        _, weights = read_kept(evaluation)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path} is not a metrics.json of slidelens evaluate ({error}); give its --out folder."
        ) from error
    if name not in models:
        raise ModelError(f"{path} has no model {name!r}; it has {', '.join(models)}.")
    digest = weights.get(name, {}).get("sha256")
    if digest is not None and digest != stated.weights_sha256:
        raise ModelError(
            f"{evaluation} evaluated another model {name!r}: its weights have sha256 "
            f"{digest[:12]}…, those of this one {stated.weights_sha256[:12]}…. Predict with this "
            "model and evaluate again."
        )
    figures = models[name]
    return {key: value for key, value in figures.items() if not isinstance(value, list | dict)} | {
        key: figures[key] for key in ("auc_ci",) if key in figures
    }


def _picture(folder: Path, manifest: Manifest) -> NDArray[np.uint8]:
    """Return the picture that the package replays, or a phantom's if it has none."""
    from safetensors.numpy import load_file

    if (folder / GOLDEN).is_file():
        picture: NDArray[np.uint8] = load_file(folder / GOLDEN)["input"]
        return picture
    from slidelens.testing.phantom import PhantomSpec, draw

    side = min(2 * (manifest.tile_size or 256), 1024)
    return draw(PhantomSpec(size=(side, side), mpp=manifest.mpp, seed=7, lesions=1))
