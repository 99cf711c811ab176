"""Keys that have no effect under a sampler."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from verl_gsd.unused_keys import UnusedKey


def _order_is_unused(config: DictConfig) -> bool:
    # With data.train_max_samples or data.val_max_samples, data.shuffle also decides whether verl takes the first rows.
    has_sampler = OmegaConf.select(config, "algorithm.gsd.sampler") is not None
    return has_sampler and config.data.train_max_samples <= 0 and config.data.val_max_samples <= 0


SAMPLER_UNUSED_KEYS = (
    UnusedKey(
        "data.shuffle",
        _order_is_unused,
        "algorithm.gsd.sampler samples the prompts. Set sampler=uniform for verl's order",
    ),
)
