"""The reward monitor counts, reports and limits lost rewards, and reports slow ones."""

import itertools
import math
import re

import numpy as np
import pytest

from verl_gsd.groups import Group
from verl_gsd.run.messages import MessageWriter, RunStoppedError, read_messages
from verl_gsd.trainer.reward_failures import Failure
from verl_gsd.trainer.reward_monitor import LostReward, RewardMonitor, describe_reward_function

RAISED = Failure("raised", "KeyError", "'x'", "Traceback (most recent call last):\n  File bad.py\nKeyError: 'x'\n")
NONE = Failure("none", "returned None")
SLOW = Failure("too_slow", "took longer than 300 s")
LONG = Failure("prompt_too_long", "prompt too long", "built a prompt of 11 tokens, more than the limit")


def loss(failure=RAISED, index=17, **further):
    return LostReward("math", index, failure, **further)


@pytest.fixture
def monitor(tmp_path):
    """(settings) -> (a monitor, a function that returns its messages so far)."""

    def build(**settings):
        path = tmp_path / "messages.jsonl"
        settings = {"function": "score of bad.py", "limit": 0.05, "batch_groups": 8, "batch_responses": 20} | settings
        built = RewardMonitor(MessageWriter(path), **{"workers": 4, "overlaps": False} | settings)
        return built, lambda: [(message.kind, message.text) for message in read_messages(path)]

    return build


def test_the_first_failure_of_each_kind_is_reported_once_with_its_traceback(monitor):
    built, messages = monitor(limit=1.0)
    built.on_rewards(3, 1, 8, [loss(), loss(index=18)], [])
    built.on_rewards(4, 1, 8, [loss(), loss(NONE)], [])
    first, second = messages()
    assert first[0] == second[0] == "warning"
    assert re.search(r"step 3: score of bad\.py .*KeyError: 'x' \(data_source=math, index=17\)", first[1])
    assert "algorithm.gsd.limits.failed_rewards=1" in first[1]
    assert first[1].endswith("\n    Traceback (most recent call last):\n      File bad.py\n    KeyError: 'x'")
    assert re.search(r"step 4: score of bad\.py .*None \(data_source=math, index=17\)", second[1])


def test_a_message_about_an_agent_loops_own_reward_does_not_name_the_reward_function(monitor):
    built, messages = monitor(limit=1.0)
    built.on_rewards(1, 1, 8, [loss(Failure("not_finite", "returned nan"), by_agent_loop=True)], [])
    ((_, text),) = messages()
    assert "agent loop" in text and "nan" in text and "bad.py" not in text


def test_the_first_step_with_accuracies_outside_0_to_1_is_reported_once(monitor):
    def group(accuracies, index, tokens=1):
        size = len(accuracies)
        tokens = np.full(size, tokens)
        return Group(f"uid{index}", "math", index, np.zeros(size), np.array(accuracies), tokens)

    built, messages = monitor()
    built.report_unrated(1, [group([1.0, 0.5], 1), group([], 2), group([math.nan], 3, tokens=0)], {"math"})
    assert messages() == []
    built.report_unrated(2, [group([1.0], 1), group([1.0, -1.0], 4), group([math.nan], 5)], set())
    built.report_unrated(3, [group([-1.0], 6)], set())
    ((kind, text),) = messages()
    assert kind == "warning" and "In 2 of 3 groups of step 2" in text
    assert "data_source=math, index=4 has acc=-1 from score of bad.py" in text
    other, messages = monitor()
    other.report_unrated(9, [group([math.nan], 5)], set())
    assert "index=5 has no acc" in messages()[-1][1] and "no solve rates of this data source" in messages()[-1][1]
    other.report_unrated(10, [group([math.nan], 5)], set())
    assert len(messages()) == 2, "with that of the other monitor"
    other.report_unrated(11, [group([math.nan, 1.5], 7), group([math.nan], 5)], set())
    assert len(messages()) == 3, "a value outside [0, 1] costs more than a missing one, and is reported as well"
    assert "index=7 has acc=1.5" in messages()[-1][1] and "for the whole run" in messages()[-1][1]
    fresh = ["algorithm.gsd.state=fresh" in text for _, text in messages()]
    assert fresh == [True, False, True], "a missing value costs only the groups of its step"
    other.report_unrated(12, [group([math.nan, 1.0], 8)], {"math"})
    assert len(messages()) == 3


def test_the_first_step_in_which_responses_without_acc_count_as_wrong_is_reported_once(monitor):
    def group(accuracies, index):
        size = len(accuracies)
        return Group(f"uid{index}", "math", index, np.zeros(size), np.array(accuracies), np.ones(size))

    built, messages = monitor()
    built.report_unrated(1, [group([math.nan, math.nan], 5)], set())
    for step in (2, 3):
        built.report_unrated(step, [group([1.0], 1), group([math.nan, 1.0], 4), group([math.nan], 6)], {"math"})
    first, second = (text for _, text in messages())
    assert "step 1" in first and "no solve rates" in first
    assert (
        "In 2 of 3 groups of step 2" in second and "data_source=math, index=4 has no acc from score of bad.py" in second
    )
    assert "count as wrong" in second and "no solve rates" not in second and "no predictions" not in second


def test_sources_that_a_checkpoint_left_without_accuracies_are_named(monitor):
    built, messages = monitor()
    built.report_restored(frozenset())
    assert messages() == []
    built.report_restored(frozenset({"math", "code"}))
    ((kind, text),) = messages()
    assert kind == "warning" and "data_source=code, math" in text and "algorithm.gsd.state=fresh" in text
    built.report_restored(frozenset({"a\n\x1b[31mwarning"}))
    assert messages()[-1][1].isprintable() and r"a\n\x1b[31mwarning" in messages()[-1][1]


def test_metrics_are_those_of_one_step(monitor):
    built, _ = monitor(limit=1.0)
    built.on_rewards(1, 1, 8, [loss(), loss(NONE), loss(NONE)], [1.0, 3.0])
    built.on_rewards(1, 1, 4, [], [2.0])
    metrics = built.end_step(1, 10.0)
    assert metrics["reward/failed"] == 3 and metrics["reward/failed_share"] == 3 / 12
    assert metrics["reward/failures/raised"] == 1 and metrics["reward/failures/none"] == 2
    assert metrics["reward/failures/too_slow"] == 0
    assert (metrics["reward/seconds/mean"], metrics["reward/seconds/max"]) == (2.0, 3.0)
    assert metrics["reward/share_of_step"] == 0.3
    nothing = built.end_step(2, 10.0)
    assert nothing["reward/failed"] == nothing["reward/failed_share"] == 0
    assert "reward/seconds/mean" not in nothing, "no agent loop measured any"


def test_verl_reduces_only_the_longest_wait_by_its_name(monitor):
    """verl reduces a metric by its maximum, minimum or sum if its name contains such a word."""
    built, _ = monitor()
    built.on_rewards(1, 1, 8, [], [1.0])
    names = built.end_step(1, 10.0).keys() | built.end_validation(1).keys()
    found = {name for name, part in itertools.product(names, ("max", "min", "sum", "total")) if part in name}
    assert found == {"reward/seconds/max"}


def test_a_step_above_the_limit_stops_the_run_before_it_trains(monitor):
    built, messages = monitor()
    built.on_rewards(5, 4, 20, [loss(NONE)], [])
    built.check(5)  # 5% of 20
    built.on_rewards(5, 1, 8, [loss(index=4)], [])
    with pytest.raises(RunStoppedError) as stopped:
        built.check(5)
    text = str(stopped.value)
    assert re.search(r"step 5, 2 of 28 .*\(returned None 1, KeyError 1\): 7\.1%", text)
    assert "algorithm.gsd.limits.failed_rewards=0.05" in text
    assert re.search(r"bad\.py .*KeyError: 'x' \(data_source=math, index=4\)", text), "the first with a traceback"
    assert "File bad.py" in text and "reward_seconds" not in text
    assert [kind for kind, _ in messages()] == ["warning", "warning"], "the trainer writes what stops it"


def test_the_message_says_what_to_set_for_slow_rewards(monitor):
    built, _ = monitor()
    built.on_rewards(5, 1, 8, [loss(SLOW)] * 2, [])
    with pytest.raises(RunStoppedError, match=r"algorithm\.gsd\.limits\.reward_seconds"):
        built.check(5)


def test_a_message_about_a_prompt_that_is_too_long_names_the_agent_loop_and_what_to_set(monitor):
    built, messages = monitor()
    built.on_rewards(5, 1, 8, [loss(LONG)] * 8, [])
    ((_, text),) = messages()
    assert re.search(r"step 5: .*agent loop .*11 tokens.*\(data_source=math, index=17\)", text)
    assert re.search(r"data\.max_prompt_length .*data\.truncation=left, right or middle", text)
    with pytest.raises(RunStoppedError) as stopped:
        built.check(5)
    text = str(stopped.value)
    assert re.search(r"8 of 8 .*\(prompt too long 8\)", text) and "data.max_prompt_length" in text
    assert "bad.py" not in text and "function" not in text
    assert built.end_step(5, 1.0)["reward/failures/prompt_too_long"] == 8


def test_a_batchs_worth_of_groups_is_checked_even_if_no_batch_is_ever_chosen(monitor):
    """Dynamic sampling replaces groups without rewards without end."""
    built, _ = monitor(batch_groups=8)
    for _ in range(7):
        built.on_rewards(1, 1, 4, [loss()] * 4, [])
    with pytest.raises(RunStoppedError):
        built.on_rewards(1, 1, 4, [loss()] * 4, [])


def test_the_share_is_relative_to_a_batch_if_a_step_reads_few_responses(monitor):
    """An asynchronous trainer may have read most of a batch in earlier steps."""
    built, _ = monitor(batch_responses=64)
    for step in range(1, 101):
        built.on_rewards(step, 1, 64, [], [])
        built.check(step)
        built.end_step(step, 1.0)
    built.on_rewards(101, 1, 8, [loss()] * 3, [])
    built.check(101)  # 3 of 64
    built.on_rewards(101, 1, 8, [loss()], [])
    with pytest.raises(RunStoppedError, match=r"4 of 16 .*: 6\.2% .*\b64\b"):
        built.check(101)


def test_a_single_lost_reward_never_stops_a_run(monitor):
    built, _ = monitor(limit=0.0, batch_responses=4)
    built.on_rewards(1, 1, 4, [loss()], [])
    built.check(1)
    built.on_validation_rewards(1, 1, [loss()])
    assert built.end_validation(1) == {"val/failed_rewards": 1.0}
    built.on_validation_rewards(2, 100, [loss()] * 2)
    with pytest.raises(RunStoppedError):
        built.end_validation(2)


def test_the_number_of_responses_per_batch_comes_from_the_config(compose_fast, tmp_path):
    config, _ = compose_fast("algo=gsd", "task=arithmetic", "hardware=cpu", "actor_rollout_ref.rollout.n=8")
    built = RewardMonitor.from_config(config, MessageWriter(tmp_path / "messages"), batch_groups=8, overlaps=True)
    built.on_rewards(1, 8, 3, [loss()] * 3, [])  # of 64
    with pytest.raises(RunStoppedError, match="4 of 4 "):
        built.on_rewards(1, 1, 1, [loss()], [])


@pytest.mark.parametrize(("limit", "lost"), [(1.0, 8), (0.0, 0)])
def test_limits_of_0_and_1(monitor, limit, lost):
    built, _ = monitor(limit=limit)
    built.on_rewards(1, 8, 8, [loss()] * lost, [])
    built.check(1)


def test_a_step_without_responses_is_within_any_limit(monitor):
    built, _ = monitor(limit=0.0)
    built.check(1)
    assert built.end_step(1, 1.0)["reward/failed_share"] == 0


def test_counts_are_reported_when_they_double_and_not_in_every_step(monitor):
    built, messages = monitor()
    for step in range(1, 1025):
        built.on_rewards(step, 8, 64, [loss()], [])
        built.end_step(step, 1.0)
    told = [text for _, text in messages() if text.startswith("Step")]
    assert re.match(r"Step 1: 1 of 64 .*\(KeyError 1\).* 1 ", told[0])
    assert len(told) == 11
    built.on_rewards(1025, 8, 64, [loss()] * 3, [])
    built.end_step(1025, 1.0)
    assert messages()[-1][1].startswith("Step 1025: 3 of 64"), "a share that grows is told at once"


# Validation


def test_a_validation_is_counted_and_reported_separately(monitor):
    built, messages = monitor(limit=0.1)
    built.on_validation_rewards(0, 10, [loss()])
    built.on_validation_rewards(0, 10, [])
    assert built.end_validation(0) == {"val/failed_rewards": 1.0}
    first, count = messages()
    assert "validation at step 0" in first[1]
    assert re.search(r"validation at step 0, 1 of 20 .*\(KeyError 1\)", count[1])
    assert "val-core/*/acc" in count[1] and "acc_success_only" in count[1]
    assert built.end_validation(1) == {"val/failed_rewards": 0.0}
    assert built.end_step(1, 1.0)["reward/failed"] == 0 and len(messages()) == 2


def test_a_validation_above_the_limit_stops_the_run(monitor):
    built, _ = monitor(limit=0.1)
    built.on_validation_rewards(4, 10, [loss()] * 2)
    with pytest.raises(RunStoppedError, match=r"validation at step 4, 2 of 10 "):
        built.end_validation(4)


def test_a_validation_without_any_reward_stops_the_run_only_above_the_limit(monitor):
    built, _ = monitor(limit=1.0)
    built.on_validation_rewards(0, 2, [loss()] * 2)
    assert built.end_validation(0) == {"val/failed_rewards": 2.0}


# Time


def slow_steps(built, *shares):
    for step, share in enumerate(shares, 1):
        built.on_rewards(step, 1, 8, [], [1.0, 10 * share])
        built.end_step(step, 10.0)


def test_slow_rewards_are_reported_once(monitor):
    built, messages = monitor()
    slow_steps(built, 0.9, 0.2, 0.9)
    assert messages() == [], "one slow step, for example the first, is none"
    slow_steps(built, 0.8, 0.8, 0.8, 0.1, 0.8, 0.8)
    ((kind, text),) = messages()
    assert kind == "warning" and re.search(r"step 1 .*8\.0 s .*10\.0 s .*score of bad\.py", text)
    assert "reward.num_workers above 4" in text


def test_rewards_that_overlap_with_the_update_do_not_slow_a_step(monitor):
    built, messages = monitor(overlaps=True)
    slow_steps(built, 0.9, 0.9, 0.9)
    assert messages() == []


def test_reward_functions_are_described(compose_fast):
    config, _ = compose_fast("algo=gsd", "task=arithmetic", "hardware=cpu")
    assert describe_reward_function(config) == "compute_score of pkg://verl_gsd.tasks.arithmetic"
    config.reward.custom_reward_function.path = None
    assert "verl" in describe_reward_function(config)
    config.reward.reward_model.enable, config.reward.reward_model.model_path = True, "me/judge"
    assert "me/judge" in describe_reward_function(config)
