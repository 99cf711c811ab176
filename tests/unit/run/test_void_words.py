"""Stored words that have no place in the config of a resume's new words."""

import pytest

from verl_gsd.run.compose import parse_line
from verl_gsd.run.void_words import void_words

LINE = ["task=arithmetic", "hardware=cpu"]


@pytest.mark.parametrize(
    ("stored", "given", "void"),
    [
        (["algo=grpo", "budget=adaptive", "algorithm.gsd.budget.half_life=200"], ["budget=uniform"], [2]),
        (["algo=grpo", "sampler=disagreement", "algorithm.gsd.sampler.explore=0.2"], ["sampler=uniform"], [2]),
        (["algo=hadw", "algorithm.gsd.hadw.preset=hard", "trainer.total_epochs=3"], ["algo=grpo"], [1]),
        (["algo=hadw", "+algorithm.gsd.hadw.preset=hard"], ["trainer.total_epochs=3"], []),
        (["algo=grpo", "budget=adaptive", "++algorithm.gsd.budget.half_life=200"], ["budget=uniform"], [2]),
        (["algo=hadw", "++algorithm.gsd.hadw.n_min=32"], ["algo=grpo"], [1]),
        (["algo=hadw", "++algorithm.gsd.hadw.n_min=32"], ["algo=hadw_dapo"], []),
        (["algo=grpo", "+algorithm.gsd.hadw.preset=hard"], ["trainer.total_epochs=3"], []),
        # A word with + elsewhere, and plain words in a section that only a word with + makes.
        (
            ["algo=grpo", "budget=adaptive", "algorithm.gsd.budget.half_life=9", "++data.seed=3"],
            ["budget=uniform"],
            [2],
        ),
        (["algo=hadw", "algorithm.gsd.hadw.preset=soft", "++data.seed=3"], ["algo=grpo"], [1]),
        (["algo=gsd", "+algorithm.gsd.hadw={preset: soft}"], ["algorithm.gsd.hadw.lambda_scale=1.0"], []),
        (
            ["algo=gsd", "+algorithm.gsd.hadw={preset: soft}", "algorithm.gsd.hadw.preset=hard"],
            ["trainer.total_epochs=5"],
            [],
        ),
        (
            ["budget=adaptive", "++algorithm.gsd.budget.prior=[1,1]", "algorithm.gsd.budget.half_life=9"],
            ["budget=uniform", "algo=grpo"],
            [1, 2],
        ),
        (["algo=dapo", "algorithm.filter_groups.metric=acc"], ["algorithm.filter_groups.enable=false"], [1]),
    ],
)
def test_words_of_sections_that_the_new_words_remove_are_void(stored, given, void):
    line = parse_line(["resume=/run", *given])
    assert void_words([*stored, *LINE], line) == [stored[index] for index in void]


def test_a_new_word_for_a_key_that_does_not_exist_makes_nothing_void():
    line = parse_line(["resume=/run", "algorithm.gsd.alhpa=1"])
    assert void_words(["algo=grpo", *LINE, "algorithm.gsd.eps=1e-4"], line) == []
