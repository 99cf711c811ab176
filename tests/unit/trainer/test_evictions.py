"""A step in which dynamic sampling evicts nearly all groups says so. verl would go on without a word."""

import numpy as np
import pytest

from verl_gsd.groups import Group
from verl_gsd.run.messages import MessageWriter, read_messages
from verl_gsd.trainer.evictions import TIMES, Evictions


def group(accuracies, rewards=None):
    verdicts = np.array(accuracies, dtype=float)
    values = verdicts if rewards is None else np.array(rewards, dtype=float)
    return Group("u", "math", 1, values, verdicts, np.ones(len(values), np.int64))


@pytest.fixture
def watched(tmp_path):
    """(a counter for batches of 4 groups, a list of one: the current step, a function that returns its messages)."""
    path, step = tmp_path / "messages.jsonl", [3]
    built = Evictions(MessageWriter(path), 4, lambda: step[0])
    return built, step, lambda: [(message.kind, message.text) for message in read_messages(path)]


def test_warnings_come_at_ten_batches_and_whenever_the_number_has_doubled(watched):
    evictions, _, messages = watched
    for number in range(200):
        evictions.on_evicted(group([0, 0]) if number % 4 else group([1, 1]))
    numbers = [40, 80, 160]
    assert [kind for kind, _ in messages()] == ["warning"] * 3
    for number, (_, text) in zip(numbers, messages(), strict=True):
        assert f"evicted {number} groups in step 3" in text and f"not above 0 in {number * 3 // 4} of them" in text
        assert "algorithm.filter_groups.enable=false" in text


def test_each_step_counts_anew_and_a_usual_share_of_evictions_is_not_mentioned(watched):
    evictions, step, messages = watched
    for step[0] in range(1, 50):
        for _ in range(TIMES * 4 - 1):
            evictions.on_evicted(group([0, 0]))
    assert messages() == []


@pytest.mark.parametrize(
    ("of", "none_is_right"),
    [
        (group([0, 0]), True),
        (group([np.nan, np.nan], rewards=[0, 0]), True),
        (group([-1, -1]), True),
        (group([0.5, 0.5]), False),
        (group([]), False),
    ],
)
def test_groups_without_a_right_response_are_told_by_their_verdicts(watched, of, none_is_right):
    evictions, _, messages = watched
    for _ in range(TIMES * 4):
        evictions.on_evicted(of)
    assert f"not above 0 in {40 if none_is_right else 0} of them" in messages()[0][1]
