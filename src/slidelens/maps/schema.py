"""The layout of ``result.json`` (schema version 1).

Readers need only ``slide.id``, ``model.name`` and ``probabilities``; every other key may be absent
and unknown keys are ignored.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePath, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from slidelens.errors import NewerResultError, ResultError
from slidelens.faults import first_fault
from slidelens.geometry import Mpp, Size
from slidelens.maps.map import Kind
from slidelens.maps.run_settings import RunSettings

__all__ = ["SCHEMA_VERSION", "MapEntry", "ModelInfo", "ResultFile", "SlideInfo", "read_result_file"]

SCHEMA_VERSION = 1

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class SlideInfo(_Part):
    """The slide that a result belongs to; ``mpp`` is one number or x and y, in µm/px.

    ``fingerprint`` tells its content from that of another file of its name; ``bounds`` (x, y,
    width, height in level-0 px) is the part that was scanned, where that is not all.
    """

    id: str = Field(min_length=1)
    path: str | None = None
    width: int | None = Field(None, gt=0)
    height: int | None = Field(None, gt=0)
    mpp: _Positive | tuple[_Positive, _Positive] | None = None
    mpp_source: str | None = None
    fingerprint: str | None = None
    bounds: tuple[float, float, float, float] | None = None

    @field_validator("id")
    @classmethod
    def _names_a_file(cls, text: str) -> str:
        if text in {".", ".."} or "\0" in text or PurePath(text).name != text:
            raise ValueError("must be fit for the name of a file, which exports give it")
        return text

    @property
    def size(self) -> Size | None:
        """Level-0 width and height, if known."""
        if self.width is None or self.height is None:
            return None
        return Size(self.width, self.height)

    @property
    def resolution(self) -> Mpp | None:
        """µm/px along x and y, if known."""
        return None if self.mpp is None else Mpp.of(self.mpp)


class ModelInfo(_Part):
    """The model that a result was made with; ``threshold`` is its stored operating point.

    ``learnt_from`` is the split in which the slide was when the model was trained, if it was.
    """

    name: str = Field(min_length=1)
    family: str | None = None
    sha256: str | None = None
    threshold: _Probability | None = None
    learnt_from: Literal["train", "tune"] | None = None


class MapEntry(_Part):
    """One map; ``path`` is relative to the result folder, ``mpp`` the side of a cell in µm."""

    name: str = Field(min_length=1)
    kind: Kind
    path: str
    mpp: _Positive | None = None

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        parts = PurePosixPath(path).parts
        if not parts or ".." in parts or path.startswith("/") or "\\" in path:
            raise ValueError("must lie inside the result folder")
        return path


class ResultFile(_Part):
    """The whole file; ``files`` are the sizes in bytes of what lies beside it, by name."""

    schema_version: Literal[1] = 1
    slide: SlideInfo
    model: ModelInfo
    probabilities: dict[str, _Probability] = Field(min_length=1)
    maps: tuple[MapEntry, ...] = ()
    timings: dict[str, float] = {}
    software: dict[str, str] = {}
    settings: RunSettings | None = None
    settings_sha256: str | None = None
    files: dict[str, int] | None = None

    @field_validator("settings", "files", mode="wrap")
    @classmethod
    def _ours(cls, given: Any, read: ValidatorFunctionWrapHandler) -> Any:
        """Ignore what is not in our format: other writers may have a key of this name."""
        try:
            return read(given)
        except ValidationError:
            return None


def read_result_file(path: Path) -> ResultFile:
    """Read and check a ``result.json``.

    Raises
    ------
    NewerResultError
        A file of a newer slidelens.
    ResultError
        The file is missing, not JSON, or not of this layout; names the file and the key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ResultError(
            f"{path}: no such file; expected a result folder written by `slidelens predict`."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"{path}: cannot be read ({error}).") from error
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ResultError(f"{path}: not JSON ({error}). Run the prediction again.") from error
    except RecursionError as error:
        raise ResultError(f"{path}: not a result file (nested too deeply).") from error
    if not isinstance(content, dict):
        raise ResultError(f"{path}: holds a {type(content).__name__}, expected an object.")
    version = content.get("schema_version", SCHEMA_VERSION)
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise NewerResultError(
            f"{path}: was written by a newer slidelens (schema_version {version}; this one reads "
            f"{SCHEMA_VERSION}). Update slidelens to read it, or predict into another --out."
        )
    try:
        return ResultFile.model_validate(content)
    except ValidationError as error:
        fault = first_fault(error)
        raise ResultError(f"{path}: key {fault.where!r}: {fault.why}.") from error
