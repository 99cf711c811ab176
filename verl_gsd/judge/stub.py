"""A scorer that asks nobody."""

from __future__ import annotations

from difflib import SequenceMatcher

from verl_gsd.judge.prompt import digest
from verl_gsd.judge.scorer import HIGHEST, LOWEST, Question

#: Characters compared; difflib takes up to cubic time in it.
_COMPARED = 100


class StubScorer:
    """Stands for a judge where none runs: first runs, tests, benches. It measures nothing about reasoning.

    An integer 0..10, always the same for the same question: how alike the reference and the end of the response are;
    without a reference, a hash.
    """

    identity = "stub v1"

    async def score(self, question: Question) -> float:
        reference = question.reference.strip()[-_COMPARED:]
        if not reference:
            drawn = int.from_bytes(digest(question.problem, question.response)[:8], "big")
            return float(LOWEST + drawn % (HIGHEST - LOWEST + 1))
        # An end as long as the reference: a short answer beside a long response would be like nothing at all.
        end = question.response[-4 * _COMPARED :].strip()[-len(reference) :]
        alike = SequenceMatcher(None, reference, end, autojunk=False).ratio()
        return float(LOWEST + round(alike * (HIGHEST - LOWEST)))

    async def close(self) -> None:
        pass
