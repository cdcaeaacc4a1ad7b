"""Docstrings: every public name has one; those of the reference give shapes and errors too."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import importlib
import inspect
import pkgutil
import re
import textwrap
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import slidelens
from slidelens import errors
from slidelens.engine.evaluate import Evaluation
from slidelens.geometry import Affine
from slidelens.maps.map import Map
from slidelens.tiling.grid import GridSpec, make_grid
from slidelens.tiling.tissue import TissueMask

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
REFERENCE = re.findall(r"^::: (\S+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
MODULES = [
    found.name
    for found in pkgutil.walk_packages(slidelens.__path__, "slidelens.")
    if not re.search(r"__main__|testing\.conformance$", found.name)  # tests: their names say it
]
SHAPE = re.compile(r"\(\w*[^)]*,|\bshapes?\b|scalar")
"""A shape such as ``(N, C)`` or ``(n,)``, or a word that says it."""


def module_of(name: str):
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:  # an entry of the reference may be a name in a module
        return importlib.import_module(name.rpartition(".")[0])


def members(module):
    """Public functions, classes and methods that a module defines, by name."""
    for name in getattr(module, "__all__", ()):
        thing = getattr(module, name)
        if not (inspect.isfunction(thing) or inspect.isclass(thing)):
            continue
        if thing.__module__ != module.__name__:
            continue
        yield name, thing
        for key, member in vars(thing).items() if inspect.isclass(thing) else ():
            member = getattr(member, "__func__", getattr(member, "fget", None) or member)
            if not key.startswith("_") and inspect.isfunction(member):
                yield f"{name}.{key}", member


def raised(function) -> set[str]:
    """Names of the errors that a function raises, itself or by its module's private helpers."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc]
    names = {ast.unparse(one.func if isinstance(one, ast.Call) else one) for one in calls}
    handled = [node.type for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
    caught = {
        ast.unparse(one) for kinds in handled if kinds for one in getattr(kinds, "elts", [kinds])
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("_"):
            helper = function.__globals__.get(ast.unparse(node.func))
            if inspect.isfunction(helper) and helper is not function:
                names |= {one for one in raised(helper) if not said_by(one, caught)}
    return {name for name in names if name.endswith("Error") and name != "NotImplementedError"}


def said_by(error: str, kinds: set[str]) -> bool:
    """Whether an error is one of some kinds, or inherits from one."""
    return any(said(error, kind) for kind in kinds)


def said(error: str, doc: str) -> bool:
    """Whether a docstring names an error or what it inherits from."""
    kind = getattr(errors, error, None) or getattr(builtins, error, None)
    known = {error} if kind is None else {one.__name__ for one in kind.__mro__}
    return any(name in doc for name in known)


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_a_docstring(name):
    module = module_of(name)
    assert inspect.getdoc(module), f"{name} has none"
    lacking = [label for label, thing in members(module) if not inspect.getdoc(thing)]
    assert not lacking


@pytest.mark.parametrize("name", REFERENCE)
def test_the_reference_gives_shapes_and_errors(name):
    for label, thing in members(module_of(name)):
        if not inspect.isfunction(thing) or "conformance" in name:
            continue
        doc = inspect.getdoc(thing) or ""
        silent = [error for error in raised(thing) if not said(error, doc)]
        assert not silent, f"{label} raises {silent} and does not say so"
        arrays = [
            key
            for key, kind in thing.__annotations__.items()
            if re.search(r"NDArray|Tensor\b", str(kind)) and "Callable" not in str(kind)
        ]
        assert not arrays or SHAPE.search(doc), f"{label} says no shape of {arrays}"


def stands_in(name: str, doc: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", doc) is not None


def field_names(kind) -> list[str]:
    """Public fields of a dataclass or a named tuple."""
    names = getattr(kind, "_fields", ())
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
    return [name for name in names if not name.startswith("_")]


def documented_below(kind) -> set[str]:
    """Fields with a docstring of their own, below them."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body
    pairs = [(one, below) for one, below in pairwise(body) if isinstance(one, ast.AnnAssign)]
    return {
        ast.unparse(one.target)
        for one, below in pairs
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }


def arguments(function) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


def constructor(kind):
    """What makes a class's objects, where the class wrote it itself."""
    own = vars(kind).get("__init__")
    plain = inspect.isfunction(own) and own.__module__ == kind.__module__
    return own if plain and not dataclasses.is_dataclass(kind) else None


REFERS = re.compile(r"same arguments|Takes the arguments of")
"""Says where the arguments are told."""
MANY = 3
"""Arguments from which on each must be named; one or two are told by name and sentence."""


@pytest.mark.parametrize("name", REFERENCE)
def test_the_reference_names_every_field_and_argument(name):
    for label, thing in members(module_of(name)):
        if "conformance" in name:
            continue
        doc = inspect.getdoc(thing) or ""
        if inspect.isclass(thing):
            wanted = set(field_names(thing)) - documented_below(thing)
            make = constructor(thing)
            wanted |= set(arguments(make)) if make and not REFERS.search(doc) else set()
        else:
            given = arguments(thing)
            wanted = set(given) if len(given) >= MANY and not REFERS.search(doc) else set()
        assert not [word for word in wanted if not stands_in(word, doc)], f"{label} says nothing of"


PLACES = {"box", "boxes", "size", "tile", "tile_size", "overlap", "region"}


@pytest.mark.parametrize("name", REFERENCE)
def test_the_reference_gives_units(name):
    for label, thing in members(module_of(name)):
        if not inspect.isfunction(thing):
            continue
        doc, given = inspect.getdoc(thing) or "", set(arguments(thing))
        if "mpp" in given:
            assert "µm" in doc, f"{label} says no unit of mpp"
        if given & PLACES or given >= {"x", "y", "w", "h"}:
            assert re.search(r"px|µm|mm|pixel", doc), f"{label} says no unit of its places"


def test_the_reference_holds_what_import_slidelens_brings():
    homes = {f"slidelens.{home}" for home in slidelens._HOME.values()}
    names = {"open.open_slide", "base.Slide", "array.from_array"}  # shown, and not their modules
    homes -= {f"slidelens.slide.{name.partition('.')[0]}" for name in names}
    assert homes <= set(REFERENCE)
    assert {f"slidelens.slide.{name}" for name in names} <= set(REFERENCE)


def test_what_import_slidelens_brings_is_there():
    assert set(slidelens._HOME) | {"__version__"} == set(slidelens.__all__)
    for name in slidelens.__all__:
        assert getattr(slidelens, name) is not None


GIVEN = re.compile(r"sniff$|closed$|unreadable$|slide_id$|trial_export$")
"""What SlideLens calls itself, with the path that it has made."""


@pytest.mark.parametrize("name", REFERENCE)
def test_paths_may_be_text(name):
    for label, thing in members(module_of(name)):
        if inspect.isfunction(thing) and "conformance" not in name and not GIVEN.search(label):
            kinds = {key: str(kind) for key, kind in thing.__annotations__.items()}
            kinds.pop("return", None)
            assert not [k for k, kind in kinds.items() if kind in ("Path", "Path | None")], label


def test_what_a_notebook_shows_of_an_object_is_a_line():
    slide = slidelens.from_array(np.full((64, 96, 3), (200, 120, 160), np.uint8), mpp=1.0, name="s")
    tissue = TissueMask(np.arange(24).reshape(4, 6) < 12, Affine(16, 16))
    grid = make_grid(slide.size, slide.require_mpp(), GridSpec(32, 1.0, min_tissue=0))
    values = np.zeros((2, 4, 6))
    source = Map.from_array("p", "probability", ["a", "b"], values, Affine(16, 16), slide.mpp)
    assert repr(slide) == "<Slide s: 96 x 64 px, 1 µm/px, 1 levels, array>"
    assert repr(tissue) == "<TissueMask: 6 x 4 cells, 50% tissue, method auto>"
    assert repr(grid) == "<Grid: 6 tiles of 32 px at 1 µm/px>"
    assert repr(source) == "<Map p: probability, 2 x 4 x 6 cells of 16 µm, a, b>"
    assert "Conv2d" not in repr(slidelens.load_model("demo-mil", "cpu"))
    evaluation = Evaluation(Path("e"), {"models": {}}, "| model |")
    assert "models" not in repr(evaluation)
    assert evaluation._repr_markdown_() == "| model |"
