"""Dotted keys of nested configs."""

from verl_gsd.dotted_keys import dotted_items, dotted_leaves, nested, value_at

CONFIG = {"a": {"b": 1, "c": {}, "d": [{"e": 2}, 3]}, "f": None}


def test_items_are_sections_and_their_entries_in_order():
    assert [key for key, _ in dotted_items(CONFIG)] == ["a", "a.b", "a.c", "a.d", "f"]
    assert dict(dotted_items(CONFIG))["a"] is CONFIG["a"]


def test_leaves_have_no_entries_and_may_lie_in_lists():
    assert dict(dotted_leaves(CONFIG)) == {"a.b": 1, "a.c": {}, "a.d": [{"e": 2}, 3], "f": None}
    assert dict(dotted_leaves(CONFIG, into_lists=True)) == {"a.b": 1, "a.c": {}, "a.d[0].e": 2, "a.d[1]": 3, "f": None}


def test_a_nested_dict_is_made_of_its_leaves():
    assert nested(dict(dotted_leaves(CONFIG))) == CONFIG
    assert nested({"a": None, "a.b": 1}) == {"a": {"b": 1}}


def test_a_value_is_found_by_its_key_and_a_missing_key_is_none():
    assert value_at(CONFIG, "a.b") == 1 and value_at(CONFIG, "a.c") == {}
    assert value_at(CONFIG, "a.b.x") is None and value_at(CONFIG, "x.b") is None and value_at(None, "a") is None
