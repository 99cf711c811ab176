"""The judge: its cache, exceptions of the scorer, and closing."""

import asyncio
import contextlib
import math
import threading

import numpy as np
import pytest
from controlled_judge import PATIENCE, Answering, Controlled, give, judges, question, taken, wait, wait_until

from verl_gsd.judge import judge as judge_module
from verl_gsd.judge.cache import ScoreCache
from verl_gsd.judge.judge import Judge
from verl_gsd.judge.scorer import JudgementError
from verl_gsd.judge.stub import StubScorer


@pytest.fixture
def running():
    with judges() as start:
        yield start


def test_the_cache_is_read_first_and_new_scores_are_stored(running, tmp_path):
    with ScoreCache(tmp_path / "scores") as cache:
        scorer = Answering({"1": 1, "2": 2, "bad": JudgementError("unreadable"), "nan": math.nan})
        judge = running(scorer, cache)
        for name in "ab":
            judge.ask(name, [question(response) for response in scorer.answers])
            np.testing.assert_array_equal(taken(judge, name), [1, 2, np.nan, np.nan])
            metrics = judge.metrics()
            wait_until(lambda: len(list(cache.rows())) == 2)
        assert metrics["judge/cache_hits"] == 2 and metrics["judge/calls"] == 2
        assert scorer.asked == ["1", "2", "bad", "nan", "bad", "nan"]  # a failure is not remembered
        assert sorted(row.score for row in cache.rows()) == [1, 2]
        assert {row.identity for row in cache.rows()} == {"answering"}


def judges_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("judge")]


def test_close_waits_until_all_scores_are_in_the_cache(tmp_path):
    with ScoreCache(tmp_path / "scores") as cache:
        judge = Judge(Answering({str(number): number for number in range(50)}), cache)
        judge.ask("a", [question(number) for number in range(50)])
        wait(judge, "a")
        judge.close()
        assert len(list(cache.rows())) == 50
    assert not judges_threads()


def test_scores_do_not_wait_for_the_cache(running, tmp_path):
    written, go_on = threading.Event(), threading.Event()

    class Stuck(ScoreCache):
        def put(self, *_):
            written.set()
            go_on.wait(PATIENCE)

    with Stuck(tmp_path / "scores") as cache:
        judge = running(Answering({"1": 1, "2": 2}), cache)
        judge.ask("a", [question(1), question(2)])
        assert taken(judge, "a").tolist() == [1, 2]
        assert written.wait(PATIENCE)
        go_on.set()
        judge.close()


@pytest.mark.parametrize("bug", [TypeError("a bug of ours"), "7", None, ValueError("another")])
def test_an_exception_that_is_not_a_judgement_error_is_raised(running, bug):
    judge = running(Answering({"1": 1, "2": bug, "3": JudgementError("refused")}))
    judge.ask("a", [question(1), question(2), question(3)])
    judge.ask("b", [question(1)])
    with pytest.raises((TypeError, ValueError)) as failure:
        taken(judge, "a")
    if isinstance(bug, Exception):
        assert failure.value is bug
    with pytest.raises(KeyError):
        judge.take("a")
    assert taken(judge, "b").tolist() == [1]


def test_such_an_exception_is_raised_without_waiting_for_other_questions(running):
    scorer = Controlled()
    judge = running(scorer)
    judge.ask("a", [question(1), question(2)])
    opened = dict(scorer.next() for _ in range(2))
    give(opened[question(1)], ZeroDivisionError())
    wait(judge, "a")
    with pytest.raises(ZeroDivisionError):
        judge.take("a")
    assert scorer.cancelled.get(timeout=PATIENCE) == question(2)


def test_close_cancels_open_questions():
    scorer = Controlled()
    judge = Judge(scorer, concurrency=1)
    judge.ask("a", [question(1), question(2)])
    scorer.next()
    judge.close()
    judge.close()
    assert scorer.closed == 1 and scorer.cancelled.get_nowait() == question(1)
    assert not judges_threads()
    assert judge.is_done("a") and np.isnan(judge.take("a")).all()
    assert judge.metrics()["judge/failures/over_budget"] == 2
    with pytest.raises(RuntimeError, match="closed"):
        judge.ask("c", [question(1)])


def test_an_error_while_closing_the_scorer_is_raised_and_the_thread_ends():
    class Unwilling(StubScorer):
        async def close(self):
            raise OSError("no")

    judge = Judge(Unwilling())
    with pytest.raises(OSError):
        judge.close()
    assert not judges_threads()
    judge.close()


def test_close_does_not_wait_forever_for_a_scorer_that_ignores_cancellation(monkeypatch):
    monkeypatch.setattr(judge_module, "_CLOSING_S", 0.05)
    started = threading.Event()

    class Deaf(StubScorer):
        async def score(self, question):
            started.set()
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()

    judge = Judge(Deaf())
    judge.ask("a", [question(1)])
    started.wait(PATIENCE)
    judge.close()
    assert not judges_threads()


def test_the_thread_is_a_daemon():
    judge = Judge(StubScorer())
    assert judges_threads() and all(thread.daemon for thread in judges_threads())
    judge.close()


def test_the_stub_scores_a_group(running):
    judge = running(StubScorer())
    judge.ask("a", [question("It is 42"), question("It is 17")])
    right, wrong = taken(judge, "a")
    assert right == 10 > wrong
