"""No name of ours hides one that Qt calls: PyQt then calls ours, and objects are never deleted."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import textwrap

import pytest
from qtpy.QtCore import QObject

import slidelens.desktop

MODULES = [
    found.name
    for found in pkgutil.walk_packages(slidelens.desktop.__path__, "slidelens.desktop.")
    if not found.name.endswith("__main__")
]
REPLACED = ("Event", "Hint", "Filter")
"""Ends of the names of Qt's methods that are there to be replaced."""


def qt_classes(module):
    for kind in vars(module).values():
        mine = inspect.isclass(kind) and kind.__module__ == module.__name__
        if mine and issubclass(kind, QObject):
            yield kind


def assigned(kind) -> set[str]:
    """Names that a class gives to itself or, in its methods, to ``self``."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    targets = [t for node in ast.walk(tree) if isinstance(node, ast.Assign) for t in node.targets]
    targets += [node.target for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)]
    on_self = {
        t.attr for t in targets if isinstance(t, ast.Attribute) and ast.unparse(t.value) == "self"
    }
    return on_self | {name for name in vars(kind) if name != "staticMetaObject"}


@pytest.mark.parametrize("name", MODULES)
def test_nothing_hides_a_method_of_qt(name):
    for kind in qt_classes(importlib.import_module(name)):
        base = next(b for b in kind.__mro__[1:] if b.__module__.startswith(("PySide", "PyQt")))
        hidden = {one for one in assigned(kind) if not one.startswith("_") and hasattr(base, one)}
        hidden = {one for one in hidden if not one.endswith(REPLACED)}
        assert not hidden, f"{kind.__name__} hides {hidden}"
