"""Checks that a resume continues the steps that count, so that metrics and records stay those of one training."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from verl_gsd.history import is_left_behind
from verl_gsd.run.checks.gsd_section import checkpoint_to_resume
from verl_gsd.run.compose import Line
from verl_gsd.rundir import RunDirectory


def check_resume(config: DictConfig, line: Line) -> Iterator[str]:
    """Report a checkpoint whose last steps a later attempt replaced."""
    checkpoint = checkpoint_to_resume(config)
    if line.resume is None or checkpoint is None:
        return
    if is_left_behind(RunDirectory(Path(config.trainer.default_local_dir)), checkpoint):
        path = shlex.quote(f"trainer.resume_from_path={checkpoint}")
        yield (
            f"{checkpoint}: a later attempt resumed from an earlier step, and the run's metrics and records are of its "
            "steps. Start a new run from the checkpoint: leave out resume=, and use the words of the run with "
            f"trainer.default_local_dir=FOLDER trainer.resume_mode=resume_path {path}."
        )
