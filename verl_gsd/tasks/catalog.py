"""The embedded tasks by name. They are made on this machine, so that nothing has to be downloaded.

Each task also has a file ``config/task/NAME.yaml``. ``embedded.py`` writes a task's files. This module imports neither
torch nor pyarrow, because the command line needs the names for its help.
"""

from __future__ import annotations

from dataclasses import dataclass

from verl_gsd.tasks import arithmetic, arithmetic_graded, arithmetic_hard


@dataclass(frozen=True)
class EmbeddedTask:
    """What distinguishes one embedded task from the others.

    Attributes:
        name: its name in ``task=NAME``, ``verl-gsd prepare NAME`` and ``verl-gsd eval --bench NAME``. It is also the
            ``data_source`` of its prompts.
        levels: the levels of difficulty of its prompts. The warm start's corpus has them too.
        verifier: the module whose ``compute_score`` is the reward function. Reward workers import it.
        lessons: levels that only the warm start's corpus has. They teach the policy what it needs for ``levels``.
    """

    name: str
    levels: tuple[arithmetic.Level, ...]
    verifier: str
    lessons: tuple[arithmetic.Level, ...] = ()

    @property
    def corpus(self) -> tuple[arithmetic.Level, ...]:
        """The levels of the warm start's corpus."""
        return self.lessons + self.levels


ARITHMETIC = EmbeddedTask(arithmetic.DATA_SOURCE, arithmetic.LEVELS, arithmetic.__name__)
ARITHMETIC_HARD = EmbeddedTask(
    arithmetic_hard.DATA_SOURCE, arithmetic_hard.LEVELS, arithmetic.__name__, arithmetic_hard.LESSONS
)
ARITHMETIC_GRADED = EmbeddedTask(
    arithmetic_graded.DATA_SOURCE, arithmetic_graded.LEVELS, arithmetic_graded.__name__, arithmetic_graded.LESSONS
)

TASKS = {task.name: task for task in (ARITHMETIC, ARITHMETIC_HARD, ARITHMETIC_GRADED)}
