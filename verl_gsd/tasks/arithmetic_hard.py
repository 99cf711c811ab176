"""The embedded task ``arithmetic_hard``: its prompts are so hard that most responses are wrong at the start.

The problems are longer sums than most of those of ``arithmetic``, and differences. The warm start also has short sums
(``LESSONS``), which are not among the prompts: they teach the policy to add. In the warm start, most problems of the
prompts' levels are answered with ``PASS``. The policy therefore starts by giving up on problems that it could often
solve, and training can find that out.

Solve rates of the 2,560 training prompts at the start:

- mean: 0.089
- prompts below 0.02: 37%; prompts below 0.001: 3%
- prompts above 0.5: 1%; prompts above 0.9: none
- groups of 8 that have both right and wrong responses, on average: 36%

A solve rate is exact here. It is the probability that the policy generates the tokens of the answer and then ends, at
temperature 1. ``tests/drills/test_embedded_tasks.py`` computes it from the warm-started model.

Responses are right or wrong. The reward function is that of ``arithmetic``.
"""

from __future__ import annotations

from verl_gsd.tasks.arithmetic import Level

DATA_SOURCE = "arithmetic_hard"

LESSONS = (
    Level("add_3", 3, mixed=False, share=6, passes=0.0),
    Level("add_4", 4, mixed=False, share=5, passes=0.0),
)
LEVELS = (
    Level("add_5", 5, mixed=False, share=3, passes=0.5),
    Level("add_6", 6, mixed=False, share=2, passes=0.65),
    Level("add_7", 7, mixed=False, share=1, passes=0.75),
    Level("add_8", 8, mixed=False, share=1, passes=0.75),
    Level("add_9", 9, mixed=False, share=1, passes=0.75),
    Level("add_10", 10, mixed=False, share=1, passes=0.75),
    Level("mixed_3", 3, mixed=True, share=0.5, passes=0.8),
    Level("mixed_4", 4, mixed=True, share=0.5, passes=0.8),
)
