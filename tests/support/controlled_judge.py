"""Scorers whose answers a test controls, and functions that wait for a judge."""

import asyncio
import contextlib
import queue
import time

from verl_gsd.judge.judge import Judge
from verl_gsd.judge.scorer import Question

PATIENCE = 60  # seconds, for what has to happen; a test that passes waits for none of it


def question(response):
    return Question("6 times 7?", "42", str(response))


class Controlled:
    """A scorer that answers when the test sets the answer.

    ``started`` receives every question with the future of its answer. ``cancelled`` receives every cancelled question.
    """

    identity = "controlled"

    def __init__(self):
        self.started, self.cancelled = queue.Queue(), queue.Queue()
        self.open = self.most_open = self.closed = 0
        self.loop = None

    async def score(self, question):
        self.loop = asyncio.get_running_loop()
        answer = self.loop.create_future()
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        self.started.put((question, answer))
        try:
            return await answer
        except asyncio.CancelledError:
            self.cancelled.put(question)
            raise
        finally:
            self.open -= 1

    async def close(self):
        self.closed += 1

    def next(self):
        return self.started.get(timeout=PATIENCE)


class Answering:
    """A scorer that answers at once, by the response. If the answer is an exception, it is raised."""

    identity = "answering"

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    async def score(self, question):
        self.asked.append(question.response)
        answer = self.answers[question.response]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def close(self):
        pass


def give(answer, value):
    """Set the result of a future of the judge's event loop."""
    if isinstance(value, BaseException):
        answer.get_loop().call_soon_threadsafe(answer.set_exception, value)
    else:
        answer.get_loop().call_soon_threadsafe(answer.set_result, value)


def settle(scorer):
    """Wait until the event loop of a ``Controlled`` scorer has processed everything so far."""
    for _ in range(5):
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), scorer.loop).result(PATIENCE)


def wait_until(is_so):
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


def wait(judge, name):
    wait_until(lambda: judge.is_done(name))


def taken(judge, name):
    wait(judge, name)
    return judge.take(name)


@contextlib.contextmanager
def judges():
    """Yields a function that starts judges. All of them are closed at the end."""
    started = []

    def start(scorer, *arguments, **options):
        started.append(Judge(scorer, *arguments, **options))
        return started[-1]

    yield start
    for judge in started:
        judge.close()
