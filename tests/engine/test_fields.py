from __future__ import annotations

from typing import Literal

import pytest
import torch
from pydantic import BaseModel, Field, field_validator
from test_predict import WHOLE, picture
from tiny_family import make_model

from slidelens.engine.cohort import predict_cohort
from slidelens.engine.fields import read_value, validated, with_options
from slidelens.engine.predict import predict
from slidelens.errors import ModelError
from slidelens.families.base import FamilyConfig, Model
from slidelens.families.mil import MilConfig
from slidelens.slide.array import from_array


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("0.5", 0.5), ("true", True), ("none", "none"), ("[1]", [1])]
)
def test_text_is_read_as_json_where_it_is(text, value):
    assert read_value(text) == value


def test_an_option_changes_the_run_and_not_the_model(tiny):
    with from_array(picture(), mpp=1.0) as slide:
        plain = predict(slide, tiny, tissue=WHOLE)
        denser = predict(slide, tiny, tissue=WHOLE, options={"overlap": 8})
    assert len(denser.tiles) > 3 * len(plain.tiles)
    assert denser.maps["probability"].mpp == 8
    assert denser.model.sha256 == plain.model.sha256
    assert tiny.config.overlap == 0


def test_a_field_that_weights_depend_on_is_refused(tiny):
    with pytest.raises(ModelError, match=r"tile: not an option .* its options are: overlap, batch"):
        with_options(tiny, {"tile": 32, "overlap": 8})


def test_a_value_that_does_not_fit_is_named(tiny):
    with pytest.raises(ModelError, match=r"overlap: must be a whole number, not 'wide'\."):
        with_options(tiny, {"overlap": "wide"})


def test_a_number_is_text_where_a_field_takes_text():
    class Named(FamilyConfig):
        name: str = ""
        other: str | None = None
        run_fields = frozenset({"name", "other"})

    assert validated(Named, {"name": 1, "other": 0.5}) == Named(name="1", other="0.5")
    model = Model("m", "named", Named(), ("0", "1"), torch.nn.Identity())
    assert with_options(model, {"name": read_value("1")}).config.name == "1"
    with pytest.raises(ModelError, match=r"name: must be text, not \[1\]"):
        validated(Named, {"name": [1]})


def test_values_that_do_not_go_together_are_told_in_one_sentence():
    model = Model("m", "mil", MilConfig(tile=112), ("a", "b"), torch.nn.Identity())
    with pytest.raises(ModelError) as caught:
        with_options(model, {"overlap": 112})
    assert str(caught.value) == "overlap 112 px must be below the tile's 112 px."


def test_a_fields_own_check_is_told_without_pydantics_words():
    class Odd(FamilyConfig):
        number: int

        @field_validator("number")
        @classmethod
        def _odd(cls, number: int) -> int:
            raise ValueError("must be odd.")

    with pytest.raises(ModelError) as caught:
        validated(Odd, {"number": 4})
    assert str(caught.value) == "number: must be odd, not 4."


def test_a_cohort_refuses_options_before_it_runs(tiny, tmp_path):
    slide, out = tmp_path / "x.tif", tmp_path / "out"
    slide.touch()
    with pytest.raises(ModelError, match="colour"):
        predict_cohort([slide], [tiny, make_model("b")], out, options={"colour": 1})
    assert not out.exists()


class Inner(BaseModel, extra="forbid"):
    epochs: int


class Outer(BaseModel):
    share: float = Field(0, le=0.5)
    quick: bool = False
    stages: list[Inner] = Field([])
    names: tuple[str, ...] = Field((), min_length=2, max_length=3)
    network: Literal["a"] | Literal["b"] = "a"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"share": 5}, "share: must be at most 0.5, not 5."),
        ({"share": 0.6}, "share: must be at most 0.5, not 0.6."),
        ({"stages": "x"}, "stages: must be a list, not 'x'."),
        ({"stages": [3]}, "stages.0: must be a mapping of fields to values, not 3."),
        ({"names": 3}, "names: must be a list, not 3."),
        ({"names": ["a"]}, "names: must have 2 or more items, not ['a']."),
        ({"names": ["a", "b", "c", "d"]}, "names: must have 3 or fewer items, not "),
        ({"network": "c"}, "network: must be 'a', not 'c'."),
        ({"quick": "maybe"}, "quick: must be true or false, not 'maybe'."),
        ({"stages": [{}]}, "stages.0.epochs: must be given."),
        ({"stages": [{"epochs": 1, "lr": 2}]}, "stages.0.lr: there is no such field."),
    ],
)
def test_a_fault_is_told_with_the_value_where_that_is_at_fault(values, told):
    with pytest.raises(ModelError) as caught:
        validated(Outer, values)
    assert str(caught.value).startswith(told)
