"""YAML and JSON of runs that others made."""

import pytest
from report_runs import YAML_BOMB

from verl_gsd.plain_data import parse_json, read_yaml


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (YAML_BOMB, r"an alias \(\*a0\) in line 2"),
        ("a: &a {b: *a}", r"an alias \(\*a\)"),
        ("[" * 500 + "]" * 500, "more than 100 levels"),
        ("[" * 200_000, "nesting"),
        ("a: " + "9" * 5000, "4300 digits"),
        ("a: 2020-99-99", "month"),
        ("a: [", "did not find expected"),
        ("a: \x00", "control characters|special characters"),
    ],
)
def test_damaged_or_hostile_yaml_is_an_error_that_names_the_file(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"(?s)config\.yaml: cannot be read: .*({message})"):
        read_yaml(path, within=tmp_path)


def test_ordinary_yaml_is_read_and_a_missing_file_is_none(tmp_path):
    (tmp_path / "config.yaml").write_text("a: [1, {b: null}]\nc: ['*d', '&e']\n")
    assert read_yaml(tmp_path / "config.yaml", within=tmp_path) == {"a": [1, {"b": None}], "c": ["*d", "&e"]}
    assert read_yaml(tmp_path / "none.yaml", within=tmp_path) is None
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    with pytest.raises(ValueError, match=r"latin\.yaml: cannot be read"):
        read_yaml(tmp_path / "latin.yaml", within=tmp_path)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000 + "1" + "}" * 200_000, "9" * 5000, "{"])
def test_json_that_cannot_be_parsed_is_a_value_error(text):
    with pytest.raises(ValueError):
        parse_json(text)
