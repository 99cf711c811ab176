"""Settings that a resumed run keeps although the defaults have changed since it started.

A resume composes the run's overrides again. If the default of a setting has changed since then, the resumed run would
have another value than the run had before. The state in a checkpoint names the settings that it depends on
(``Extension.fingerprint``), so their values stay.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from verl_gsd.run.compose import Line, compose_config
from verl_gsd.state import saved_settings

#: The dotted keys of our settings.
_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
#: Keys that can name a file, a server or an environment variable.
_NAMES_SOMETHING = re.compile(r"judge|url|path|file|env|key|model")


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
        if _is_harmless(key, value)
        and isinstance(OmegaConf.select(config, key.rpartition(".")[0]), DictConfig)
        and not line.sets(key)
        and _plain(config, key) != value
    ]


def _is_harmless(key: str, value: object) -> bool:
    """Whether a setting can neither name a file, a server or a variable, nor read one. A checkpoint is not signed.

    A resume whose settings differ in another key is rejected, as every resume with other settings. A key with other
    characters could end in the middle of the word (``a=1,b``).
    """
    is_harmless_key = _KEY.fullmatch(key) is not None and _NAMES_SOMETHING.search(key) is None
    return is_harmless_key and (
        value is None or isinstance(value, bool | int | float) or _is_word(value) or _is_list_of_numbers(value)
    )


def _is_word(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_-]*", value) is not None


def _is_list_of_numbers(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, int | float) for entry in value)


def _plain(config: DictConfig, key: str) -> object:
    value = OmegaConf.select(config, key)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
