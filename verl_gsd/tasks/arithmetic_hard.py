"""The embedded task ``arithmetic_hard``: its prompts are so hard that most responses are wrong at the start.

The levels are provisional: their solve rates have not been measured yet.
"""

from __future__ import annotations

from verl_gsd.tasks.arithmetic import Level

DATA_SOURCE = "arithmetic_hard"

LEVELS = (
    Level("add_4", 4, mixed=False, share=4, passes=0.65),
    Level("add_5", 5, mixed=False, share=4, passes=0.75),
    Level("add_6", 6, mixed=False, share=4, passes=0.8),
    Level("add_7", 7, mixed=False, share=3, passes=0.85),
    Level("add_8", 8, mixed=False, share=2, passes=0.85),
    Level("add_10", 10, mixed=False, share=1, passes=0.9),
    Level("mixed_3", 3, mixed=True, share=0.5, passes=0.8),
    Level("mixed_4", 4, mixed=True, share=0.5, passes=0.8),
)
