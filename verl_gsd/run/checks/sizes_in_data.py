"""What a training set's own group sizes (``verl-gsd plan --allocate``) come to under a config, said before it runs."""

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


def planned_sizes(config: DictConfig) -> Iterator[str]:
    """Lines as the audit's: the sizes, if the training set has any, and warnings of what does not go with them."""
    files = files_with(COLUMN, config.data.train_files)
    if not files:
        return
    sizes = np.concatenate([_sizes(file) for file in files])
    size, batch = config.actor_rollout_ref.rollout.n, config.data.train_batch_size
    named = f"data.train_files={', '.join(files)}"
    yield f"groups: of the sizes in column {COLUMN}, {sizes.min()} to {sizes.max()}, {sizes.mean():.6g} on average"
    if any(declaration.counts_groups for declaration in extension.active(OmegaConf.select(config, "algorithm.gsd"))):
        return  # mini-batches are counted in groups: no size costs an update, and nothing has to add up
    if sizes.sum() != size * len(sizes):
        yield (
            f"warning: {named} asks for {sizes.mean():.6g} rollouts a prompt and actor_rollout_ref.rollout.n={size}: "
            "verl sizes mini-batches by the latter and fills them up with padding, or makes further updates. Write the "
            "mean, or allocate again with --group-size."
        )
    others = "whichever groups finish first are trained on, and their rollouts do not add up to a step's."
    mode = config.trainer.v1.trainer_mode
    if mode not in ("sync", OUR_MODES["sync"]):
        yield f"warning: trainer.v1.trainer_mode={mode} with column {COLUMN}: {others} Write {OUR_MODES['sync']}."
    if OmegaConf.select(config, "algorithm.filter_groups.enable"):
        yield f"warning: algorithm.filter_groups.enable=true with column {COLUMN}: {others} Write false."
    if OmegaConf.select(config, "algorithm.gsd.sampler") is not None:
        yield (
            f"warning: algorithm.gsd.sampler with column {COLUMN}: what is drawn has other sizes than the data set, "
            "and no step's rollouts add up. Write sampler=uniform, or budget=adaptive on data without the column."
        )
    elif config.data.shuffle or (sizes[: len(sizes) // batch * batch].reshape(-1, batch).sum(1) != size * batch).any():
        yield (
            f"warning: a step's rollouts add up to {size} x {batch} on average only, and verl fills the rest up with "
            f"padding, which can cost an update. Allocate with --batch-size {batch} and write data.shuffle=false."
        )


def _sizes(file: str) -> np.ndarray:
    return pq.read_table(Path(file).expanduser(), columns=[COLUMN])[COLUMN].to_numpy()
