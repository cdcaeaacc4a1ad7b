"""A model of each family starts from one that has learnt other classes."""

from fnmatch import fnmatchcase
from itertools import product

import pytest
import torch

from slidelens.engine.contract import build_network
from slidelens.engine.package import family_of, load_model
from slidelens.engine.training.start import task_of
from slidelens.families.base import Model
from slidelens.families.training import renewed


def started(base, classes):
    """A new model of these classes that inherits from ``base``."""
    torch.manual_seed(7)
    network = build_network(family_of(base.family), base.config, len(classes))
    model = Model("new", base.family, base.config, classes, network, torch.device("cpu"))
    task_of(base.family).inherit(model, base)
    return model.module.state_dict()


BUNDLED = ["demo-mil", "demo-abmil", "demo-local", "demo-streaming", "demo-magnet"]
TWO, THREE = ("stroma", "gland"), ("benign", "low", "high")


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        *product(BUNDLED, (TWO, THREE)),
        ("demo-multistage", TWO),  # which knows no more than two
    ],
)
def test_the_encoder_is_kept_and_layers_of_classes_begin_anew(name, classes):
    base = load_model(name, "cpu")
    task = task_of(base.family)
    had, has = base.module.state_dict(), started(base, classes)
    of_classes = {k for k in has if any(fnmatchcase(k, pattern) for pattern in task.per_class)}
    kept = has.keys() - of_classes
    assert kept
    assert all(torch.equal(had[k], has[k]) for k in kept)
    assert any("features" in k for k in kept)
    learnt = {k for k in of_classes if "weight" in k and k in had and had[k].unique().numel() > 1}
    assert learnt
    assert not [k for k in learnt if had[k].shape == has[k].shape and torch.equal(had[k], has[k])]
    if len(classes) == 3:
        changed = {k for k in had if had[k].shape != has[k].shape}
        assert changed
        assert changed <= of_classes


@pytest.mark.parametrize("name", ["demo-mil", "demo-local"])
def test_the_same_classes_keep_every_weight(name):
    base = load_model(name, "cpu")
    had, has = base.module.state_dict(), started(base, base.classes)
    assert all(torch.equal(had[k], has[k]) for k in had)


def test_a_family_that_names_no_such_layer_is_told():
    with pytest.raises(RuntimeError, match=r"none of its weights is named head\.\*"):
        renewed({"a": torch.zeros(1)}, {"a": torch.ones(1)}, ("head.*",))
