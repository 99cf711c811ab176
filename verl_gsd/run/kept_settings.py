"""Settings that a resumed run keeps although the defaults have changed since it started.

A resume composes the run's overrides again. If the default of a setting has changed since then, the resumed run would
have another value than the run had before. The state in a checkpoint names the settings that it depends on
(``Extension.fingerprint``), so their values stay.
"""

from __future__ import annotations

import json
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from verl_gsd.run.compose import Line, compose_config
from verl_gsd.state import saved_settings


def settings_of_state(line: Line, checkpoint: Path) -> list[str]:
    """Words that give ``line`` the settings with which the state in ``checkpoint`` was saved.

    Only settings that the line leaves to their defaults are kept, and only those of sections that its config has. If
    the line sets another value, the checks of a resume reject it.

    Args:
        line: the stored line of the run with the new words.

    Raises:
        ConfigError: as ``compose_config``.
    """
    saved = {
        f"{section}.{name}": value
        for section, settings in saved_settings(checkpoint).items()
        if section.startswith("algorithm.gsd.") and isinstance(settings, dict)
        for name, value in settings.items()
    }
    if not saved:
        return []
    config = compose_config(line)
    return [
        f"++{key}={json.dumps(value)}"
        for key, value in saved.items()
        if isinstance(OmegaConf.select(config, key.rpartition(".")[0]), DictConfig)
        and not line.sets(key)
        and _plain(config, key) != value
    ]


def _plain(config: DictConfig, key: str) -> object:
    value = OmegaConf.select(config, key)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
