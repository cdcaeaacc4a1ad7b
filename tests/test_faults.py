"""What is wrong with a configuration or a file of ours is told in our words, whatever it is."""

from __future__ import annotations

import re
from inspect import getmembers, isclass
from types import SimpleNamespace

import pytest
from pydantic import BaseModel, ValidationError

from slidelens.engine.packages.manifest import Manifest
from slidelens.engine.training.file import _Options
from slidelens.engine.training.start import task_of
from slidelens.families import FAMILIES
from slidelens.faults import first_fault
from slidelens.maps import trajectory
from slidelens.maps.run_settings import RunSettings
from slidelens.maps.schema import ResultFile
from slidelens.tiling.tissue import TissueSettings

STAGE = {"epochs": 1, "lr": 1, "head_lr": 1}
ODD = [
    *(None, True, "", "x", "3", "0.5", "9" * 5000, b"\xff", object(), 3, 0, -1, 3.5, -1e9, 1e30),
    *(10**9, 10**400, float("nan"), float("inf"), {}, {"a": 1}, {1: 2}, {"a": {}}, {"name": 3}),
    *([], [1], [[]], [{}], [None], [["x"]], ["a"], [1, 2, 3, 4, 5], ["x"] * 3, list(range(99))),
    *([STAGE | wrong] for wrong in ({"lr": -1}, {"epochs": "x"}, {"more": 1}, {"trains": "x"})),
    *([{"name": "", "kind": "x", "path": "/b"}], {"id": "", "width": 0, "mpp": {}}),
]
PYDANTICS = re.compile(
    "Input|instance|tuple|dictionary|boolean|integer|string|valid|should|required|permitted|"
    "parse|Error|error|Keys"
)
BRANCHES = re.compile(r"\[|\]|constrained|function")


def kinds() -> dict[str, type[BaseModel]]:
    """Return our configurations, and the files that users may write or change."""
    found = [_Options, Manifest, ResultFile, RunSettings, TissueSettings]
    found += [one for _, one in getmembers(trajectory, isclass) if issubclass(one, BaseModel)]
    for name in FAMILIES:
        family = FAMILIES.get(name)
        found += [family.config, *([task_of(name).training] if family.trainer else [])]
    return {kind.__qualname__: kind for kind in found if kind is not BaseModel}


@pytest.mark.parametrize("kind", [pytest.param(kind, id=name) for name, kind in kinds().items()])
def test_every_fault_of_a_field_is_told_in_our_words(kind):
    odd = [{f.alias or n: value} for n, f in kind.model_fields.items() for value in ODD]
    for values in [*odd, *ODD]:
        try:
            kind.model_validate(values)
        except ValidationError as error:
            for one in error.errors():
                fault = first_fault(SimpleNamespace(errors=lambda one=one, **_: [one]))
                words = re.sub("'[^']*'", "", fault.why)
                assert not PYDANTICS.search(words), fault
                assert not BRANCHES.search(fault.where), fault
