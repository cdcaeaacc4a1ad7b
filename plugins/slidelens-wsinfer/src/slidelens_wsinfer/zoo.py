"""Zoo folders: ``config.json`` beside ``model.safetensors`` or ``torchscript_model.pt``."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from slidelens.engine.package import load_model, save_model
from slidelens.errors import ModelError
from slidelens.families.base import Model
from slidelens.faults import first_fault
from slidelens.files import staged_folder
from slidelens_wsinfer.family import FAMILY, WsinferConfig
from slidelens_wsinfer.networks import Script, TwoLogits, load_script, trust

__all__ = ["export_zoo", "import_zoo", "trust_package"]

_HEAD = ("head.weight", "head.bias")
_STEPS = ("Resize", "ToTensor", "Normalize")
_IN_ORDER = "Resize, ToTensor and Normalize"
CONFIG, TENSORS, SCRIPT = "config.json", "model.safetensors", "torchscript_model.pt"


class Transform(BaseModel):
    """One step of the preprocessing."""

    name: str
    arguments: dict[str, Any] = {}


class ZooConfig(BaseModel):
    """``config.json`` of the zoo, specification 1.0."""

    model_config = ConfigDict(extra="allow")

    spec_version: str = "1.0"
    architecture: str
    num_classes: int = Field(ge=1)
    class_names: tuple[str, ...]
    name: str | None = None
    patch_size_pixels: int = Field(ge=1)
    spacing_um_px: float = Field(gt=0)
    transform: tuple[Transform, ...] = ()


def import_zoo(folder: str | Path, out: str | Path, *, trusted: bool = False) -> Path:
    """Make a model package of a zoo folder.

    Parameters
    ----------
    folder
        Holds ``config.json`` and weights. Safetensors are taken where there are both.
    out
        Folder of the package.
    trusted
        Accept TorchScript, and let it run on this machine.

    Raises
    ------
    ModelError
        A folder without the two files, a configuration that does not hold, transformations that
        are not known or in another order, weights that do not fit, TorchScript without ``trusted``.
    """
    folder, out = Path(folder), Path(out)
    config = _read_config(folder)
    mean, std, resize = _preprocessing(config, folder)
    classes = config.class_names
    if config.num_classes == 1 and len(classes) == 1:
        classes = (f"not {classes[0]}", classes[0])
    fields: dict[str, Any] = {
        "architecture": config.architecture,
        "outputs": config.num_classes,
        "tile": config.patch_size_pixels,
        "mpp": config.spacing_um_px,
        "resize": resize,
    }
    module: torch.nn.Module
    if (folder / TENSORS).is_file():
        settings = WsinferConfig(**fields)
        module = FAMILY.build(settings, len(classes))
        _fill(module, folder / TENSORS)
    elif (folder / SCRIPT).is_file():
        content = (folder / SCRIPT).read_bytes()
        if not trusted:
            raise ModelError(
                f"{folder / SCRIPT} is a TorchScript program, which can do anything that you can "
                "do on this machine. If you trust its maker, give --trust."
            )
        load_script(content)
        trust(content)
        settings = WsinferConfig(**fields, script_bytes=len(content))
        module = Script(len(content))
        module.program.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    else:
        raise ModelError(
            f"{folder} has neither {TENSORS} nor {SCRIPT}; a pytorch_model.bin is a pickle and is "
            "not read: ask for safetensors."
        )
    # Not the folder's name: it may be a patient's, or tell where it lay.
    card = {"training_data": {"zoo": config.name or config.architecture}, "intended_use": None}
    model = Model(out.name, "wsinfer", settings, classes, module, mean, std, card=card)
    return save_model(model, out)


def export_zoo(package: str | Path, out: str | Path) -> Path:
    """Write a package of family ``wsinfer``, or ``mil`` with pooling top1, as a zoo folder.

    ``torchscript_model.pt`` is what WSInfer and QuPath run; ``model.safetensors`` is there too
    where the architecture has the name of a public network.

    Raises
    ------
    ModelError
        A family that does not classify tiles; a model of feature vectors, or of normalised stains,
        which the zoo's programs do not make.
    """
    out = Path(out)
    model = load_model(package, "cpu")
    network, tensors = _tile_network(model, package)
    outputs = getattr(model.config, "outputs", 0) or len(model.classes)
    side = getattr(model.config, "resize", 0) or model.config.tile
    transform = (
        [{"name": "Resize", "arguments": {"size": side}}] if side != model.config.tile else []
    )
    transform += [
        {"name": "ToTensor"},
        {"name": "Normalize", "arguments": {"mean": list(model.mean), "std": list(model.std)}},
    ]
    config = {
        "spec_version": "1.0",
        "architecture": getattr(model.config, "architecture", None) or model.config.backbone,
        "num_classes": outputs,
        "class_names": list(model.classes[-outputs:]),  # one output is of the positive class alone
        "name": model.name,
        "patch_size_pixels": model.config.tile,
        "spacing_um_px": model.config.mpp,
        "transform": transform,
    }
    with staged_folder(out, {SCRIPT, TENSORS, CONFIG}) as staging:
        if isinstance(network, Script):
            (staging / SCRIPT).write_bytes(network.program.numpy().tobytes())
        else:
            with torch.no_grad():
                traced = torch.jit.trace(network, torch.zeros(1, 3, side, side), check_trace=False)
            buffer = io.BytesIO()
            torch.jit.save(traced, buffer)
            (staging / SCRIPT).write_bytes(buffer.getvalue())
        if tensors:
            (staging / TENSORS).write_bytes(save(tensors))
        (staging / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return out


def trust_package(package: str | Path) -> None:
    """Let the TorchScript program of a package run on this machine.

    Raises
    ------
    ModelError
        The package holds none.
    """
    module = load_model(package, "cpu").module
    if not isinstance(module, Script):
        raise ModelError(f"{package} holds no TorchScript program: there is nothing to trust.")
    trust(module.program.numpy().tobytes())


def _read_config(folder: Path) -> ZooConfig:
    path = folder / CONFIG
    try:
        config = ZooConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ModelError(
            f"{folder} is no WSInfer folder: cannot read {CONFIG} ({error.strerror or error})."
        ) from error
    except ValidationError as error:
        raise ModelError(f"{path}: {first_fault(error)}.") from error
    if len(config.class_names) != config.num_classes:
        raise ModelError(
            f"{path}: {len(config.class_names)} class_names for num_classes {config.num_classes}."
        )
    return config


def _preprocessing(config: ZooConfig, folder: Path) -> tuple[Any, Any, int]:
    """Return mean, standard deviation and the side that tiles are resized to (0: not at all)."""
    names = [step.name for step in config.transform]
    strange = [name for name in names if name not in _STEPS]
    if strange:
        raise ModelError(
            f"{folder / CONFIG}: transformation {strange[0]!r} is not known; {_IN_ORDER} are."
        )
    if names != [name for name in _STEPS if name in names]:
        raise ModelError(
            f"{folder / CONFIG}: its transform is {', '.join(names)}, which gives other pixels "
            f"than what is done here: {_IN_ORDER}, each once and in this order. Ask its maker "
            "which of the two the network was trained with."
        )
    mean, std, resize = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 0
    for step in config.transform:
        if step.name == "Resize":
            size = step.arguments.get("size", 0)
            sides = {size} if isinstance(size, int) else set(size)
            if len(sides) != 1:
                raise ModelError(f"{folder / CONFIG}: Resize to {size}; tiles are square.")
            resize = int(sides.pop())
        elif step.name == "Normalize":
            lacking = [key for key in ("mean", "std") if key not in step.arguments]
            if lacking:
                raise ModelError(
                    f"{folder / CONFIG}: Normalize states no {' and no '.join(lacking)}; expected "
                    "three numbers of each."
                )
            mean, std = tuple(step.arguments["mean"]), tuple(step.arguments["std"])
    return mean, std, resize


def _fill(module: torch.nn.Module, path: Path) -> None:
    try:
        tensors = load(path.read_bytes())
    except SafetensorError as error:
        raise ModelError(f"{path} is not a safetensors file: {error}.") from error
    try:
        module.load_state_dict({f"network.{k}": v for k, v in tensors.items()})
    except RuntimeError as error:
        raise ModelError(f"{path} does not fit the architecture: {error}") from error


def _tile_network(
    model: Model[Any], package: str | Path
) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Return the network that classifies a tile, and its tensors by the architecture's names."""
    if model.config.stain_normalization != "none":
        raise ModelError(
            f"{package} normalises stains, which a zoo folder cannot say: it would give other "
            "answers there. Train one without stain normalisation."
        )
    if model.family == "wsinfer":
        state = {} if isinstance(model.module, Script) else model.module.state_dict()
        return model.module, {k.removeprefix("network."): v.contiguous() for k, v in state.items()}
    if model.family == "mil" and model.config.pooling == "top1":
        if model.config.bag_dim:
            raise ModelError(
                f"{package} was trained on feature vectors made elsewhere: it has no network that "
                "sees tiles."
            )
        state = model.module.state_dict()
        two = len(model.classes) == 2
        network = TwoLogits(model.module) if two else model.module
        if not model.config.backbone.startswith("resnet") or model.config.orientations > 1:
            return network, {}  # no public network computes the same
        names = {k: k.removeprefix("features.trunk.").replace("head.", "fc.") for k in state}
        if two:
            state |= {k: F.pad(state[k], (0,) * (2 * state[k].dim() - 2) + (1, 0)) for k in _HEAD}
        return network, {names[k]: v.contiguous() for k, v in state.items()}
    raise ModelError(
        f"{package} is a {model.family} model; the zoo holds patch classifiers: wsinfer, or mil "
        "with pooling top1."
    )
