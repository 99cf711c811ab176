"""The embedded task ``arithmetic_graded``, whose verifier gives partial credit.

The formula is our choice:

    score = max(0, 1 - |x - answer| / 10)

Here ``x`` is the whole number that the response consists of. A response that is not a whole number has score 0; this
includes ``PASS``. Distances are whole, so a score is one of 0, 0.1, ..., 1.0. The scores of a group therefore often
differ although none of its responses is right.

The problems are those of ``arithmetic_hard``. The policy gives up on fewer of them at the start, because all responses
that give up have the same score. Figures of the 2,560 training prompts at the start:

- mean score: 0.69; prompts whose mean score is below 0.02: none; prompts above 0.9: four
- mean solve rate, which is the probability of the exact answer: 0.42; prompts below 0.02: 3%; prompts above 0.9: none
- distinct scores in a group of 8, on average: 3.4
- groups of 8 in which all scores are equal: 3%; with a binary reward they would be 23%

The figures are computed from the exact probability of every number less than 10 away from the answer, at temperature 1
(``tests/drills/test_embedded_tasks.py``).

This module imports neither torch, verl nor Ray: reward workers load it through ``reward.custom_reward_function``.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from verl_gsd.tasks import arithmetic_hard
from verl_gsd.tasks.arithmetic import LONGEST_ANSWER

DATA_SOURCE = "arithmetic_graded"
LESSONS = arithmetic_hard.LESSONS
LEVELS = tuple(replace(level, passes=0.2) for level in arithmetic_hard.LEVELS)
#: A number this far from the answer, or farther, has score 0.
TOLERANCE = 10

#: One form per number, so that a response has the answer's value only if it is the answer's text.
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]*")


def compute_score(
    data_source: str, solution_str: Any, ground_truth: Any, extra_info: dict | None = None, **_: Any
) -> dict[str, float | str]:
    """Grade one response by how close it is to the answer, apart from white space around it.

    The signature is that of verl's reward functions. verl trains on ``score`` and reports ``acc``. Any text is safe: a
    text of more than ``LONGEST_ANSWER`` characters is not examined. Numbers are ASCII digits after an optional minus
    sign, without leading zeros.

    Returns:
        ``score`` from 0.0 to 1.0 by the formula above, and ``acc``, which is 1.0 for the answer and otherwise 0.0.
        ``answer`` is the number as text, and empty if the response is not a whole number.

    Raises:
        ValueError: ``ground_truth`` is not a whole number.
    """
    answer = _whole_number(str(ground_truth))
    if answer is None:
        raise ValueError(
            f"ground_truth={str(ground_truth)[:40]!r} of data_source={data_source}: not a whole number. Set "
            "ground_truth to a whole number, or use another reward function"
        )
    number = _whole_number(solution_str)
    if number is None:
        return {"score": 0.0, "acc": 0.0, "answer": ""}
    score = max(0, TOLERANCE - abs(number - answer)) / TOLERANCE
    return {"score": score, "acc": float(number == answer), "answer": str(number)}


def _whole_number(text: Any) -> int | None:
    if not isinstance(text, str) or len(text) > LONGEST_ANSWER:
        return None
    number = _WHOLE_NUMBER.fullmatch(text.strip())
    return int(number[0]) if number else None
