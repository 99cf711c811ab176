"""The Hydra config groups ``algo/ task/ hardware/ budget/ sampler/ silent_groups/ logger/ recipe/``.

Each YAML file is one choice of its group; nothing else has to be registered. Recipes have one folder per paper, and its
name is part of theirs: ``recipe=PAPER/NAME``. An installed package with an extension can add choices of ``algo=``
(``Declaration.configs``).

``store_groups`` adds all files to Hydra's ConfigStore. Any Hydra application in a process that loaded the plugin can
then compose ``+algo=dr_grpo``, and lists the choices for ``+algo=nope``. This includes verl's own ``main_ppo``.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from verl_gsd.config.attention import attention_here
from verl_gsd.config_choices import GROUPS, files
from verl_gsd.config_choices import choices as choices
from verl_gsd.errors import ConfigError


def load(group: str, name: str) -> DictConfig:
    """One YAML file, with its interpolations unresolved and without the files in its ``defaults``."""
    node = OmegaConf.load(files(group)[name])
    assert isinstance(node, DictConfig)
    return node


def load_with_defaults(group: str, name: str) -> DictConfig:
    """One YAML file, merged onto the files of the same group that its ``defaults`` name before ``_self_``.

    Not for recipes, whose ``defaults`` name files of other groups.

    Raises:
        ConfigError: the defaults name something else than a file of the group.
    """
    node = load(group, name)
    bases = [base for base in node.pop("defaults", []) if base != "_self_"]
    for base in bases:
        if base not in files(group):
            raise ConfigError(
                f"{group}={name}: its defaults name {base}, which is no file of {group}. Name one of "
                f"{', '.join(files(group))}."
            )
    merged = OmegaConf.merge(*(load_with_defaults(group, base) for base in bases), node)
    assert isinstance(merged, DictConfig)
    return merged


@functools.cache
def store_groups() -> None:
    """Register all YAML files of the groups, and the resolvers that they use. Further calls do nothing.

    Each file merges at the root of the config (package ``_global_``). The resolvers are:

    - ``${verl_gsd.equal:a,b}``: whether a equals b.
    - ``${verl_gsd.quotient:a,b}``: the integer quotient, at least 1.
    - ``${verl_gsd.rate_an_update:rate,batch,mini_batch}``: the learning rate per update if a batch has several updates,
      from the rate for one update per batch, by the square-root rule.
    - ``${verl_gsd.attention:}``: the attention implementation with which this environment trains.
    - ``${verl_gsd.strategy:engine}``: the strategy of an engine. It is FSDP2 for verl's ``dp``.
    """
    OmegaConf.register_new_resolver("verl_gsd.equal", lambda a, b: a == b, replace=True)
    OmegaConf.register_new_resolver("verl_gsd.quotient", _quotient, replace=True)
    OmegaConf.register_new_resolver("verl_gsd.rate_an_update", _rate_per_update, replace=True)
    OmegaConf.register_new_resolver("verl_gsd.attention", attention_here, replace=True)
    OmegaConf.register_new_resolver("verl_gsd.strategy", lambda e: "fsdp2" if e == "dp" else e, replace=True)
    store = ConfigStore.instance()
    for group in GROUPS:
        for name in files(group):
            folder, _, stem = f"{group}/{name}".rpartition("/")
            store.store(
                group=folder,
                name=stem,
                node=load(group, name),
                package="_global_",
                provider="verl-gsd",
            )


def _quotient(number: Any, divisor: int) -> Any:
    return max(1, number // divisor) if isinstance(number, int) else number


def _rate_per_update(rate: float, batch: Any, mini_batch: Any) -> float:
    if not (isinstance(batch, int) and isinstance(mini_batch, int)):
        return rate  # the checks of the resolved config report sizes that are not integers
    return rate / math.sqrt(max(1, batch / max(1, mini_batch)))
