"""The Hydra config groups ``algo/ task/ hardware/ budget/ sampler/ silent_groups/ logger/ recipe/``.

Each YAML file is one choice of its group; nothing else has to be registered. Recipes have one folder per paper, and its
name is part of theirs: ``recipe=PAPER/NAME``. An installed package with an extension can add choices of ``algo=``
(``Declaration.configs``).

``store_groups`` adds all files to Hydra's ConfigStore. Any Hydra application in a process that loaded the plugin can
then compose ``+algo=dr_grpo``, and lists the choices for ``+algo=nope``. This includes verl's own ``main_ppo``.
"""

from __future__ import annotations

import functools
import importlib.resources
import math
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from verl_gsd import extension
from verl_gsd.config.attention import attention_here
from verl_gsd.errors import ConfigError

GROUPS = ("algo", "task", "hardware", "budget", "sampler", "silent_groups", "logger", "recipe")
_HERE = Path(__file__).parent
#: Recipes are next to the package in a checkout, and inside it in a wheel.
_RECIPES = next((p for p in (_HERE.parent / "recipes", _HERE.parents[1] / "recipes") if p.is_dir()), _HERE / "recipe")


def choices(group: str) -> list[str]:
    """The names that ``group=NAME`` accepts, sorted. Files whose name starts with ``_`` are shared parts.

    Raises:
        ConfigError: an installed package has a file of the same name as another one.
    """
    return [name for name in _files(group) if not name.rpartition("/")[2].startswith("_")]


def load(group: str, name: str) -> DictConfig:
    """One YAML file, with its interpolations unresolved and without the files in its ``defaults``."""
    node = OmegaConf.load(_files(group)[name])
    assert isinstance(node, DictConfig)
    return node


def load_with_defaults(group: str, name: str) -> DictConfig:
    """One YAML file, merged onto the files of the same group that its ``defaults`` name before ``_self_``.

    Not for recipes, whose ``defaults`` name files of other groups.
    """
    node = load(group, name)
    bases = [base for base in node.pop("defaults", []) if base != "_self_"]
    merged = OmegaConf.merge(*(load_with_defaults(group, base) for base in bases), node)
    assert isinstance(merged, DictConfig)
    return merged


def _files(group: str) -> dict[str, Path]:
    """Name -> file of every YAML file of a group."""
    files: dict[str, Path] = {}
    for folder in _folders(group):
        for path in sorted(folder.rglob("*.yaml")):
            name = path.relative_to(folder).as_posix().removesuffix(".yaml")
            if name in files:
                raise ConfigError(f"{group}={name} is defined twice: {files[name]} and {path}. Rename one of the two.")
            files[name] = path
    return dict(sorted(files.items()))


def _folders(group: str) -> list[Path]:
    if group == "recipe":
        return [_RECIPES]
    declarations = extension.declarations() if group == "algo" else []
    others = [_package_folder(declaration, group) for declaration in declarations if declaration.configs is not None]
    return [_HERE / group, *others]


def _package_folder(declaration: extension.Declaration, group: str) -> Path:
    """The folder of a group's files in the package that an extension names (``Declaration.configs``)."""
    package = declaration.configs or ""
    return extension.guarded(
        declaration, "configs", lambda: Path(str(importlib.resources.files(package).joinpath(group)))
    )


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
        for name in _files(group):
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
