"""Describe the group sizes that a training set has from ``verl-gsd plan --allocate``, before the run starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf

from verl_gsd import extension
from verl_gsd.errors import OUR_MODES
from verl_gsd.run.dataset import files_with
from verl_gsd.solve_rates.allocating import COLUMN


def dataset_group_sizes(config: DictConfig) -> Iterator[str]:
    """Lines like those of the audit: the group sizes, if the data has any, and warnings of settings that conflict."""
    files = files_with(COLUMN, config.data.train_files)
    if not files:
        return
    sizes = np.concatenate([_sizes(file) for file in files])
    size, batch = config.actor_rollout_ref.rollout.n, config.data.train_batch_size
    yield f"groups: sizes from column {COLUMN}, {sizes.min()} to {sizes.max()}, {sizes.mean():.6g} on average"
    if any(declaration.counts_groups for declaration in extension.active(OmegaConf.select(config, "algorithm.gsd"))):
        return  # mini-batches contain a fixed number of groups, so that sizes never cost an update
    if sizes.sum() != size * len(sizes):
        yield (
            f"warning: data.train_files={', '.join(files)} requests {sizes.mean():.6g} rollouts per prompt on average, "
            f"but actor_rollout_ref.rollout.n={size}. verl uses the latter for the size of mini-batches, and then adds "
            "padding or makes further updates. Set actor_rollout_ref.rollout.n to the average, or run "
            "`verl-gsd plan --allocate` again with --group-size."
        )
    sums_differ = "the step trains on the groups that finish first, and their rollouts do not add up to a step's."
    mode = config.trainer.v1.trainer_mode
    if mode not in ("sync", OUR_MODES["sync"]):
        yield (
            f"warning: trainer.v1.trainer_mode={mode} with column {COLUMN}: {sums_differ} Set "
            f"trainer.v1.trainer_mode={OUR_MODES['sync']}."
        )
    if OmegaConf.select(config, "algorithm.filter_groups.enable"):
        yield (
            f"warning: algorithm.filter_groups.enable=true with column {COLUMN}: {sums_differ} Set "
            "algorithm.filter_groups.enable=false."
        )
    if OmegaConf.select(config, "algorithm.gsd.sampler") is not None:
        yield (
            f"warning: algorithm.gsd.sampler with column {COLUMN}: the sampled prompts have another average size than "
            "the data set, so that the rollouts of a step do not add up. Set sampler=uniform data.shuffle=false, or "
            "use budget=adaptive with data that does not have the column."
        )
    elif config.data.shuffle or (sizes[: len(sizes) // batch * batch].reshape(-1, batch).sum(1) != size * batch).any():
        yield (
            f"warning: the rollouts of a step add up to {size} x {batch} only on average. verl fills the difference "
            "with padding, which can cost an update. Run `verl-gsd plan --allocate` again with "
            f"--batch-size {batch}, and set data.shuffle=false."
        )


def _sizes(file: str) -> np.ndarray:
    return pq.read_table(Path(file).expanduser(), columns=[COLUMN])[COLUMN].to_numpy()
