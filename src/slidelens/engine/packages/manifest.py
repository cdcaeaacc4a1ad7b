"""``model.json``, the manifest of a model package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

import slidelens
from slidelens.engine.mistaken_folder import what_it_is
from slidelens.errors import ModelError, listed
from slidelens.faults import first_fault
from slidelens.tiling.tissue import TissueSettings

if TYPE_CHECKING:
    from slidelens.families.base import Model

__all__ = [
    "MANIFEST",
    "PARTS",
    "WEIGHTS",
    "Manifest",
    "Normalisation",
    "manifest_of",
    "read_manifest",
]

MANIFEST, WEIGHTS = "model.json", "weights.safetensors"
PARTS = {MANIFEST, WEIGHTS, "golden.safetensors", "README.md", "SHA256SUMS"}
"""All that a package may hold."""
_VERSION = 1
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # it becomes a folder of results
_Share = Annotated[float, Field(ge=0, le=1)]
_Spread = Annotated[float, Field(gt=0, le=10)]
"""Of values in 0..1: a larger one was meant for 0..255, and leaves no picture."""


def _readable(version: int) -> int:
    if version > _VERSION:
        raise ValueError(f"{version} is newer than this slidelens reads ({_VERSION}); update it")
    return version


def _names(classes: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(classes)) < len(classes) or not all(name.strip() for name in classes):
        raise ValueError(f"{list(classes)}: expected names, each once, none of them empty")
    strange = [name for name in classes if not name.isprintable()]
    if strange:  # they would rewrite the terminal, or break the lines of a table
        raise ValueError(f"{strange}: expected names of printable letters, on one line")
    return classes


class Normalisation(BaseModel):
    """Mean and standard deviation of RGB in 0..1, subtracted and divided before the network."""

    model_config = ConfigDict(frozen=True, extra="allow")

    mean: tuple[_Share, _Share, _Share] = (0.485, 0.456, 0.406)
    std: tuple[_Spread, _Spread, _Spread] = (0.229, 0.224, 0.225)


class Manifest(BaseModel):
    """``model.json``. Keys that this version does not know are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")

    schema_version: Annotated[int, AfterValidator(_readable)] = _VERSION
    name: str = Field(pattern=_NAME)
    family: str
    config: dict[str, Any]
    classes: Annotated[tuple[str, ...], AfterValidator(_names)] = Field(min_length=1)
    mpp: float = Field(
        gt=0, allow_inf_nan=False, description="resolution that the network sees, µm/px"
    )
    tile_size: int | None = Field(None, gt=0, description="side of its tiles, px at mpp")
    normalisation: Normalisation = Normalisation()
    encoder: dict[str, Any] | None = Field(
        None, description="what its plugin builds the encoder from, where the name does not say"
    )
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    threshold: float | None = Field(None, ge=0, le=1, description="operating point")
    threshold_rule: str | None = Field(None, description="how that was chosen")
    tissue: TissueSettings | None = Field(None, description="how its training found tissue")
    training_data: Any = None
    metrics: dict[str, Any] = {}
    licence: str | None = None
    intended_use: str | None = None
    created_with: dict[str, Any] = {}

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """Results, lists and cards tell the keys; the network is made by ``config``."""
        for key, stated, field in (("mpp", self.mpp, "mpp"), ("tile_size", self.tile_size, "tile")):
            meant = self.config.get(field)
            if None not in (stated, meant) and stated != meant:
                raise ValueError(f"{key} is {stated}, but config states {field} {meant}")
        return self


def manifest_of(model: Model[Any], digest: str) -> Manifest:
    """Return what a package says of a model.

    Parameters
    ----------
    model
        What is packaged.
    digest
        SHA-256 of its weights' file, in hexadecimal digits.

    Raises
    ------
    ModelError
        No manifest can hold it; names the first field that is at fault.
    """
    import torch

    from slidelens.engine.contract import plugins_of
    from slidelens.nn.encoders import description_of

    made_with = {"slidelens": slidelens.__version__, "torch": torch.__version__}
    config = model.config.model_dump(mode="json")
    card = {k: v for k, v in model.card.items() if k not in ("weights_sha256", "created_with")}
    fields = {
        "mpp": config.get("mpp"),
        "tile_size": config.get("tile") or None,  # 0: no fixed side
        **{k: v for k, v in card.items() if v is not None},
        "name": model.name,
        "family": model.family,
        "config": config,
        "classes": model.classes,
        "normalisation": {"mean": model.mean, "std": model.std},
        "encoder": description_of(model.module),
        "weights_sha256": digest,
        "created_with": made_with | plugins_of(model.family, model.config),
    }
    try:
        return Manifest.model_validate(fields)
    except ValidationError as error:
        raise ModelError(f"cannot package model {model.name!r}: {first_fault(error)}.") from error


def read_manifest(folder: str | Path) -> Manifest:
    """Read and check ``model.json`` of a package.

    Raises
    ------
    ModelError
        A missing or malformed file, naming the field.
    """
    path = Path(folder) / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelError(f"{folder} is not a model package: {_lack(Path(folder))}") from error
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}.") from error
    except ValidationError as error:
        raise ModelError(f"{path} is not a valid manifest: {first_fault(error)}.") from error


def _lack(path: Path) -> str:
    """Say why a path is no package, and which one may be meant."""
    if path.is_file():
        there = (path.parent / MANIFEST).is_file()
        return "it is a file" + (f"; give its folder, {path.parent}." if there else ".")
    inside = [str(found.parent) for found in sorted(path.glob(f"*/{MANIFEST}"))]
    if inside:  # of a cross-validation, say
        return f"it has no {MANIFEST}, but packages in it: {listed(inside)}. Give one of them."
    if (path.parent / MANIFEST).is_file():  # such as its folder `training`
        return f"give {path.parent}."
    lacks = f"it has no {MANIFEST}. A package is a folder with {MANIFEST} and {WEIGHTS}."
    return what_it_is(path) or lacks
