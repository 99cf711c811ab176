"""A scorer that needs no model."""

from __future__ import annotations

from difflib import SequenceMatcher

from verl_gsd.judge.prompt import digest
from verl_gsd.judge.scorer import HIGHEST, LOWEST, Question

#: Number of characters compared. difflib takes up to cubic time in it.
_COMPARED = 100


class StubScorer:
    """Replaces a judge in first runs, tests and benchmarks. Its scores say nothing about the reasoning.

    The score is a deterministic integer in 0..10: the similarity of the reference and the end of the response, or a
    hash if there is no reference.
    """

    identity = "stub v1"

    async def score(self, question: Question) -> float:
        reference = question.reference.strip()[-_COMPARED:]
        if not reference:
            number = int.from_bytes(digest(question.problem, question.response)[:8], "big")
            return float(LOWEST + number % (HIGHEST - LOWEST + 1))
        # Compare an end of the same length as the reference: a short reference is similar to no long response.
        end = question.response[-4 * _COMPARED :].strip()[-len(reference) :]
        similarity = SequenceMatcher(None, reference, end, autojunk=False).ratio()
        return float(LOWEST + round(similarity * (HIGHEST - LOWEST)))

    async def close(self) -> None:
        pass
