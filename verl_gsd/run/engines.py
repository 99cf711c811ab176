"""verl's training engines (``model_engine``): those we support, and the settings of the ones not chosen.

A hardware group has settings for FSDP2 in ``fsdp_config``. verl instantiates an actor's config strictly, and Megatron's
has no such section. Hydra cannot leave a section out by ``model_engine``, so it is dropped from the composed config.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import wrapt
from omegaconf import DictConfig, OmegaConf, open_dict

if TYPE_CHECKING:
    from verl_gsd.run.compose import Line

#: The strategies of each engine's actor that we support.
SUPPORTED = {"dp": ("fsdp2", "fsdp"), "megatron": ("megatron",)}
_STRATEGY, _ROLES = "actor_rollout_ref.actor.strategy", ("actor", "ref")


def engine_of(config: DictConfig) -> str:
    """The engine that ``config`` names; verl's default where the key is missing."""
    return OmegaConf.select(config, "model_engine") or "dp"


def drop_other_engines(config: DictConfig) -> None:
    """Remove ``fsdp_config`` from actor and reference model unless verl's FSDP engine trains them."""
    if engine_of(config) == "dp":
        return
    for role in _ROLES:
        section = config.actor_rollout_ref.get(role)
        if section is not None and "fsdp_config" in section:
            with open_dict(section):
                del section.fsdp_config


def check_engine(config: DictConfig, line: Line) -> Iterator[str]:
    """An engine that we do not support, or a strategy of another engine than the one chosen."""
    engine, strategy = engine_of(config), OmegaConf.select(config, _STRATEGY)
    if engine not in SUPPORTED:
        yield (
            f"model_engine={engine}: verl-gsd supports {' and '.join(SUPPORTED)}. Set model_engine=dp for FSDP2, or "
            "model_engine=megatron."
        )
    elif strategy not in SUPPORTED[engine]:
        others = [name for name, strategies in SUPPORTED.items() if strategy in strategies]
        instead = f", or model_engine={others[0]}" if others else ""
        yield (
            f"{_STRATEGY}={strategy} does not belong to model_engine={engine}. Set {_STRATEGY}="
            f"{SUPPORTED[engine][0]}{instead}."
        )
    elif engine != "dp" and config.trainer.device == "cpu":
        yield f"model_engine={engine}: hardware=cpu trains with FSDP2. Set model_engine=dp, or use a GPU group."


def check_engine_installed(config: DictConfig, line: Line) -> Iterator[str]:
    """Megatron is a set of packages that verl does not bring by itself."""
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
    except ModuleNotFoundError:  # its parent package
        return False


#: What a hardware group reads off the machine that starts the run. verl resolves it in a process on any node.
_OF_THE_MACHINE = (
    "hardware.gpus_per_node",
    "hardware.gpu_memory_gib",
    "actor_rollout_ref.model.override_config.attn_implementation",
    "critic.model.override_config.attn_implementation",
)


def _settle(config: DictConfig) -> None:
    for key in _OF_THE_MACHINE:
        if (value := OmegaConf.select(config, key)) is not None:
            OmegaConf.update(config, key, value)


def patch_main(device: Any) -> None:
    """Make verl's own ``main_ppo`` drop other engines' sections too, and settle what is read off its machine.

    ``auto_set_device`` is the first function that it calls with the composed config.
    """

    @wrapt.decorator
    def dropping(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        config = args[0] if args else kwargs["config"]
        if isinstance(config, DictConfig) and "actor_rollout_ref" in config:
            drop_other_engines(config)
            _settle(config)
        return wrapped(*args, **kwargs)

    device.auto_set_device = dropping(device.auto_set_device)
