"""Checks that need verl, whose import takes seconds. They run in the training process before it starts Ray."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Collection, Iterator

from omegaconf import DictConfig, OmegaConf

from verl_gsd import extension
from verl_gsd.errors import OUR_MODES
from verl_gsd.run.checks.gsd_section import (
    check_extension_services,
    check_extensions_build,
    check_third_party_extensions,
    check_third_party_memory,
    check_unknown_sections,
)
from verl_gsd.run.checks.hub_models import hub_asked_once
from verl_gsd.run.checks.prompt_lengths import check_prompts
from verl_gsd.run.checks.validate import as_list, raise_problems
from verl_gsd.run.footprint import has_adapter
from verl_gsd.run.messages import Message
from verl_gsd.run.our_runs import uses_us
from verl_gsd.run.verl_hooks import failures

PLUGIN = "verl_gsd.trainer.plugin"


def validate_with_verl(config: DictConfig, runs_here: bool = True) -> list[Message]:
    """Check the plugin, names, the reward function, servers, the model's name and the data, and run verl's own checks.

    Args:
        runs_here: whether this machine can reach the run's data, verifier and servers.

    Returns:
        Messages about the model and the data for the user.

    Raises:
        ConfigError: lists every problem found.
    """
    raise_problems(
        list(check_plugin_loaded())
        or [
            *_check_names(config),
            *(failures() if uses_us(config) else ()),
            *extension.rejected(),  # importing verl loads plugins that register extensions, and verl hides their errors
            *check_unknown_sections(config),
            *check_third_party_extensions(config, files=runs_here),
            *check_extensions_build(config),
            *(check_third_party_memory(config) if runs_here else ()),
            *(check_reward_function(config) if runs_here else ()),
            *(check_extension_services(config) if runs_here else ()),
        ]
        or list(_check_verl_config(config))
    )
    if not runs_here:
        return []
    with hub_asked_once(config) as hub:
        raise_problems(hub.problems)
        report = check_prompts(config, remote=False, counts=not hub.unknown)
    raise_problems(report.problems)
    return [*hub.messages, *report.messages]


#: verl's own modes and ours. Other names are looked up in verl's registry, which imports vLLM.
_TRAINER_MODES = (*OUR_MODES, *OUR_MODES.values())


def check_plugin_loaded() -> Iterator[str]:
    """Report that verl did not load our plugin, and why.

    verl loads plugins when it is imported, and hides their exceptions. This function imports the plugin again to get
    its exception.
    """
    importlib.import_module("verl")
    if PLUGIN in sys.modules:
        return
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto")
    try:
        importlib.import_module(PLUGIN)
    except Exception as error:  # any error is the one that verl hid
        yield f"verl could not load {PLUGIN}: {type(error).__name__}: {error}"
    else:
        yield (
            f"verl did not load {PLUGIN} (VERL_USE_EXTERNAL_PLUGINS={policy}). Install this package in the environment "
            "of verl. Unset VERL_USE_EXTERNAL_PLUGINS, or include verl_gsd in its list."
        )


def _check_names(config: DictConfig) -> Iterator[str]:
    """Report unknown names that verl would look up only later, in a worker."""
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
    from verl.utils.tracking import Tracking

    mode = config.trainer.v1.trainer_mode
    modes: Collection[str] = _TRAINER_MODES
    if mode not in modes:
        from verl.trainer.ppo.v1 import trainer_base

        modes = trainer_base.TRAINER_REGISTRY
    loss = config.actor_rollout_ref.actor.policy_loss.loss_mode
    for key, names, value in (
        ("trainer.v1.trainer_mode", modes, mode),
        ("algorithm.adv_estimator", ADV_ESTIMATOR_REGISTRY, config.algorithm.adv_estimator),
        ("actor_rollout_ref.actor.policy_loss.loss_mode", POLICY_LOSS_REGISTRY, loss),
        *(("trainer.logger", Tracking.supported_backend, name) for name in as_list(config.trainer.logger)),
    ):
        if value not in names:
            yield f"{key}={value}: no such name. Set it to one of {', '.join(sorted(map(str, names)))}."


def check_reward_function(config: DictConfig) -> Iterator[str]:
    """Load the reward function: if verl's reward workers cannot load it, verl continues, and all rewards fail."""
    from verl.utils.import_utils import load_extern_object

    function = config.reward.custom_reward_function
    if function.path:
        try:
            load_extern_object(module_path=function.path, object_name=function.name)
        except Exception as error:  # the user's module is imported: it may raise anything
            reason = f"{type(error).__name__}: {error}"
            yield f"reward.custom_reward_function.path={function.path} name={function.name}: {reason}"


def _check_verl_config(config: DictConfig) -> Iterator[str]:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    if has_adapter(config):
        # verl imports vLLM to check the rank, unless the adapter is merged. A machine that only starts runs may have no
        # vLLM, and check_lora checks the rank.
        config = config.copy()
        OmegaConf.update(config, "actor_rollout_ref.model.lora.merge", True, force_add=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Disabled critic")  # group-based algorithms have no critic
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            validate_config(config, need_reference_policy(config), need_critic(config))
            omega_conf_to_dataclass(config.actor_rollout_ref.rollout)  # verl checks it only in its workers
    except Exception as error:  # assertions, type errors and others from verl's dataclasses: all say what is wrong
        yield f"verl rejects this config: {error}"
