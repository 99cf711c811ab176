"""Hydra config groups ``algo/ task/ hardware/ budget/ sampler/ logger/ recipe/``: one YAML file per choice, and nothing
else to register. Recipes have one folder per paper, which is a part of their names: ``recipe=gsd/qwen2.5_math_7b``.

``store_groups`` puts each file into Hydra's ConfigStore, so that any Hydra application in a process that loaded the
plugin, verl's own ``main_ppo`` included, composes ``+algo=dr_grpo`` and lists the choices on ``+algo=nope``.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from verl_gsd.config.attention import attention_here

GROUPS = ("algo", "task", "hardware", "budget", "sampler", "logger", "recipe")
_HERE = Path(__file__).parent
#: Beside the package in a checkout, inside it in a wheel.
_RECIPES = next((p for p in (_HERE.parent / "recipes", _HERE.parents[1] / "recipes") if p.is_dir()), _HERE / "recipe")


def choices(group: str) -> list[str]:
    """The names that ``group=NAME`` accepts, sorted; files whose name starts with ``_`` are shared parts."""
    return [name for name in _files(group) if not name.rpartition("/")[2].startswith("_")]


def _folder(group: str) -> Path:
    return _RECIPES if group == "recipe" else _HERE / group


def _files(group: str) -> list[str]:
    folder = _folder(group)
    return sorted(path.relative_to(folder).as_posix().removesuffix(".yaml") for path in folder.rglob("*.yaml"))


def load(group: str, name: str) -> DictConfig:
    """One YAML file as it is, interpolations open."""
    node = OmegaConf.load(_folder(group) / f"{name}.yaml")
    assert isinstance(node, DictConfig)
    return node


@functools.cache
def store_groups() -> None:
    """Register every YAML file below this folder, once; each merges at the root of the config (package ``_global_``).

    And the functions they interpolate with: ``${verl_gsd.equal:a,b}``, ``${verl_gsd.quotient:a,b}`` (at least 1),
    ``${verl_gsd.rate_an_update:rate,batch,mini_batch}``, the learning rate of each of several updates that share a
    batch, by the square-root rule from that of one update, ``${verl_gsd.attention:}``, the attention that this
    environment trains with, and ``${verl_gsd.strategy:engine}``, the strategy of an engine: FSDP2 for verl's ``dp``.
    """
    OmegaConf.register_new_resolver("verl_gsd.equal", lambda a, b: a == b, replace=True)
    OmegaConf.register_new_resolver("verl_gsd.quotient", _quotient, replace=True)
    OmegaConf.register_new_resolver("verl_gsd.rate_an_update", _rate_an_update, replace=True)
    OmegaConf.register_new_resolver("verl_gsd.attention", attention_here, replace=True)
    OmegaConf.register_new_resolver("verl_gsd.strategy", lambda e: "fsdp2" if e == "dp" else e, replace=True)
    store = ConfigStore.instance()
    for group in GROUPS:
        for name in _files(group):
            folder, _, stem = f"{group}/{name}".rpartition("/")
            store.store(
                group=folder,
                name=stem,
                node=load(group, name),
                package="_global_",
                provider="verl-gsd",
            )


def _quotient(whole: Any, parts: int) -> Any:
    return max(1, whole // parts) if isinstance(whole, int) else whole


def _rate_an_update(rate: float, batch: Any, mini_batch: Any) -> float:
    if not (isinstance(batch, int) and isinstance(mini_batch, int)):
        return rate  # what is no number is named by the checks of a resolved config
    return rate / math.sqrt(max(1, batch / max(1, mini_batch)))
