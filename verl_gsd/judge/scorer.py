"""The question that a judge scores, the protocol of scorers, and the reasons why a judgement can fail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

#: The scale of scores that a language model gives.
LOWEST, HIGHEST = 0, 10

#: Why a judgement failed, in this order: no answer in time; rejected with HTTP 4xx; 429 until retries ran out; 5xx; no
#: connection or a broken one; an answer that is not a score; a score off the scale; the time budget ran out before the
#: question was asked or answered.
Reason = Literal[
    "timed_out", "refused", "rate_limited", "server_error", "connection", "unreadable", "off_scale", "over_budget"
]
REASONS: tuple[Reason, ...] = get_args(Reason)


@dataclass(frozen=True)
class Question:
    """One response to be judged. All three texts are untrusted.

    Attributes:
        problem: the prompt, as text.
        reference: the reference answer; empty if there is none.
        response: the text that the policy generated.
    """

    problem: str
    reference: str
    response: str


class JudgementError(Exception):
    """A judgement failed because of ``reason``. The message quotes no response, no answer and no secret."""

    def __init__(self, reason: Reason, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason: Reason = reason


class Scorer(Protocol):
    """Scores one response at a time; higher is better.

    Attributes:
        identity: everything that a score depends on except the question (kind, model, prompt, sampling), as one line
            of text. Part of the cache key.
    """

    identity: str

    async def score(self, question: Question) -> float:
        """A finite number. Many tasks of one event loop call this concurrently.

        Raises:
            JudgementError: there is no score.
        """

    async def close(self) -> None:
        """Release connections. Called once, in the event loop that called ``score``."""
