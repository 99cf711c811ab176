"""Which attempt of a run trained which of its steps, and with which config.

An attempt that resumes from step S replaces all steps after S of earlier attempts. Their checkpoints stay in the folder
of the run, and have another history than the run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_gsd.checkpoints import attempt_of, step_of
from verl_gsd.rundir import TRAINED, MetricsReader, RunDirectory

#: The file of one step's records.
_RECORDS = re.compile(r"step_(\d+)\.parquet")


@dataclass(frozen=True)
class Part:
    """Consecutive steps that one attempt trained: ``first`` to ``last``, inclusive."""

    attempt: int
    first: int
    last: int


def parts_of_run(run: RunDirectory) -> list[Part]:
    """The steps that count in the run, oldest first.

    Raises:
        OSError: a file cannot be read, or a link leads to a file outside the run.
    """
    return _parts(_trained_steps(run))


def parts_of_checkpoint(run: RunDirectory, checkpoint: Path) -> list[Part]:
    """The steps behind the weights in RUN/global_step_N, oldest first.

    They are not known if metrics and records are lost, nor for steps that another run trained.

    Raises:
        OSError: as for ``parts_of_run``.
    """
    trained, step = _trained_steps(run), step_of(checkpoint)
    own = _attempt_of(checkpoint, trained)
    return _parts(
        {
            attempt: [number for number in steps if step is None or number <= step]
            for attempt, steps in trained.items()
            if own is None or attempt <= own
        }
    )


def is_left_behind(run: RunDirectory, checkpoint: Path) -> bool:
    """Whether RUN/global_step_N has steps that no longer count: an attempt resumed from an earlier step.

    False if it is not known.

    Raises:
        OSError: as for ``parts_of_run``.
    """
    trained, step = _trained_steps(run), step_of(checkpoint)
    own = _attempt_of(checkpoint, trained)
    if step is None or own is None:
        return False
    return any(part.attempt > own for part in _parts(trained) if part.first <= step)


def config_of(run: RunDirectory, attempt: int) -> Any:
    """The resolved config of an attempt; None if it is not known, because an older version kept the newest one alone.

    Raises:
        ValueError: as for ``RunDirectory.read_yaml``.
    """
    own = run.read_yaml(run.attempt_config(attempt))
    return run.read_yaml(run.config) if own is None and attempt == max(run.attempts()) else own


def _attempt_of(checkpoint: Path, trained: Mapping[int, Sequence[int]]) -> int | None:
    """The attempt that saved a checkpoint; if the checkpoint does not say it, the newest one that trained its step."""
    own, step = attempt_of(checkpoint), step_of(checkpoint)
    return max((attempt for attempt, steps in trained.items() if step in steps), default=None) if own is None else own


def _parts(trained: Mapping[int, Sequence[int]]) -> list[Part]:
    """The same as ``rundir.merge_attempts``, for the steps that each attempt trained, oldest attempt first."""
    parts: list[Part] = []
    for attempt, steps in trained.items():
        if not steps:
            continue
        first = min(steps)
        kept = [Part(part.attempt, part.first, min(part.last, first - 1)) for part in parts if part.first < first]
        parts = [*kept, Part(attempt, first, max(steps))]
    return parts


def _trained_steps(run: RunDirectory) -> dict[int, list[int]]:
    """attempt -> the steps of its metrics, or of its records if it has no metrics of training steps; oldest first."""
    trained = {}
    for attempt in run.attempts():
        lines = MetricsReader(run.metrics(attempt), skip_damaged=True).new()
        trained[attempt] = [step for step, scalars in lines if TRAINED in scalars] or [
            int(match[1]) for file in run.records(attempt).glob("*") if (match := _RECORDS.fullmatch(file.name))
        ]
    return trained
