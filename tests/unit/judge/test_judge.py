"""The judge: submissions, budget, concurrency, and equal questions."""

import math
import threading

import numpy as np
import pytest
from controlled_judge import PATIENCE, Answering, Controlled, give, judges, question, settle, taken, wait

from verl_gsd.judge import judge as judge_module
from verl_gsd.judge.scorer import REASONS, JudgementError


@pytest.fixture
def running():
    with judges() as start:
        yield start


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when a test sets it."""
    now = [100.0]
    monkeypatch.setattr(judge_module, "monotonic", lambda: now[0])
    return now


def test_scores_are_in_the_order_of_the_questions(running):
    scorer = Controlled()
    judge = running(scorer)
    judge.ask("a", [question(1), question(2), question(3)])
    opened = [scorer.next() for _ in range(3)]
    assert not judge.is_done("a") and judge.answered_at("a") is None
    for asked, answer in reversed(opened):
        give(answer, int(asked.response))
    wait(judge, "a")
    scores = judge.take("a")
    assert scores.dtype == np.float64 and scores.tolist() == [1, 2, 3]
    with pytest.raises(KeyError):
        judge.take("a")


def test_an_empty_submission_is_done_at_once(running, clock):
    judge = running(Controlled())
    judge.ask("a", [])
    assert judge.is_done("a") and judge.answered_at("a") == 100.0
    assert judge.take("a").shape == (0,)


def test_a_name_can_be_reused_only_after_take(running):
    judge = running(Answering({"1": 1}))
    judge.ask("a", [question(1)])
    with pytest.raises(ValueError, match=r"\ba\b"):
        judge.ask("a", [question(1)])
    judge.take("a")
    judge.ask("a", [question(1)])
    assert taken(judge, "a").tolist() == [1]


def test_a_failed_judgement_is_nan_and_counted_by_reason(running):
    answers = {reason: JudgementError(reason) for reason in REASONS}
    answers |= {"right": 7, "nan": math.nan, "inf": math.inf}
    judge = running(Answering(answers))
    judge.ask("a", [question(name) for name in answers])
    scores = taken(judge, "a")
    assert [name for name, score in zip(answers, scores, strict=True) if not np.isnan(score)] == ["right"]
    metrics = judge.metrics()
    assert {name: metrics[f"judge/failures/{name}"] for name in REASONS} == dict.fromkeys(REASONS, 1) | {"off_scale": 3}
    assert metrics["judge/failures/any"] == len(REASONS) + 2
    assert metrics["judge/responses"] == metrics["judge/calls"] == len(answers)


def test_metrics_are_complete_and_have_names_that_verl_averages(running):
    """verl takes the maximum, minimum or sum of metrics whose names contain these words."""
    judge = running(Answering({"1": 1}))
    metrics = judge.metrics()
    counts = {f"judge/{name}" for name in ("responses", "calls", "cache_hits", "shared", "failures/any")}
    assert metrics.keys() == counts | {f"judge/failures/{reason}" for reason in REASONS} and set(metrics.values()) == {
        0
    }
    judge.ask("a", [question(1)])
    taken(judge, "a")
    metrics = judge.metrics()
    assert {"judge/latency/p50", "judge/latency/p95"} < metrics.keys()
    assert not any(word in name for name in metrics for word in ("max", "min", "sum", "total"))
    assert all(type(value) is float for value in metrics.values())
    assert judge.metrics()["judge/responses"] == 0 and "judge/latency/p50" not in judge.metrics()


def test_questions_open_after_the_budget_are_cancelled_and_counted(running, clock):
    scorer = Controlled()
    judge = running(scorer, budget_s=10)
    judge.ask("a", [question(1), question(2), question(3)])
    opened = dict(scorer.next() for _ in range(3))
    give(opened[question(2)], 5)
    settle(scorer)
    clock[0] = 109.9
    assert not judge.is_done("a")
    clock[0] = 110.0
    assert judge.is_done("a") and judge.answered_at("a") is None
    np.testing.assert_array_equal(judge.take("a"), [np.nan, 5, np.nan])
    assert {scorer.cancelled.get(timeout=PATIENCE).response for _ in range(2)} == {"1", "3"}
    metrics = judge.metrics()
    assert metrics["judge/failures/over_budget"] == metrics["judge/failures/any"] == 2


def test_each_name_has_its_own_budget(running, clock):
    judge = running(Controlled(), budget_s=10)
    judge.ask("a", [question(1)])
    clock[0] = 106.0
    judge.ask("b", [question(2)])
    clock[0] = 111.0
    assert judge.is_done("a") and not judge.is_done("b")


def test_an_answer_that_arrives_after_take_changes_nothing(running, clock):
    scorer = Controlled()
    judge = running(scorer)
    judge.ask("a", [question(1)])
    _, answer = scorer.next()
    loop_is_held, go_on = threading.Event(), threading.Event()

    def hold():
        answer.set_exception(JudgementError("refused"))  # heard when the loop goes on, by when the name is taken
        loop_is_held.set()
        go_on.wait(PATIENCE)

    answer.get_loop().call_soon_threadsafe(hold)
    loop_is_held.wait(PATIENCE)
    scores = judge.take("a")
    go_on.set()
    settle(scorer)
    assert np.isnan(scores).all()
    metrics = judge.metrics()
    assert metrics["judge/failures/any"] == metrics["judge/failures/over_budget"] == 1


def test_concurrency_limits_the_calls_over_all_names(running):
    scorer = Controlled()
    judge = running(scorer, concurrency=3)
    for name in "abcd":
        judge.ask(name, [question(f"{name}{number}") for number in range(5)])
    for number in range(20):
        give(scorer.next()[1], number % 11)
    for name in "abcd":
        assert np.isfinite(taken(judge, name)).all()
    assert scorer.most_open == 3


def test_latency_excludes_the_wait_for_a_free_slot(running, clock):
    scorer = Controlled()
    judge = running(scorer, concurrency=1, budget_s=1000)
    judge.ask("a", [question(1), question(2)])
    _, answer = scorer.next()
    clock[0] += 30
    give(answer, 1)
    _, answer = scorer.next()
    clock[0] += 10
    give(answer, 2)
    wait(judge, "a")
    assert judge.answered_at("a") == 140.0
    assert judge.metrics()["judge/latency/p50"] == 20.0  # of 30 and 10, not of 30 and 40


def test_latency_excludes_failed_calls(running, clock):
    judge = running(Answering({"1": JudgementError("timed_out")}))
    judge.ask("a", [question(1)])
    taken(judge, "a")
    assert "judge/latency/p50" not in judge.metrics()


def test_equal_open_questions_are_scored_once(running):
    scorer = Controlled()
    judge = running(scorer)
    judge.ask("a", [question(1), question(1), question(2)])
    judge.ask("b", [question(1)])
    opened = dict(scorer.next() for _ in range(2))
    settle(scorer)
    assert opened.keys() == {question(1), question(2)} and scorer.started.empty()
    give(opened[question(1)], 7)
    give(opened[question(2)], JudgementError("refused"))
    np.testing.assert_array_equal(taken(judge, "a"), [7, 7, np.nan])
    assert taken(judge, "b").tolist() == [7]
    metrics = judge.metrics()
    assert [metrics[f"judge/{name}"] for name in ("responses", "calls", "shared", "cache_hits")] == [4, 2, 2, 0]


def test_a_question_is_not_cancelled_while_another_name_waits_for_it(running):
    scorer = Controlled()
    judge = running(scorer)
    judge.ask("a", [question(1)])
    judge.ask("b", [question(1)])
    _, answer = scorer.next()
    assert np.isnan(judge.take("a")).all()
    settle(scorer)
    give(answer, 3)
    assert taken(judge, "b").tolist() == [3]
    assert scorer.cancelled.empty()


def test_a_cancelled_question_can_be_asked_again(running):
    scorer = Controlled()
    judge = running(scorer)
    judge.ask("a", [question(1)])
    scorer.next()
    judge.take("a")
    judge.ask("a", [question(1)])
    _, answer = scorer.next()
    give(answer, 4)
    assert taken(judge, "a").tolist() == [4]


def test_a_question_that_waits_for_a_slot_can_be_cancelled(running):
    scorer = Controlled()
    judge = running(scorer, concurrency=1)
    judge.ask("a", [question(1)])
    _, answer = scorer.next()
    judge.ask("b", [question(2)])
    judge.take("b")
    judge.ask("c", [question(2)])
    give(answer, 1)
    _, answer = scorer.next()
    give(answer, 2)
    assert (taken(judge, "a").tolist(), taken(judge, "c").tolist()) == ([1], [2])
