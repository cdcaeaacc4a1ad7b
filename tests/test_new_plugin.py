"""What ``slidelens new-plugin`` writes; tests/test_developer_tutorial.py goes on with it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from slidelens.engine.scaffold import new_plugin
from slidelens.errors import PluginError, ResultError
from slidelens.families import base, schedule, training


@pytest.mark.parametrize("name", ["Colour", "1st", "mil", "a b", "-x", "class"])
def test_names_that_cannot_be_are_refused(tmp_path, name):
    with pytest.raises(PluginError, match=r"cannot be a plugin's name|is a family"):
        new_plugin(name, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ResultError, match=r"other files \(thesis.txt\)"):
        new_plugin("colour", tmp_path)


def test_no_word_of_the_example_is_left(tmp_path):
    folder = new_plugin("colour", tmp_path / "new")
    text = "".join(path.read_text() for path in folder.rglob("*") if path.is_file())
    assert "example" not in text.lower()
    assert "SLIDELENS_API = 1" in text


def test_fields_state_their_defaults_by_name(tmp_path):
    """A type checker without pydantic's plugin asks for the others as for arguments left out."""
    new_plugin("colour-mil", tmp_path / "p")
    ours = [Path(module.__file__) for module in (base, schedule, training)]
    files = [*tmp_path.rglob("*.py"), *ours]
    calls = [node for file in files for node in ast.walk(ast.parse(file.read_text("utf-8")))]
    fields = [n for n in calls if isinstance(n, ast.Call) and ast.unparse(n.func) == "Field"]
    assert len(fields) > 15
    assert [ast.unparse(field) for field in fields if field.args] == []
