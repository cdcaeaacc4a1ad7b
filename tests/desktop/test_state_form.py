from __future__ import annotations

from typing import Literal

import pytest
from pydantic import BaseModel, Field

from slidelens.desktop.state.cards import RESEARCH_ONLY, cards_of, families_of
from slidelens.desktop.state.form import changed, fields_of, given_text
from slidelens.desktop.worker.catalogue import catalogue


class Config(BaseModel):
    size: int = Field(3, gt=0, le=9, description="side in px")
    share: float = Field(0.5, gt=0, lt=1)
    kind: Literal["a", "b"] = "a"
    flip: bool = True
    limit: int | None = None
    names: tuple[str, ...] = ()
    note: str = "x"
    network: Literal["own"] | Literal["resnet18", "resnet34"] = "resnet18"
    either: int | str = 3


def described() -> list[dict]:
    schema = Config.model_json_schema()["properties"]
    return [{**field, "name": n, "value": field.get("default")} for n, field in schema.items()]


def test_controls_and_bounds_follow_from_the_configuration():
    form = {field.name: field for field in fields_of(described())}
    assert list(form) == ["size", "share", "kind", "flip", "limit", "note", "network"]
    assert (form["size"].control, form["size"].low, form["size"].high) == ("whole", 1, 9)
    assert form["size"].help == "side in px"
    assert form["share"].control == "number"
    assert 0 < form["share"].low < 1e-5
    assert 1 - 1e-5 < form["share"].high < 1
    assert (form["kind"].control, form["kind"].choices) == ("choice", ("a", "b"))
    assert form["flip"].control == "switch"
    assert (form["limit"].control, form["limit"].optional) == ("text", True)
    assert form["note"].control == "text"
    assert form["network"].choices == ("own", "resnet18", "resnet34")


def test_only_what_was_changed_is_given():
    form = fields_of(described())
    values = {field.name: field.value for field in form}
    assert changed(form, values) == {}
    assert changed(form, values | {"size": 4, "flip": False}) == {"size": 4, "flip": False}


@pytest.mark.parametrize(("text", "value"), [("7", 7), ("", None), (" fast ", "fast")])
def test_text_of_a_field(text, value):
    limit = next(field for field in fields_of(described()) if field.name == "limit")
    assert given_text(limit, text) == value


def test_cards_say_what_for_and_never_for_diagnosis(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.json").write_text("{}")
    content = catalogue([tmp_path / "broken"])
    cards = cards_of(content["models"])
    assert [bool(card.error) for card in cards] == sorted(bool(card.error) for card in cards)
    demo = next(card for card in cards if card.name == "demo-mil")
    assert demo.classes == ("normal", "tumor")
    for text in ("10x", "112 px", "18 normal, 18 tumor", "AUC 1.000", "Apache-2.0", RESEARCH_ONLY):
        assert text in demo.html
    rule = "maximum balanced accuracy on the tuning split"
    (chosen,) = cards_of([content["models"][0] | {"threshold": 0.25, "threshold_rule": rule}])
    assert "0.25 on. How it was chosen: maximum balanced accuracy (the mean of" in chosen.html
    broken = next(card for card in cards if card.name == "broken")
    assert "Cannot be run" in broken.html
    assert "name: must be given" in broken.error
    families = {family.name: family for family in families_of(content["families"])}
    assert "default" in families["mil"].presets
    assert {field.name for field in families["mil"].training} >= {"patience", "optimizer"}
