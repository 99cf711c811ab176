"""Which settings of a saved state a resume keeps. Nobody signs a checkpoint, so it must not choose servers."""

import json

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from verl_gsd.run import kept_settings
from verl_gsd.run.compose import parse_line


@pytest.fixture
def kept(monkeypatch):
    """(section, settings that the state names) -> the words that a resume adds."""

    def words(section, **of_section):
        monkeypatch.setattr(kept_settings, "saved_settings", lambda checkpoint: {section: of_section})
        line = parse_line(["algo=dagrpo", "task=arithmetic", "hardware=cpu"])
        return kept_settings.settings_of_state(line, "unused")

    return words


def test_numbers_words_and_lists_of_numbers_are_kept(kept):
    assert kept("algorithm.gsd.dagrpo", delta=0.3, mask="pairs-2", pair=[1, 2.5]) == [
        "++algorithm.gsd.dagrpo.delta=0.3",
        '++algorithm.gsd.dagrpo.mask="pairs-2"',
        "++algorithm.gsd.dagrpo.pair=[1, 2.5]",
    ]


@pytest.mark.parametrize(
    ("section", "of_section"),
    [
        ("algorithm.gsd.dagrpo.judge", {"base_url": "evil"}),
        ("algorithm.gsd.dagrpo.judge", {"api_key_env": "AWS_SECRET_ACCESS_KEY"}),
        ("algorithm.gsd.dagrpo", {"x": "${oc.env:AWS_SECRET_ACCESS_KEY}"}),
        ("algorithm.gsd.dagrpo", {"x": "http://evil.example/v1"}),
        ("algorithm.gsd.dagrpo", {"x": {"_target_": "os.system"}}),
        ("algorithm.gsd.dagrpo", {"cache_path": "a"}),
        ("algorithm.gsd.dagrpo", {"x": ["a"]}),
        ("algorithm.gsd.dagrpo", {"delta=0.5,actor_rollout_ref.hybrid_engine": 1}),
        ("algorithm.gsd.dagrpo", {"a[0]": 1}),
        ("algorithm.gsd.dagrpo", {"a\n++b": 1}),
        ("algorithm.gsd.dagrpo", {"\x1b[31m": 1}),
        ("algorithm.gsd.dagrpo", {"${oc.env:HOME}": 1}),
        ("algorithm.gsd.dagrpo", {"": 1}),
        ("algorithm.gsd.dagrpo", {".": 1}),
        ("algorithm.gsd.dagrpo", {"\u0430": 1}),
        ("algorithm.gsd.dagrpo[", {"delta": 0.5}),
        ("algorithm.gsd.dagrpo=1,x", {"delta": 0.5}),
        ("algorithm.gsd.\x1b]0;", {"delta": 0.5}),
    ],
)
def test_nothing_that_could_name_a_server_a_file_or_a_variable_is_kept(kept, section, of_section):
    assert kept(section, **of_section) == []


@given(st.text(max_size=12) | st.from_regex(r"\A[a-z.=,\[\]{}$\n]{1,12}\Z"), st.integers() | st.text(max_size=5))
def test_a_kept_word_sets_exactly_its_own_key(name, value):
    """Whatever names a state has, Hydra reads the word back as the setting that it was made from."""
    key = f"algorithm.gsd.dagrpo.{name}"
    if kept_settings._is_harmless(key, value):
        override = OverridesParser.create().parse_override(f"++{key}={json.dumps(value)}")
        assert override.is_force_add() and (override.key_or_group, override.value()) == (key, value)
