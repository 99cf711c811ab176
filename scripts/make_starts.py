"""Trains the warm-started policies of the embedded tasks and writes them to ``verl_gsd/tasks/starts``.

Run it only if a task or the model changes: ``python scripts/make_starts.py arithmetic_hard``. Without names it makes
those that are missing or of another specification. Other weights are another start: studies cannot compare their runs
with earlier ones.
"""

from __future__ import annotations

import sys

from verl_gsd.tasks.catalog import TASKS
from verl_gsd.tasks.embedded import Specification, make_start, packaged_start

for name, task in TASKS.items():
    asked = name in sys.argv[1:] or (len(sys.argv) == 1 and packaged_start(Specification(task)) is None)
    if asked:
        print(make_start(Specification(task), lambda step, loss: print(f"\r{step} {loss:.3f}", end="")))
