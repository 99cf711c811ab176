"""The verifier of the embedded task ``arithmetic_graded``, which gives partial credit.

The problems and the warm-started policy are those of ``arithmetic``. Only the reward differs, so the two tasks show the
same policy with a binary and with a graded reward. The formula is our choice:

    score = max(0, 1 - |x - answer| / 10)

Here ``x`` is the whole number that the response consists of. A response that is not a whole number has score 0; this
includes ``?``, with which the policy gives up. Distances are whole, so a score is one of 0, 0.1, ..., 1.0. The rewards
of a group are therefore often different although none of its responses is right.

This module imports neither torch, verl nor Ray: reward workers load it through ``reward.custom_reward_function``.
"""

from __future__ import annotations

import re
from typing import Any

from verl_gsd.tasks.arithmetic import LONGEST_ANSWER

DATA_SOURCE = "arithmetic_graded"
#: A number this far from the answer, or farther, has score 0.
TOLERANCE = 10

#: One form per number, so that a response has the answer's value only if it is the answer's text.
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]*")


def compute_score(
    data_source: str, solution_str: Any, ground_truth: Any, extra_info: dict | None = None, **_: Any
) -> dict[str, float]:
    """Grade one response by how close it is to the answer, apart from white space around it.

    The signature is that of verl's reward functions. verl trains on ``score`` and reports ``acc``. Any text is safe: a
    text of more than ``LONGEST_ANSWER`` characters is not examined. Numbers are ASCII digits after an optional minus
    sign, without leading zeros.

    Returns:
        ``score`` from 0.0 to 1.0 by the formula above, and ``acc``, which is 1.0 for the answer and otherwise 0.0.

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
        return {"score": 0.0, "acc": 0.0}
    return {"score": max(0, TOLERANCE - abs(number - answer)) / TOLERANCE, "acc": float(number == answer)}


def _whole_number(text: Any) -> int | None:
    if not isinstance(text, str) or len(text) > LONGEST_ANSWER:
        return None
    number = _WHOLE_NUMBER.fullmatch(text.strip())
    return int(number[0]) if number else None
