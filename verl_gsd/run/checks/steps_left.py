"""Checks that a run that resumes has steps left.

verl trains until ``trainer.total_epochs`` or ``trainer.total_training_steps`` is reached, whichever comes first. It
starts everything for a finished run, trains no step, and ends without an error (verl issue 7401).
"""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig

from verl_gsd.checkpoints import step_of
from verl_gsd.run.checks.data_files import has_own_dataset
from verl_gsd.run.checks.gsd_section import checkpoint_to_resume
from verl_gsd.run.compose import Line
from verl_gsd.run.dataset import count_rows
from verl_gsd.scalars import is_whole


def check_steps_left(config: DictConfig, line: Line) -> Iterator[str]:
    """Report a checkpoint at which the run is already finished, as far as the data files show it.

    Prompts that verl's dataset drops because of their length are counted here. The trainer checks again without them.
    """
    yield from finished(config, _steps_per_epoch(config))


def planned_steps(config: DictConfig) -> int | None:
    """The number of the last step, as far as the data files show it: prompts that are too long are counted here.

    None if neither the files nor ``trainer.total_training_steps`` tell.
    """
    per_epoch, epochs, total = (
        _steps_per_epoch(config),
        config.trainer.total_epochs,
        config.trainer.total_training_steps,
    )
    limits = [per_epoch * epochs] if per_epoch is not None and is_whole(epochs, 1) else []
    return min([*limits, *([total] if is_whole(total, 1) else [])], default=None)


def _steps_per_epoch(config: DictConfig) -> int | None:
    rows, batch, most = count_rows(config.data.train_files), config.data.train_batch_size, config.data.train_max_samples
    if rows is None or has_own_dataset(config) or not is_whole(batch, 1):
        return None
    return (min(rows, most) if is_whole(most, 1) else rows) // batch


def finished(config: DictConfig, steps_per_epoch: int | None) -> Iterator[str]:
    """One sentence per key that must be raised, because the checkpoint to resume has all steps that it allows.

    Args:
        steps_per_epoch: None if it is not known. A number that is too large never reports a run that has steps left.
    """
    checkpoint = checkpoint_to_resume(config)
    step = None if checkpoint is None else step_of(checkpoint)
    trainer = config.trainer
    if step is None or (trainer.get("val_only") and trainer.get("val_before_train")):  # such a run only validates
        return
    total, epochs = trainer.total_training_steps, trainer.total_epochs
    if is_whole(total, 1) and step >= total:
        yield f"trainer.total_training_steps={total}: the checkpoint already has {step} steps. Set a larger number."
    if steps_per_epoch and is_whole(epochs, 1) and step // steps_per_epoch >= epochs:
        yield (
            f"trainer.total_epochs={epochs}: the checkpoint already has {step} steps, and an epoch has "
            f"{steps_per_epoch}. Set it to {step // steps_per_epoch + 1} or more."
        )
