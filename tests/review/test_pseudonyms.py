"""Names of slides in reports: the same each time, and none that is another slide's id."""

from slidelens.review.pseudonyms import slide_pseudonyms


def test_the_same_slides_have_the_same_names_in_no_order_of_theirs():
    ids = [f"case{n}" for n in range(40)]
    names = slide_pseudonyms(ids)
    assert names == slide_pseudonyms(reversed(ids))
    assert sorted(names.values()) == [f"S-{n:03}" for n in range(1, 41)]
    assert [names[one] for one in ids] != sorted(names.values())


def test_no_name_may_be_the_id_of_a_slide():
    ids = ["S-001", "s-002", "SS-1", "x"]
    names = slide_pseudonyms(ids)
    assert sorted(names.values()) == [f"SSS-{n:03}" for n in range(1, 5)]
