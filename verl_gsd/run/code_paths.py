"""Makes relative paths of code and models absolute before a run stores them, and rejects stored ones that are relative.

verl loads such a path from the folder in which the command was started. A resume may be started in another folder,
where somebody else may have put a file or a model of the same name. A model names code if ``trust_remote_code`` is on.

The name of a model on the hub has the form of a relative path, and a folder of that name comes before the hub. A stored
name is therefore rejected only if there is such a folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_gsd.errors import ConfigError
from verl_gsd.run.compose import Line
from verl_gsd.run.remote_paths import MODEL_KEYS, scheme_of

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
    """Make the relative paths of code and models in ``config`` and in the words of ``line`` absolute.

    A path that does not exist in the current folder stays: verl looks for some of them in its own package, and for
    models on the hub.

    Args:
        config: the composed config. It is changed.
        line: the whole line: of a resume, the stored words and the new ones.
        given: the line that the user typed.

    Returns:
        The line to store.

    Raises:
        ConfigError: a relative path of code, or of a model that is a folder here, comes from the stored words of a
            resume. The message names the key.
    """
    for key, path in _relative_paths(config):
        absolute = Path.cwd() / path.removeprefix(_FILE)
        if key in MODEL_KEYS and not absolute.is_dir():
            continue  # a name on the hub
        if line.resume is not None and not given.sets(key):
            if key in MODEL_KEYS:
                raise ConfigError(_shadowed(key, path))
            raise ConfigError(
                f"{key}={path}: the run to resume stored this path, which is relative to the folder where that run was "
                f"started. Add {key}= with the absolute path to the command."
            )
        if not absolute.exists() or "${" in str(absolute):  # such a folder's name would be an interpolation
            continue
        OmegaConf.update(config, key, str(absolute))
        others = (word for word, other in zip(line.overrides, line.keys, strict=True) if other != key)
        line = replace(line, overrides=(*others, f"++{key}={QuotedString(str(absolute), Quote.single).with_quotes()}"))
    return line


def check_stored_model(stored: Sequence[str], given: Line) -> None:
    """Check that the stored word ``model=`` of a run to resume still means what it meant at the start.

    Stored paths are absolute. Any other value is a model on the hub, but a folder of that name would come first.

    Args:
        stored: the stored words.
        given: the line that the user typed.

    Raises:
        ConfigError: the current folder has a folder of that name, and ``given`` has no ``model=``.
    """
    name = next((word.removeprefix("model=") for word in reversed(stored) if word.startswith("model=")), None)
    if name and given.model is None and not Path(name).is_absolute() and Path(name).is_dir():
        raise ConfigError(_shadowed("model", name))


def _shadowed(key: str, name: str) -> str:
    return (
        f"{key}={name}: the run to resume stored this name, and the current folder has a folder of that name, which "
        f"would be loaded in its place. Start the command in another folder, or add {key}= with an absolute path."
    )


def _relative_paths(config: DictConfig) -> Iterator[tuple[str, str]]:
    for key in (*CODE_KEYS, *MODEL_KEYS):
        try:
            path = OmegaConf.select(config, key)
        except OmegaConfBaseException:
            continue  # an interpolation that cannot be resolved is reported when the whole config is
        if not isinstance(path, str) or not path or scheme_of(path) not in (None, "file"):
            continue
        if not Path(path.removeprefix(_FILE)).is_absolute():
            yield key, path
