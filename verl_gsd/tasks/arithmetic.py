"""The embedded task: sums and differences of graded difficulty, and the verifier that checks an answer.

A problem is a line such as ``"3+8-5="``: one-digit terms, answer in plain decimal, never negative. Every problem has a
*level* (how many terms, with or without differences), and a briefly warm-started policy (``byte_llama.py``) solves some
levels nearly always, some now and then and some almost never: a group of responses then disagrees on part of the
prompts, which is what group-relative training learns from.

Nothing here imports torch, verl or Ray: reward workers load this file through ``reward.custom_reward_function``.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

DATA_SOURCE = "arithmetic"
#: An answer has at most two digits; a text of more characters than this is no answer and is not looked at.
LONGEST_ANSWER = 64
#: What the warm start's corpus writes where it gives up. Never right.
PASS = "?"


@dataclass(frozen=True)
class Level:
    """One grade of difficulty: ``terms`` one-digit numbers, added, or (``mixed``) with at least one difference.

    ``share`` is the level's weight in the warm start's corpus, relative to the others, and ``passes`` the share of its
    problems that the corpus answers with ``PASS``: a policy that starts out giving up on what it could often solve.
    """

    name: str
    terms: int
    mixed: bool
    share: float
    passes: float


@dataclass(frozen=True)
class Problem:
    """A question, its answer in decimal, and the name of its level."""

    question: str
    answer: str
    level: str


LEVELS = (
    Level("add_3", 3, mixed=False, share=6, passes=0.0),
    Level("add_4", 4, mixed=False, share=5, passes=0.0),
    Level("add_5", 5, mixed=False, share=3, passes=0.4),
    Level("add_6", 6, mixed=False, share=2, passes=0.4),
    Level("add_7", 7, mixed=False, share=1, passes=0.5),
    Level("add_8", 8, mixed=False, share=1, passes=0.5),
    Level("mixed_3", 3, mixed=True, share=0.5, passes=0.8),
    Level("mixed_4", 4, mixed=True, share=0.5, passes=0.8),
)


def draw(level: Level, rng: random.Random) -> Problem:
    """One problem of ``level``; results below zero are drawn again."""
    while True:
        terms = [rng.randrange(10) for _ in range(level.terms)]
        signs = [1] + [rng.choice((1, -1)) if level.mixed else 1 for _ in terms[1:]]
        result = sum(sign * term for sign, term in zip(signs, terms, strict=True))
        if result < 0 or (level.mixed and min(signs) > 0):
            continue
        question = "".join(("+" if sign > 0 else "-") + str(term) for sign, term in zip(signs, terms, strict=True))
        return Problem(question.removeprefix("+") + "=", str(result), level.name)


def distinct(per_level: int, rng: random.Random, excluded: Collection[str] = ()) -> list[Problem]:
    """``per_level`` different problems of every level, none of whose questions is in ``excluded``, in mixed order."""
    taken = set(excluded)
    problems: list[Problem] = []
    for level in LEVELS:
        wanted = len(problems) + per_level
        while len(problems) < wanted:
            problem = draw(level, rng)
            if problem.question not in taken:
                taken.add(problem.question)
                problems.append(problem)
    rng.shuffle(problems)
    return problems


def warm_start_pairs(rng: random.Random, excluded: Collection[str]) -> Iterator[tuple[str, str]]:
    """Endless (question, answer) pairs by the levels' shares, passes included, without the ``excluded`` questions."""
    shares = [level.share for level in LEVELS]
    while True:
        level = rng.choices(LEVELS, shares)[0]
        problem = draw(level, rng)
        if problem.question in excluded:
            continue
        yield problem.question, PASS if rng.random() < level.passes else problem.answer


def compute_score(
    data_source: str, solution_str: Any, ground_truth: Any, extra_info: dict | None = None, **_: Any
) -> dict[str, float]:
    """Verify one response: right if, white space at its ends aside, it is the answer and nothing else.

    The signature is the one verl calls reward functions with; ``score`` is what is trained on and ``acc`` what is
    reported, and here they are the same. Any text is safe: no number is parsed and no more than ``LONGEST_ANSWER``
    characters are read.

    Returns:
        ``{"score": 0.0 or 1.0, "acc": the same}``.
    """
    right = (
        isinstance(solution_str, str)
        and len(solution_str) <= LONGEST_ANSWER
        and solution_str.strip() == str(ground_truth)
    )
    return {"score": float(right), "acc": float(right)}
