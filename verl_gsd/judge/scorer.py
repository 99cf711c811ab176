"""What a judge is asked, what it answers, and how it fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

#: The scale of a judge that is asked in words.
LOWEST, HIGHEST = 0, 10

#: Why a judgement failed: no answer in time; refused with 4xx; 429 until retries ran out; 5xx; no or a broken
#: connection; an answer that is no score; a score off the scale; not asked or given up for want of time.
Reason = Literal[
    "timed_out", "refused", "rate_limited", "server_error", "connection", "unreadable", "off_scale", "over_budget"
]
REASONS: tuple[Reason, ...] = get_args(Reason)


@dataclass(frozen=True)
class Question:
    """One response to be judged. All three are untrusted text.

    Attributes:
        problem: the prompt, as text.
        reference: the reference answer; empty where there is none.
        response: what the policy wrote.
    """

    problem: str
    reference: str
    response: str


class JudgementError(Exception):
    """A judgement that failed, for ``reason``; the message has no text of a response or an answer, and no secret."""

    def __init__(self, reason: Reason, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason: Reason = reason


class Scorer(Protocol):
    """Scores one response; the higher the better.

    Attributes:
        identity: what a score depends on beside the question (kind, model, prompt, sampling), as a line of text.
            Scores are cached under it.
    """

    identity: str

    async def score(self, question: Question) -> float:
        """A finite number. Called by many tasks of one event loop at once.

        Raises:
            JudgementError: there is none.
        """

    async def close(self) -> None:
        """Give back connections; called once, in the event loop that scored."""
