"""Tells the runs that use this package from other runs of verl, in the driver and in every worker."""

from __future__ import annotations

import os

from omegaconf import DictConfig, OmegaConf

from verl_gsd.errors import OUR_MODES

#: Environment variable of a run's workers if the run uses this package. ``mark_processes`` sets it to 1.
MARK = "VERL_GSD_PART_OF_RUN"


def uses_us(config: DictConfig) -> bool:
    """Whether a run of ``config`` uses this package: its estimator, one of its trainer modes, or its config section."""
    return (
        OmegaConf.select(config, "algorithm.adv_estimator") == "gsd"
        or OmegaConf.select(config, "trainer.v1.trainer_mode") in OUR_MODES.values()
        or OmegaConf.select(config, "algorithm.gsd") is not None
    )


def mark_processes(config: DictConfig) -> None:
    """Mark the processes of a run that uses this package: Ray's workers and their children.

    Call it before ``ray.init``, which passes ``runtime_env.env_vars`` to all workers of the run.
    """
    runtime_env = OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env") or {}
    variables = OmegaConf.to_container(OmegaConf.create(runtime_env)).get("env_vars") or {}
    OmegaConf.update(
        config, "ray_kwargs.ray_init.runtime_env.env_vars", variables | {MARK: "1"}, merge=False, force_add=True
    )


def is_marked() -> bool:
    """Whether this process belongs to a run that uses this package."""
    return os.environ.get(MARK) == "1"
