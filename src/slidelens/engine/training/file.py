"""A training in a YAML file, which ``train --config`` reads and every training run writes.

Keys are the options of ``slidelens train`` (``slides``, ``labels``, ``seed``, ...) and the fields
of the family's and the training's configuration, side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from slidelens.engine.tissue_asked import tissue_asked
from slidelens.errors import ModelError
from slidelens.faults import first_fault
from slidelens.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from slidelens.families.training import TrainConfig

__all__ = [
    "LARGEST_SEED",
    "OPTIONS",
    "read_train_file",
    "train_arguments",
    "without_preset",
    "write_train_file",
]

LARGEST_SEED = 2**32 - 1
"""The largest seed that NumPy and Lightning accept."""

Positive = Annotated[float, Field(gt=0)]


class _Options(BaseModel):
    """The options that a file may set, as on the command line."""

    model_config = ConfigDict(strict=True)

    family: str | None = None
    slides: str | None = None
    labels: str | None = None
    classes: Annotated[list[str], Field(min_length=2)] | None = None
    out: str | None = None
    annotations: str | None = None
    weights: str | None = None
    from_: str | None = Field(None, alias="from")
    preset: str | None = None
    epochs: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0, le=LARGEST_SEED)
    fraction: float | None = Field(None, gt=0, le=1)
    fold: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    folds: int | None = Field(None, ge=2)
    slide_mpp: (
        Positive | Annotated[list[Positive], Field(min_length=2, max_length=2)] | str | None
    ) = None
    slide_tissue: Annotated[
        str | list[str] | dict[str, Any] | None, AfterValidator(tissue_asked)
    ] = None
    device: str | None = None
    devices: int | None = Field(None, ge=1)
    nodes: int | None = Field(None, ge=1)


OPTIONS = tuple(field.alias or name for name, field in _Options.model_fields.items())
"""Keys that are options; all others are fields."""

_KEYWORDS = {
    "family": "family_name",
    "slides": "slides_dir",
    "labels": "labels_csv",
    "from": "from_model",
    "slide_mpp": "mpp",
    "slide_tissue": "tissue",
}
"""Options with another name in the engine."""


def read_train_file(path: Path, family: str | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options and the fields of a YAML (or JSON) file.

    Parameters
    ----------
    family
        The family that the file must be for; ``None`` accepts any, as option ``family``.

    Raises
    ------
    ModelError
        It cannot be read, is no mapping, is for another family, or an option has a wrong type.
    """
    try:
        import yaml
    except ImportError as error:
        raise ModelError(
            f"reading {path} needs PyYAML, which is not installed: pip install 'slidelens[train]'."
        ) from error
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}.") from error
    except yaml.MarkedYAMLError as error:
        mark = error.context_mark or error.problem_mark
        where = "" if mark is None else f" from line {mark.line + 1} on"
        raise ModelError(f"{path} is not YAML{where}: {error.problem or error}.") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ModelError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise ModelError(
            f"{path}: expected a mapping of options and fields, such as 'seed: 0', not "
            f"{type(content).__name__}."
        )
    given = {str(key).replace("-", "_"): value for key, value in content.items()}
    if family is not None and given.get("family", family) != family:
        raise ModelError(
            f"{path} is a training of family {given['family']!r}; run slidelens train "
            f"{given['family']} with it."
        )
    name = given.get("family", family)
    if "tissue" in given and "slide_tissue" not in given and not _has_field(name, "tissue"):
        given["slide_tissue"] = given.pop("tissue")
    options = {key: given.pop(key) for key in OPTIONS if key in given}
    try:
        _Options.model_validate(options)
    except ValidationError as error:
        fault = first_fault(error)
        key = fault.where.partition(".")[0]
        raise ModelError(f"{path}: {key}: {fault.why}, not {options[key]!r}.") from error
    options = {key: value for key, value in options.items() if value is not None}
    if family is not None:
        options.pop("family", None)
    return options, given


def _has_field(family: Any, name: str) -> bool:
    """Return whether a family's models or trainings have a field, such as MagNet's ``tissue``."""
    from slidelens.engine.package import family_of
    from slidelens.engine.training.start import task_of

    if not isinstance(family, str):
        return False
    return any(
        name in kind.model_fields for kind in (family_of(family).config, task_of(family).training)
    )


def without_preset(fields: Mapping[str, Any], training: type[TrainConfig]) -> dict[str, Any]:
    """Return a file's fields without those that a preset decides, where another is named.

    ``training`` is the family's class of training options. Fields that no preset sets are kept.
    """
    decided = {name for values in training.presets.values() for name in values}
    return {name: value for name, value in fields.items() if name not in decided}


def train_arguments(options: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a file's content as keywords of :func:`~slidelens.engine.training.plan.plan_training`.

    A resolution given as text stays text.
    """
    arguments = {_KEYWORDS.get(name, name): value for name, value in options.items()}
    for name in ("fold", "mpp"):
        if isinstance(arguments.get(name), list):
            arguments[name] = tuple(arguments[name])
    return arguments | {"config": dict(fields)}


def write_train_file(path: Path, content: Mapping[str, Any]) -> None:
    """Write options and fields, except those that are ``None``.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    import yaml

    known = {key: value for key, value in content.items() if value is not None}
    write_atomic(path, yaml.safe_dump(known, sort_keys=False, allow_unicode=True))
