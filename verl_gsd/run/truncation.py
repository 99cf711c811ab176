"""Whether a run's agent loops obey ``data.truncation``; ``trainer/prompt_truncation.py`` makes them."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf, open_dict

#: Where a trainer of ours tells verl's agent loops to obey the key.
_OBEY = "trainer.v1.gsd_obey_truncation"


def obey_truncation(config: DictConfig) -> None:
    """Make the agent loops of this run obey ``data.truncation``. ``config`` is given to them later."""
    with open_dict(config):
        OmegaConf.update(config, _OBEY, True, force_add=True)


def is_obeyed(config: DictConfig) -> bool:
    """Whether ``obey_truncation`` was called."""
    return bool(OmegaConf.select(config, _OBEY))
