"""Names of slides in reports: the same each time, and none that is another slide's id."""

from __future__ import annotations

from types import SimpleNamespace

from slidelens.engine.evaluation.memory import numbered
from slidelens.review.pseudonyms import slide_pseudonyms


def saved(ids, numbers=None):
    return SimpleNamespace(labels=dict.fromkeys(ids), numbers=numbers or numbered(ids))


def test_the_same_slides_have_the_same_names_in_no_order_of_theirs():
    ids = [f"case{n}" for n in range(40)]
    names = slide_pseudonyms(saved(ids))
    assert names == slide_pseudonyms(saved(ids[::-1]))
    assert sorted(names.values()) == [f"S-{n:03}" for n in range(1, 41)]
    assert [names[one] for one in ids] != sorted(names.values())


def test_no_name_may_be_the_id_of_a_slide():
    ids = ["S-001", "s-002", "SS-1", "x"]
    names = slide_pseudonyms(saved(ids))
    assert sorted(names.values()) == [f"SSS-{n:03}" for n in range(1, 5)]


def test_numbers_stay_when_slides_come_and_go():
    before = numbered(["a", "b", "c"])
    after = numbered(["b", "c", "d", "e"], before)
    assert {name: after[name] for name in "abc"} == before
    assert sorted(after[name] for name in "de") == [4, 5]
