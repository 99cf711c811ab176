"""The config of a run that verl's own command started. The trainer writes it, because reports and evaluations read it.

``verl-gsd`` has rejected secrets before it writes the config of its own runs (``launch.new_attempt``). Here a user's
script can have any, so that texts that look like secrets are left out, and all variables of the environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_gsd.run.compose import write_yaml
from verl_gsd.rundir import RunDirectory
from verl_gsd.secret_patterns import COLUMN_KEYS, SECRET_NAME, SECRET_VALUE

LEFT_OUT = "(left out)"


def without_secrets(config: DictConfig) -> dict[str, Any]:
    """The content of a config, with ``LEFT_OUT`` in place of secrets, and without variables of the environment."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(name): _without_secrets(str(name), value) for name, value in plain.items()}


def write_own_config(content: Mapping[str, Any], run: RunDirectory, attempt: int) -> None:
    """Write what ``without_secrets`` returned as the config of an attempt, and as that of the run.

    Raises:
        OSError: the folder cannot be written.
    """
    for path in (run.config, run.attempt_config(attempt)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_yaml(OmegaConf.create(dict(content)), path)


def _without_secrets(name: str, value: Any) -> Any:
    if name == "env_vars":
        return {}
    if isinstance(value, Mapping):
        return {str(key): _without_secrets(str(key), entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_secrets(name, entry) for entry in value]
    if isinstance(value, str) and (
        SECRET_VALUE.search(value) or (SECRET_NAME.search(name) and name not in COLUMN_KEYS)
    ):
        return LEFT_OUT
    return value
