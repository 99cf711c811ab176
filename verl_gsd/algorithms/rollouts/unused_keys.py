"""Keys that have no effect under a sampler."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from verl_gsd.run.checks.unused_keys import UnusedKey


def _order_is_unused(config: DictConfig) -> bool:
    # verl also reads data.shuffle to decide whether data.train_max_samples and data.val_max_samples are the first rows.
    draws = OmegaConf.select(config, "algorithm.gsd.sampler") is not None
    return draws and config.data.train_max_samples <= 0 and config.data.val_max_samples <= 0


SAMPLER_UNUSED_KEYS = (
    UnusedKey(
        "data.shuffle",
        _order_is_unused,
        "algorithm.gsd.sampler draws the prompts. Set sampler=uniform for verl's order",
    ),
)
