"""Makes relative paths of code absolute before a run stores them, and rejects stored ones that are relative.

verl loads such a path from the folder in which the command was started. A resume may be started in another folder,
where somebody else may have put a file of the same name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_gsd.errors import ConfigError
from verl_gsd.run.compose import Line
from verl_gsd.run.remote_paths import scheme_of

_ROLLOUT = "actor_rollout_ref.rollout"
#: The keys of verl 0.9.1 that name a file of code, or a file that names code to import.
CODE_KEYS = (
    "data.custom_cls.path",
    "data.tool_config_path",
    "data.function_tool_path",
    "reward.custom_reward_function.path",
    "reward.reward_manager.module.path",
    "custom_reward_function.path",
    "reward_model.reward_loop_module_path",
    f"{_ROLLOUT}.multi_turn.tool_config_path",
    f"{_ROLLOUT}.multi_turn.function_tool_path",
    f"{_ROLLOUT}.agent.agent_loop_config_path",
    f"{_ROLLOUT}.agent.custom_async_server.path",
    "trainer.v1.sampler.custom_sampler.path",
)
_FILE = "file://"


def fix_code_paths(config: DictConfig, line: Line, given: Line) -> Line:
    """Make the relative paths of code in ``config`` and in the words of ``line`` absolute.

    A path that does not exist in the current folder stays: verl looks for some of them in its own package.

    Args:
        config: the composed config. It is changed.
        line: the whole line: of a resume, the stored words and the new ones.
        given: the line that the user typed.

    Returns:
        The line to store.

    Raises:
        ConfigError: a relative path comes from the stored words of a resume. The message names the key.
    """
    for key, path in _relative_paths(config):
        if line.resume is not None and not given.sets(key):
            raise ConfigError(
                f"{key}={path}: the run to resume stored this path, which is relative to the folder where that run was "
                f"started. Add {key}= with the absolute path to the command."
            )
        absolute = Path.cwd() / path.removeprefix(_FILE)
        if not absolute.exists() or "${" in str(absolute):  # such a folder's name would be an interpolation
            continue
        OmegaConf.update(config, key, str(absolute))
        others = (word for word, other in zip(line.overrides, line.keys, strict=True) if other != key)
        line = replace(line, overrides=(*others, f"++{key}={QuotedString(str(absolute), Quote.single).with_quotes()}"))
    return line


def _relative_paths(config: DictConfig) -> Iterator[tuple[str, str]]:
    for key in CODE_KEYS:
        try:
            path = OmegaConf.select(config, key)
        except OmegaConfBaseException:
            continue  # an interpolation that cannot be resolved is reported when the whole config is
        if not isinstance(path, str) or not path or scheme_of(path) not in (None, "file"):
            continue
        if not Path(path.removeprefix(_FILE)).is_absolute():
            yield key, path
