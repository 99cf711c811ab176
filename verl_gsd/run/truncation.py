"""Records in the config that agent loops must obey ``data.truncation``, for ``trainer/prompt_truncation.py``."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf, open_dict

#: The key in which our trainers tell verl's agent loops to obey data.truncation.
_OBEY = "trainer.v1.gsd_obey_truncation"


def obey_truncation(config: DictConfig) -> None:
    """Make the agent loops of this run obey ``data.truncation``. ``config`` is passed to them later."""
    with open_dict(config):
        OmegaConf.update(config, _OBEY, True, force_add=True)


def is_obeyed(config: DictConfig) -> bool:
    """Whether ``obey_truncation`` was called."""
    return bool(OmegaConf.select(config, _OBEY))
