"""Model packages: a folder with ``model.json`` and ``weights.safetensors``. Never pickle."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

import slidelens
from slidelens.engine.packages.fetch import fetch_model, is_reference
from slidelens.engine.packages.golden import GOLDEN, compare, make_golden, read_golden, replay
from slidelens.engine.packages.manifest import (
    MANIFEST,
    PARTS,
    WEIGHTS,
    Manifest,
    manifest_of,
    read_manifest,
)
from slidelens.engine.packages.sums import compare_sums
from slidelens.engine.packages.weights import fill, read_weights
from slidelens.errors import ModelError, PluginError
from slidelens.families import FAMILIES
from slidelens.faults import first_fault
from slidelens.files import staged_folder
from slidelens.settings import get_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from slidelens.families.base import Family, FamilyConfig, Model

__all__ = [
    "GOLDEN",
    "Manifest",
    "ModelInfo",
    "check_packable",
    "check_received",
    "family_of",
    "find_models",
    "load_model",
    "locate_model",
    "read_manifest",
    "save_model",
    "verify",
    "write_golden",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model package in a list.

    Attributes
    ----------
    name, path, family, classes
        Of ``model.json``, and its folder.
    mpp
        Resolution of the model in µm/px; ``None`` where the manifest states none.
    sha256
        Of the weights.
    error
        Why it cannot be used; ``None`` if it can.
    """

    name: str
    path: Path
    family: str = ""
    classes: tuple[str, ...] = ()
    mpp: float | None = None
    sha256: str = ""
    error: str | None = None


def find_models() -> list[ModelInfo]:
    """List the model packages that can be given by name, without reading weights."""
    found: dict[str, ModelInfo] = {}
    for folder in _packages():
        info = _inspect(folder)
        found.setdefault(info.name, info)  # the first place wins, as in load_model
    return [found[name] for name in sorted(found)]


def load_model(name_or_folder: str | Path, device: str | torch.device = "auto") -> Model[Any]:
    """Load a model package onto a device, ready to run (eval mode).

    Parameters
    ----------
    name_or_folder
        A folder, or a name that ``find_models`` lists. Names are looked up in ``SLIDELENS_MODELS``,
        then in ``models/`` of a source checkout, then in the models bundled with the wheel. A model
        on the network is fetched once: see :mod:`slidelens.engine.packages.fetch`.
    device
        ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.

    Returns
    -------
    The model. Its results are matched by the package's checksum, and by one of its weights as they
    are when you have changed them in memory (not by ``tensor.data``, which hides it).

    Raises
    ------
    ModelError
        No such model; weights that are missing, altered or do not fit; an unknown family or
        configuration field.
    """
    import torch

    from slidelens.engine.contract import build_network
    from slidelens.engine.device import pick_device
    from slidelens.engine.provenance import LOADED
    from slidelens.families.base import Model
    from slidelens.nn.encoders import described

    folder = locate_model(name_or_folder)
    manifest = read_manifest(folder)
    config = _config(manifest, folder)
    random = torch.random.fork_rng(devices=[])  # no caller's random numbers for weights that go
    with random, described(manifest.encoder):
        module = build_network(family_of(manifest.family), config, len(manifest.classes))
    fill(module, read_weights(folder, manifest), folder / WEIGHTS)
    target = pick_device(device)
    # Slides are read as (H, W, 3), which is channels-last: convolutions then take it as it is.
    module = module.to(target, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    LOADED.keep(module, manifest.weights_sha256)
    known = {"schema_version", "name", "family", "config", "classes", "normalisation"}
    return Model(
        name=manifest.name,
        family=manifest.family,
        config=config,
        classes=manifest.classes,
        module=module,
        mean=manifest.normalisation.mean,
        std=manifest.normalisation.std,
        device=target,
        card=manifest.model_dump(exclude=known),
    )


def save_model(
    model: Model[Any],
    folder: str | Path,
    *,
    golden: NDArray[np.uint8] | None = None,
    half: bool = False,
) -> Path:
    """Write a model package, whole or not at all, replacing an existing one.

    Parameters
    ----------
    model
        ``model.card`` becomes the rest of ``model.json``: ``training_data``, ``metrics``,
        ``licence``, ``intended_use``, ``threshold`` and any other key.
    folder
        Where to write.
    golden
        ``(H, W, 3)`` uint8 picture at the model's resolution. It is run, and kept with its output
        so that :func:`verify` can replay it.
    half
        Store floating-point weights in fp16: half the size, loaded back as fp32. The golden output
        is computed from the stored weights.

    Raises
    ------
    ModelError
        A name, class or card that a manifest cannot hold.
    ResultError
        The folder holds more than a package, which would be lost.
    """
    from safetensors.torch import save

    folder = Path(folder)
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.module.state_dict().items()}
    if half:
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    weights = save(tensors)
    manifest = manifest_of(model, sha256(weights).hexdigest())
    with staged_folder(folder, PARTS) as staging:
        (staging / WEIGHTS).write_bytes(weights)
        text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False)
        (staging / MANIFEST).write_text(text + "\n", encoding="utf-8")
        if golden is not None:
            write_golden(staging, golden)
    return folder


def write_golden(folder: str | Path, picture: NDArray[np.uint8]) -> None:
    """Run a package on ``(H, W, 3)`` uint8 RGB at its resolution; keep both in its golden file."""
    from safetensors.torch import save

    kept = make_golden(load_model(folder, "cpu"), picture)
    # Bytes, not save_file: that makes a file that only its owner may read.
    (Path(folder) / GOLDEN).write_bytes(save(kept))


def verify(name_or_folder: str | Path) -> float:
    """Replay a package's golden input on the CPU in fp32; return the largest deviation.

    Raises
    ------
    ModelError
        A package that does not load, has no golden tensors, or gives another output than the one
        it was saved with (more than 1e-4 apart).
    """
    folder = locate_model(name_or_folder)
    kept = read_golden(folder)
    return compare(replay(load_model(folder, "cpu"), kept.pop("input").numpy()), kept, folder)


def check_received(folder: str | Path) -> None:
    """Check a package that has just arrived: its checksums, and its golden output.

    What cannot be run here, for want of a plugin or of trust, is not replayed; it says why when it
    is used.

    Raises
    ------
    ModelError
        A file or an output that is not its maker's.
    """
    folder = Path(folder)
    compare_sums(folder)
    if not (folder / GOLDEN).is_file():
        return
    kept = read_golden(folder)
    try:
        now = replay(load_model(folder, "cpu"), kept.pop("input").numpy())
    except (ModelError, PluginError) as error:
        log.warning("%s: its golden output was not replayed: %s", folder.name, error)
        return
    compare(now, kept, folder)


def family_of(name: str) -> Family[Any]:
    """Return a family by name.

    Raises
    ------
    ModelError
        No such family, or a plugin that does not load.
    """
    try:
        return FAMILIES.get(name)  # type: ignore[no-any-return]
    except KeyError:
        raise ModelError(_no_family(name)) from None
    except PluginError as error:
        raise ModelError(str(error)) from error


def check_packable(model: Model[Any]) -> None:
    """Refuse, before it learns, a ``model`` that :func:`save_model` would refuse at the end.

    Raises
    ------
    ModelError
        No manifest can hold it; names the first field that is at fault.
    """
    manifest_of(model, "0" * 64)


def _config(manifest: Manifest, folder: Path) -> FamilyConfig:
    if manifest.family not in FAMILIES:
        raise ModelError(
            f"model {manifest.name!r}: {_no_family(manifest.family, manifest.created_with)}"
        )
    family = family_of(manifest.family)
    try:
        config: FamilyConfig = family.config.model_validate(manifest.config)
    except ValidationError as error:
        known = ", ".join(family.config.model_fields)
        raise ModelError(
            f"{folder / MANIFEST}: config does not fit family {manifest.family!r}: "
            f"{first_fault(error)}. Its fields are: {known}."
        ) from error
    return config


def locate_model(name_or_folder: str | Path) -> Path:
    """Return the folder of a package, fetched if need be; else ``ModelError``, as `load_model`."""
    if is_reference(name_or_folder):
        return fetch_model(str(name_or_folder), check=check_received)
    folder = Path(name_or_folder)
    if (folder / MANIFEST).is_file():
        return folder
    name = str(name_or_folder)
    is_path = isinstance(name_or_folder, Path) or "/" in name or "\\" in name
    infos = {info.name: info for info in reversed([_inspect(f) for f in _packages()])}
    if name in infos and not is_path:
        return infos[name].path
    if is_path or folder.exists():
        read_manifest(folder)  # says what is wrong with this folder
    known = ", ".join(sorted(infos)) or "none"
    raise ModelError(
        f"no model {name!r}; known models: {known}. Give a name from `slidelens models`, "
        f"or a folder with {MANIFEST} and {WEIGHTS}."
    )


def _packages() -> Iterator[Path]:
    """Yield the folders that look like packages, in order of precedence."""
    home = Path(slidelens.__file__).resolve().parent
    places = [get_settings().models]
    if home.parent.name == "src":
        places.append(home.parent.parent / "models")
    places.append(home / "_models")
    for place in places:
        if place is not None and place.is_dir():
            yield from sorted(f for f in place.iterdir() if (f / MANIFEST).is_file())


def _inspect(folder: Path) -> ModelInfo:
    try:
        manifest = read_manifest(folder)
    except ModelError as error:
        return ModelInfo(folder.name, folder, error=str(error))
    reason = None
    if manifest.family not in FAMILIES:
        reason = _no_family(manifest.family, manifest.created_with)
    elif not (folder / WEIGHTS).is_file():
        reason = f"{folder / WEIGHTS} is missing. Copy the package again."
    return ModelInfo(
        manifest.name,
        folder,
        manifest.family,
        manifest.classes,
        manifest.mpp,
        manifest.weights_sha256,
        reason,
    )


def _no_family(name: str, made_with: Mapping[str, Any] | None = None) -> str:
    plugins = [f"{k} {v}" for k, v in (made_with or {}).items() if k not in ("slidelens", "torch")]
    which = f"; it was made with {', '.join(plugins)}" if plugins else ""
    return (
        f"unknown model family {name!r}; known families: {', '.join(FAMILIES.names())}. "
        f"Install the plugin that brings it{which}."
    )
