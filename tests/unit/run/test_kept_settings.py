"""Which settings of a saved state a resume keeps. Nobody signs a checkpoint, so it must not choose servers."""

import pytest

from verl_gsd.run import kept_settings
from verl_gsd.run.compose import parse_line


@pytest.fixture
def kept(monkeypatch):
    """(section, settings that the state names) -> the words that a resume adds."""

    def words(section, **settings):
        monkeypatch.setattr(kept_settings, "saved_settings", lambda checkpoint: {section: settings})
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
    ("section", "settings"),
    [
        ("algorithm.gsd.dagrpo.judge", {"base_url": "evil"}),
        ("algorithm.gsd.dagrpo.judge", {"api_key_env": "AWS_SECRET_ACCESS_KEY"}),
        ("algorithm.gsd.dagrpo", {"x": "${oc.env:AWS_SECRET_ACCESS_KEY}"}),
        ("algorithm.gsd.dagrpo", {"x": "http://evil.example/v1"}),
        ("algorithm.gsd.dagrpo", {"x": {"_target_": "os.system"}}),
        ("algorithm.gsd.dagrpo", {"cache_path": "a"}),
        ("algorithm.gsd.dagrpo", {"x": ["a"]}),
    ],
)
def test_nothing_that_could_name_a_server_a_file_or_a_variable_is_kept(kept, section, settings):
    assert kept(section, **settings) == []
