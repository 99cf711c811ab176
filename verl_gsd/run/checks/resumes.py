"""Checks that a run can go on from its checkpoint, and that its metrics and records stay those of one training."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from verl_gsd.checkpoints import world_size
from verl_gsd.history import is_left_behind
from verl_gsd.run.checks.gsd_section import checkpoint_to_resume
from verl_gsd.run.compose import Line
from verl_gsd.rundir import RunDirectory
from verl_gsd.scalars import is_whole


def check_resume(config: DictConfig, line: Line) -> Iterator[str]:
    """Report a checkpoint whose last steps a later attempt replaced, or that this number of GPUs cannot load."""
    checkpoint = checkpoint_to_resume(config)
    if checkpoint is None:
        return
    yield from _check_world(config, checkpoint)
    if line.resume is None:
        return
    if is_left_behind(RunDirectory(Path(config.trainer.default_local_dir)), checkpoint):
        path = shlex.quote(f"trainer.resume_from_path={checkpoint}")
        yield (
            f"{checkpoint}: a later attempt resumed from an earlier step, and the run's metrics and records are of its "
            "steps. Start a new run from the checkpoint: leave out resume=, and use the words of the run with "
            f"trainer.default_local_dir=FOLDER trainer.resume_mode=resume_path {path}."
        )


def _check_world(config: DictConfig, checkpoint: Path) -> Iterator[str]:
    """Report another number of processes than saved an FSDP checkpoint. verl looks for the files of its own number."""
    trainer = config.trainer
    try:
        saved = world_size(checkpoint / "actor")
    except (OSError, ValueError):
        return  # of another engine, or reported as damaged
    if config.actor_rollout_ref.actor.strategy not in ("fsdp", "fsdp2"):
        return
    if all(is_whole(number, 1) for number in (trainer.nnodes, trainer.n_gpus_per_node)):
        now = trainer.nnodes * trainer.n_gpus_per_node
        if now != saved:
            yield (
                f"trainer.nnodes={trainer.nnodes} and trainer.n_gpus_per_node={trainer.n_gpus_per_node}: {checkpoint} "
                f"was saved by {saved} processes, and verl loads it with the same number only, not with {now}. Set "
                f"them so that their product is {saved}. Or export the checkpoint (verl-gsd export) and start a new "
                "run with the exported folder as actor_rollout_ref.model.path."
            )
