"""What the attempts of one run wrote, merged."""

from verl_gsd.rundir import TRAINED, merge_attempts, merge_metrics


def test_an_attempt_that_resumed_replaces_what_earlier_attempts_wrote_from_there_on():
    first, second, third = [(step, f"first {step}") for step in (1, 2, 3, 4)], [(3, "second 3")], []
    assert merge_attempts([first, second, third]) == {1: "first 1", 2: "first 2", 3: "second 3"}
    assert list(merge_attempts([[(5, "b"), (4, "a")]])) == [4, 5], "in the order of steps"


def test_the_validation_that_opens_a_resume_replaces_no_step_and_is_merged_into_its_own():
    first = [(0, {"accuracy": 0.1}), (1, {TRAINED: 1, "loss": 3}), (2, {TRAINED: 2, "loss": 2}), (3, {TRAINED: 3})]
    second = [(2, {"accuracy": 0.4, "loss": 1.5}), (3, {TRAINED: 3, "loss": 1})]
    assert merge_metrics([first, second]) == {
        0: {"accuracy": 0.1},
        1: {TRAINED: 1, "loss": 3},
        2: {TRAINED: 2, "loss": 1.5, "accuracy": 0.4},
        3: {TRAINED: 3, "loss": 1},
    }
    validation_only = [(1, {"accuracy": 0.2})]
    assert merge_metrics([first, validation_only])[3] == {TRAINED: 3}, "it trained nothing, so it replaces nothing"
