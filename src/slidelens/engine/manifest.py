"""``model.json``: what a model package says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from slidelens.errors import ModelError

__all__ = [
    "MANIFEST",
    "PARTS",
    "WEIGHTS",
    "Manifest",
    "Normalisation",
    "first_fault",
    "read_manifest",
]

MANIFEST, WEIGHTS = "model.json", "weights.safetensors"
PARTS = {MANIFEST, WEIGHTS, "golden.safetensors", "README.md", "SHA256SUMS"}
"""All that a package may hold."""
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # it becomes a folder of results
_RGB = tuple[float, float, float]


class Normalisation(BaseModel):
    """Mean and standard deviation of RGB in 0..1, subtracted and divided before the network."""

    model_config = ConfigDict(frozen=True, extra="allow")

    mean: _RGB = (0.485, 0.456, 0.406)
    std: _RGB = (0.229, 0.224, 0.225)


class Manifest(BaseModel):
    """``model.json``. Keys that this version does not know are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")

    schema_version: int = 1
    name: str = Field(pattern=_NAME)
    family: str
    config: dict[str, Any]
    classes: tuple[str, ...] = Field(min_length=1)
    mpp: float = Field(gt=0, description="resolution that the network sees, µm/px")
    tile_size: int | None = Field(None, gt=0, description="side of its tiles, px at mpp")
    normalisation: Normalisation = Normalisation()
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    threshold: float | None = Field(None, ge=0, le=1, description="operating point")
    training_data: Any = None
    metrics: dict[str, Any] = {}
    licence: str | None = None
    intended_use: str | None = None
    created_with: dict[str, Any] = {}


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
    except FileNotFoundError as error:
        raise ModelError(
            f"{folder} is not a model package: it has no {MANIFEST}. "
            f"A package is a folder with {MANIFEST} and {WEIGHTS}."
        ) from error
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}.") from error
    except ValidationError as error:
        raise ModelError(f"{path} is not a valid manifest: {first_fault(error)}.") from error


def first_fault(error: ValidationError) -> str:
    """Name the first field that is wrong, and why."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the file"
    return f"{where}: {first['msg']}"
