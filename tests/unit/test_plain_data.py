"""YAML and JSON of runs that others made."""

import time

import pytest
import yaml
from omegaconf import OmegaConf
from report_runs import YAML_BOMB

from verl_gsd.plain_data import parse_json, parse_yaml, read_yaml

UNFITTING = ["!!bool x", "!!int ''", "!!int _", "!!float ''", "!!timestamp x"]


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
        ("a: !!int 0x", "base 16"),
        ("a: !!float '-'", "convert string to float"),
        ("a: 0001-01-01T00:00:00+99:99", "timedelta"),
        ("a: 0x" + "f" * 20_000, "more than 64 bits"),
        *((f"a: {value}", "does not fit its tag") for value in UNFITTING),
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


@pytest.mark.parametrize("value", ["1:{}", "!!int '1:{}'", "!!float '1:{}'", "1:{}.5", "-1:{}"])
def test_a_number_to_the_base_60_is_a_text(value):
    """PyYAML takes a time for it that grows with the square of its length."""
    assert parse_yaml(f"a: {value.format('10')}".encode())["a"] in ("1:10", "-1:10", "1:10.5")
    begin = time.process_time()
    parse_yaml(f"a: {value.format(':'.join(['00'] * 600_000))}".encode())
    assert time.process_time() - begin < 10


def test_numbers_as_keys_have_no_common_hash():
    """Multiples of this number have the hash 0, and a dict with many of them takes endless time."""
    text = "\n".join(f"{number * (2**61 - 1)}: 1" for number in range(1, 60_000))
    with pytest.raises(ValueError, match="more than 64 bits"):
        parse_yaml(text.encode())


def test_what_our_own_writer_wrote_is_read():
    values = {
        "a": [1, -1, 0, 2**63 - 1, 1e-6, 1e300, float("inf"), True, None, "1:10", "0x1f", "1e-6", "2001-01-01", ""]
    }
    assert parse_yaml(OmegaConf.to_yaml(OmegaConf.create(values)).encode()) == values
    assert parse_yaml(yaml.safe_dump(values).encode()) == values


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000 + "1" + "}" * 200_000, "9" * 5000, "{"])
def test_json_that_cannot_be_parsed_is_a_value_error(text):
    with pytest.raises(ValueError):
        parse_json(text)
