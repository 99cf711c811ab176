"""The first embedded task: sums and differences at several levels of difficulty, and the verifier of their answers.

A problem is a line such as ``"3+8-5="`` with one-digit terms. The answer is a decimal integer, never negative. Each
problem has a level, which sets the number of terms and whether there are differences. The briefly warm-started policy
(``byte_llama.py``) solves some levels nearly always, some sometimes and some hardly ever. On part of the prompts the
responses of a group therefore disagree, and group-relative training learns from this disagreement.

The other embedded tasks (``catalog.py``) have problems of the same form.

This module imports neither torch, verl nor Ray: reward workers load it through ``reward.custom_reward_function``.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

DATA_SOURCE = "arithmetic"
#: In characters. Answers have at most two digits; a longer text is wrong and is not examined.
LONGEST_ANSWER = 64
#: The response with which the warm start's corpus gives up. It is never right.
PASS = "?"


@dataclass(frozen=True)
class Level:
    """One level of difficulty. The field names are part of the task's fingerprint (``embedded.py``).

    Attributes:
        name: the level's name.
        terms: how many one-digit numbers a problem has.
        mixed: whether a problem has at least one difference; otherwise it has sums only.
        share: the level's weight in the warm start's corpus, relative to the other levels.
        passes: the share of the level's problems that the corpus answers with ``PASS``. The policy therefore starts by
            giving up on problems that it could often solve.
    """

    name: str
    terms: int
    mixed: bool
    share: float
    passes: float


@dataclass(frozen=True)
class Problem:
    """A question, its answer as a decimal integer, and the name of its level."""

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


def sample_problem(level: Level, rng: random.Random) -> Problem:
    """One random problem of ``level``. Problems with a negative result are rejected."""
    while True:
        terms = [rng.randrange(10) for _ in range(level.terms)]
        signs = [1] + [rng.choice((1, -1)) if level.mixed else 1 for _ in terms[1:]]
        result = sum(sign * term for sign, term in zip(signs, terms, strict=True))
        if result < 0 or (level.mixed and min(signs) > 0):
            continue
        question = "".join(("+" if sign > 0 else "-") + str(term) for sign, term in zip(signs, terms, strict=True))
        return Problem(question.removeprefix("+") + "=", str(result), level.name)


def distinct_problems(
    per_level: int, rng: random.Random, excluded: Collection[str] = (), levels: Sequence[Level] = LEVELS
) -> list[Problem]:
    """``per_level`` distinct problems of every level, shuffled, without the questions in ``excluded``."""
    seen = set(excluded)
    problems: list[Problem] = []
    for level in levels:
        target = len(problems) + per_level
        while len(problems) < target:
            problem = sample_problem(level, rng)
            if problem.question not in seen:
                seen.add(problem.question)
                problems.append(problem)
    rng.shuffle(problems)
    return problems


def warm_start_pairs(
    rng: random.Random, excluded: Collection[str], levels: Sequence[Level] = LEVELS
) -> Iterator[tuple[str, str]]:
    """Endless (question, answer) pairs for the warm start, without the questions in ``excluded``.

    Levels are sampled by their ``share``; a share ``passes`` of the answers is ``PASS``.
    """
    shares = [level.share for level in levels]
    while True:
        level = rng.choices(levels, shares)[0]
        problem = sample_problem(level, rng)
        if problem.question in excluded:
            continue
        yield problem.question, PASS if rng.random() < level.passes else problem.answer


def compute_score(
    data_source: str, solution_str: Any, ground_truth: Any, extra_info: dict | None = None, **_: Any
) -> dict[str, float | str]:
    """Verify one response. It is right if it equals the answer, apart from white space around it.

    The signature is that of verl's reward functions. verl trains on ``score`` and reports ``acc``; here they are equal.
    Any text is safe: no number is parsed, and at most ``LONGEST_ANSWER`` characters are read.

    Returns:
        ``{"score": 0.0 or 1.0, "acc": the same, "answer": the text}``. ``answer`` is empty for a text that is not
        examined, and for ``PASS``.
    """
    is_examined = isinstance(solution_str, str) and len(solution_str) <= LONGEST_ANSWER
    answer = solution_str.strip() if is_examined else ""
    right = is_examined and answer == str(ground_truth)
    return {"score": float(right), "acc": float(right), "answer": "" if answer == PASS else answer}
