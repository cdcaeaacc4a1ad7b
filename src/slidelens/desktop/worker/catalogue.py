"""What can be run and trained (models, families, devices), as JSON for the window.

Families bring torch with them, so this is computed in the worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slidelens.engine.package import family_of, find_models
from slidelens.engine.packages.manifest import read_manifest
from slidelens.errors import ModelError, SlideLensError
from slidelens.families import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from pydantic import BaseModel

__all__ = ["catalogue"]


def catalogue(folders: Iterable[Path] = ()) -> dict[str, Any]:
    """Return models, families and devices.

    Parameters
    ----------
    folders
        Model packages in addition to those that a name can mean; missing ones are left out.
    """
    places = {info.path.resolve(): info.error for info in find_models()}
    places |= {f.resolve(): None for f in folders if f.is_dir() and f.resolve() not in places}
    return {
        "models": [_model(folder, error) for folder, error in places.items()],
        "families": list(_families()),
        "devices": list(_devices()),
    }


def _model(folder: Path, error: str | None) -> dict[str, Any]:
    """Describe a package; one that cannot be used states why."""
    facts: dict[str, Any] = {"name": folder.name, "path": str(folder), "error": error}
    try:
        manifest = read_manifest(folder)
        facts |= manifest.model_dump(mode="json")
        if error is None:
            family = family_of(manifest.family)
            facts |= {"title": family.title, "family_about": family.about}
            fields = [n for n in family.config.model_fields if n in family.config.run_fields]
            facts["options"] = _fields(family.config, fields, manifest.config)
    except ModelError as fault:
        facts["error"] = str(fault)
    return facts


def _families() -> Iterator[dict[str, Any]]:
    from slidelens.engine.training.start import task_of

    for name in FAMILIES:
        try:
            family = family_of(name)
            task = None if family.trainer is None else task_of(name)
        except SlideLensError:
            continue  # a broken plugin: `slidelens doctor` reports it, and its models too
        facts = {"name": name, "title": family.title, "about": family.about, "trains": False}
        if task is not None:
            training = task.training
            facts |= {
                "trains": True,
                "annotated": task.annotated,
                "presets": list(training.presets),
                "config": _fields(family.config, family.config.model_fields, {}),
                "training": _fields(training, training.model_fields, {}),
            }
        yield facts


def _fields(
    config: type[BaseModel], names: Iterable[str], values: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Describe fields as JSON schema does, each with its name and value."""
    schema = config.model_json_schema()
    shared = schema.get("$defs", {})
    found = []
    for name in names:
        field = dict(schema["properties"][name])
        reference = field.pop("$ref", "").rpartition("/")[2]
        field = {**shared.get(reference, {}), **field, "name": name}
        field["value"] = values.get(name, field.get("default"))
        found.append(field)
    return found


def _devices() -> Iterator[dict[str, str]]:
    import torch

    from slidelens.engine.device import pick_device

    yield {"name": "auto", "title": f"Automatic ({pick_device('auto')})"}
    yield {"name": "cpu", "title": "Processor (CPU)"}
    for index in range(torch.cuda.device_count()):
        yield {"name": f"cuda:{index}", "title": torch.cuda.get_device_name(index)}
    if torch.backends.mps.is_available():
        yield {"name": "mps", "title": "Apple GPU (MPS)"}
