"""Supported training engines of verl (``model_engine``), and removal of settings for the other engines.

Our hardware groups have settings for FSDP2 in ``fsdp_config``. verl rejects unknown sections in an actor's config, and
Megatron's config does not have this section. Hydra cannot omit a section depending on ``model_engine``, so this module
removes it from the composed config.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import wrapt
from omegaconf import DictConfig, OmegaConf, open_dict

from verl_gsd.run import our_runs

if TYPE_CHECKING:
    from verl_gsd.run.compose import Line

#: Engine -> the values of ``actor.strategy`` that verl-gsd supports.
SUPPORTED = {"dp": ("fsdp2", "fsdp"), "megatron": ("megatron",)}
_STRATEGY, _ROLES = "actor_rollout_ref.actor.strategy", ("actor", "ref")


def engine_of(config: DictConfig) -> str:
    """The engine of ``config``; verl's default if the key is missing."""
    return OmegaConf.select(config, "model_engine") or "dp"


def drop_other_engines(config: DictConfig) -> None:
    """Remove ``fsdp_config`` from the actor and the reference model, unless the engine is FSDP."""
    if engine_of(config) == "dp":
        return
    for role in _ROLES:
        section = config.actor_rollout_ref.get(role)
        if section is not None and "fsdp_config" in section:
            with open_dict(section):
                del section.fsdp_config


def check_engine(config: DictConfig, line: Line) -> Iterator[str]:
    """Report an engine that is not supported, or a strategy that belongs to another engine."""
    engine, strategy = engine_of(config), OmegaConf.select(config, _STRATEGY)
    is_cpu = config.trainer.device == "cpu"
    if engine not in SUPPORTED:
        on_gpus = " with a choice of hardware= that has GPUs" if is_cpu else ""
        yield (
            f"model_engine={engine}: verl-gsd supports only {' and '.join(SUPPORTED)}. Set model_engine=dp for FSDP2, "
            f"or model_engine=megatron{on_gpus}."
        )
    elif engine != "dp" and is_cpu:  # before the strategy, which hardware=cpu sets to FSDP2
        yield (
            f"model_engine={engine}: hardware=cpu supports only FSDP2. Set model_engine=dp, or set hardware= to one "
            "with GPUs."
        )
    elif strategy not in SUPPORTED[engine]:
        others = [name for name, strategies in SUPPORTED.items() if strategy in strategies and not is_cpu]
        instead = f", or model_engine={others[0]}" if others else ""
        yield (
            f"{_STRATEGY}={strategy} does not belong to model_engine={engine}. Set {_STRATEGY}="
            f"{SUPPORTED[engine][0]}{instead}."
        )


def check_engine_installed(config: DictConfig, line: Line) -> Iterator[str]:
    """Check that the packages for Megatron are installed. verl does not install them by default."""
    if engine_of(config) != "megatron":
        return
    vanilla = OmegaConf.select(config, "actor_rollout_ref.actor.megatron.vanilla_mbridge")
    needed = ("megatron.core", "mbridge" if vanilla else "megatron.bridge")
    if missing := [name for name in needed if not _is_importable(name)]:
        yield (
            f"model_engine=megatron: {' and '.join(missing)} cannot be imported on this machine. Install verl's extra "
            "megatron (verl[megatron]), or set model_engine=dp."
        )


def _is_importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the parent package is not installed
        return False


#: Keys whose values depend on the machine. They must be resolved on the machine that starts the run, because verl
#: resolves interpolations in a process on any node.
_MACHINE_KEYS = (
    "hardware.gpus_per_node",
    "hardware.gpu_memory_gib",
    "hardware.gpu_name",
    "actor_rollout_ref.model.override_config.attn_implementation",
    "critic.model.override_config.attn_implementation",
)


def _resolve_machine_keys(config: DictConfig) -> None:
    for key in _MACHINE_KEYS:
        if (value := OmegaConf.select(config, key)) is not None:
            OmegaConf.update(config, key, value)


def patch_main(device: Any) -> None:
    """Patch ``auto_set_device`` so that verl's ``main_ppo`` also removes sections of other engines.

    ``auto_set_device`` is the first function that ``main_ppo`` calls with the composed config. The patch also resolves
    the keys that depend on this machine, and marks the processes of a run that uses this package.
    """

    @wrapt.decorator
    def prepared(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        config = args[0] if args else kwargs["config"]
        if isinstance(config, DictConfig) and "actor_rollout_ref" in config:
            drop_other_engines(config)
            _resolve_machine_keys(config)
            if our_runs.uses_us(config):
                our_runs.mark_processes(config)
        return wrapped(*args, **kwargs)

    device.auto_set_device = prepared(device.auto_set_device)
