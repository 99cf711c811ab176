"""What only verl can say is wrong, asked in the training process before it starts Ray: importing verl takes seconds."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Collection, Iterator

from omegaconf import DictConfig

from verl_gsd import extension
from verl_gsd.errors import OUR_MODES
from verl_gsd.run.checks.gsd_section import (
    check_extension_services,
    extensions_unusable,
    foreign_extensions_wrong,
    foreign_memory_restorable,
    own_keys_unknown,
)
from verl_gsd.run.checks.prompt_lengths import check_prompts
from verl_gsd.run.checks.validate import as_list, raise_problems
from verl_gsd.run.messages import Message

PLUGIN = "verl_gsd.trainer.plugin"


def validate_with_verl(config: DictConfig, runs_here: bool = True) -> list[Message]:
    """Check what needs verl: the plugin, names, the reward function, servers, the data, and verl's own checks.

    Args:
        runs_here: whether the run's data, verifier and servers can be reached from this machine.

    Returns:
        What the user should know of the data.

    Raises:
        ConfigError: lists every problem found.
    """
    raise_problems(
        list(plugin_absent())
        or [
            *_unknown_names(config),
            *extension.rejected(),  # plugins of verl's register when verl is imported, and verl hides what they raise
            *own_keys_unknown(config),
            *foreign_extensions_wrong(config, files=runs_here),
            *extensions_unusable(config),
            *(foreign_memory_restorable(config) if runs_here else ()),
            *(_reward_function_missing(config) if runs_here else ()),
            *(check_extension_services(config) if runs_here else ()),
        ]
        or list(_verl_refuses(config))
    )
    if not runs_here:
        return []
    found = check_prompts(config, remote=False)
    raise_problems(found.problems)
    return found.messages


#: verl's own modes and ours. Asking the registry imports vLLM, so it is asked about other names alone.
_TRAINER_MODES = (*OUR_MODES, *OUR_MODES.values())


def plugin_absent() -> Iterator[str]:
    """verl loads plugins on import and swallows what they raise: import it once more for its exception to be seen."""
    importlib.import_module("verl")
    if PLUGIN in sys.modules:
        return
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto")
    try:
        importlib.import_module(PLUGIN)
    except Exception as error:  # whatever it is, it is what verl hid
        yield f"verl could not load {PLUGIN}: {type(error).__name__}: {error}"
    else:
        yield (
            f"verl did not load {PLUGIN} (VERL_USE_EXTERNAL_PLUGINS={policy}). Install this package where verl is, and "
            "leave that variable unset or let it name verl_gsd."
        )


def _unknown_names(config: DictConfig) -> Iterator[str]:
    """Names that verl would only look up in a worker."""
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
    from verl.utils.tracking import Tracking

    mode = config.trainer.v1.trainer_mode
    modes: Collection[str] = _TRAINER_MODES
    if mode not in modes:
        from verl.trainer.ppo.v1 import trainer_base

        modes = trainer_base.TRAINER_REGISTRY
    loss = config.actor_rollout_ref.actor.policy_loss.loss_mode
    for key, known, value in (
        ("trainer.v1.trainer_mode", modes, mode),
        ("algorithm.adv_estimator", ADV_ESTIMATOR_REGISTRY, config.algorithm.adv_estimator),
        ("actor_rollout_ref.actor.policy_loss.loss_mode", POLICY_LOSS_REGISTRY, loss),
        *(("trainer.logger", Tracking.supported_backend, name) for name in as_list(config.trainer.logger)),
    ):
        if value not in known:
            yield f"{key}={value}: no such name. Write one of {', '.join(sorted(map(str, known)))}."


def _reward_function_missing(config: DictConfig) -> Iterator[str]:
    """verl loads it in its reward workers and then goes on over groups that all fail."""
    from verl.utils.import_utils import load_extern_object

    function = config.reward.custom_reward_function
    if function.path:
        try:
            load_extern_object(module_path=function.path, object_name=function.name)
        except Exception as error:  # the user's module is imported: it may raise anything
            reason = f"{type(error).__name__}: {error}"
            yield f"reward.custom_reward_function.path={function.path} name={function.name}: {reason}"


def _verl_refuses(config: DictConfig) -> Iterator[str]:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Disabled critic")  # no algorithm of a group has one
            validate_config(config, need_reference_policy(config), need_critic(config))
    except Exception as error:  # assertions, type errors, whatever verl's dataclasses raise: all say what is wrong
        yield f"verl refuses this config: {error}"
