"""From the words on a command line to a resolved config: compose, complete with a run directory, write down.

``verl-gsd train algo=grpo task=arithmetic hardware=cpu trainer.total_training_steps=80`` composes verl's own
``ppo_trainer`` with our groups over it. Groups are applied in the order hardware, recipe, task, algo, budget, sampler,
logger, whatever their order on the line; single keys come last and win. A recipe brings its algo, which ``algo=``
replaces below the recipe's own keys, and its data and sizes, which a ``task=`` overrides.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_gsd import config as groups
from verl_gsd.dotted_keys import dotted_items
from verl_gsd.errors import ConfigError
from verl_gsd.run.engines import drop_other_engines
from verl_gsd.writing import atomic_write

VERL_CONFIG_NAME = "ppo_trainer"
_UNKNOWN_KEY = re.compile(r"Could not override '([^']+)'")
#: The order in which groups are merged: what the machine allows, a whole experiment, what the task needs, what the
#: algorithm is.
_GROUP_ORDER = ("hardware", "recipe", "task", "algo", "budget", "sampler", "logger")
_DEFAULT_GROUPS = {"logger": "console"}


@dataclass(frozen=True)
class Line:
    """A parsed command line: the chosen group members, single-key overrides, the run to go on with, if any, and the
    groups that were named rather than left to their default."""

    choices: dict[str, str]
    overrides: tuple[str, ...]
    resume: Path | None = None
    given: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """The line again, without ``resume``."""
        return [f"{group}={name}" for group, name in self.choices.items()] + list(self.overrides)

    @property
    def words_given(self) -> list[str]:
        """As ``words``, without the groups a user need not name."""
        return [w for w in self.words if w.partition("=")[0] not in set(_DEFAULT_GROUPS) - set(self.given)]

    @property
    def keys(self) -> list[str]:
        """Dotted keys overridden one by one on the line."""
        return [_key(override) for override in self.overrides]


def parse_line(words: Sequence[str]) -> Line:
    """Split the words of a command line; a later word for the same group or key wins.

    Raises:
        ConfigError: a word is not ``key=value``, a group has no such member, or a required group is missing.
    """
    chosen = dict(_DEFAULT_GROUPS)
    overrides: dict[str, str] = {}
    resume = None
    given = []
    for word in map(_with_home, words):
        key, _, value = word.partition("=")
        if key == "resume":  # a path, whatever its characters
            resume = Path(value).expanduser()
            continue
        key = _key(word)
        if key in groups.GROUPS:
            if value not in groups.choices(key):
                raise ConfigError(f"{key}={value}: no such choice. Write {key}= one of {_listed(groups.choices(key))}.")
            chosen[key] = value
            given.append(key)
        elif meant := difflib.get_close_matches(key, groups.GROUPS, n=1, cutoff=0.75):
            raise ConfigError(f"{key}={value}: no such group. Did you mean {meant[0]}=?")
        else:
            overrides[key] = word
    if resume is None and "recipe" not in chosen:
        for group in ("algo", "task"):
            if group not in chosen:
                others = _listed(groups.choices(group))
                raise ConfigError(f"{group} is missing. Add {group}= one of {others}, or recipe=PAPER/NAME.")
    return Line(
        {group: chosen[group] for group in _GROUP_ORDER if group in chosen},
        tuple(overrides.values()),
        resume,
        tuple(given),
    )


def store_groups() -> None:
    """``config.store_groups``, and what asks the driver: ``${verl_gsd.gpus:count}`` and ``memory_gib``."""
    groups.store_groups()
    OmegaConf.register_new_resolver("verl_gsd.gpus", _gpus_here, replace=True)


def _gpus_here(what: str) -> int | None:
    from verl_gsd.run import gpus  # it needs this module

    return {"count": gpus.count_here, "memory_gib": gpus.memory_gib_here}[what]()


def compose_config(line: Line) -> DictConfig:
    """verl's ``ppo_trainer`` with the line's groups and overrides over it; interpolations still open.

    Raises:
        ConfigError: Hydra refuses an override (an unknown key, an unreadable value).
    """
    replaced = {"algo"} if "recipe" in line.choices else set()  # it is there already, chosen by the recipe
    chosen = [f"{'' if group in replaced else '+'}{group}={name}" for group, name in line.choices.items()]
    words = chosen + list(line.overrides)
    store_groups()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(verl_config_directory()), version_base=None):
            config = compose(VERL_CONFIG_NAME, overrides=words)
    except (HydraException, OmegaConfBaseException) as error:
        unknown = _UNKNOWN_KEY.search(str(error))
        if unknown and line.overrides:
            defaults = OmegaConf.to_container(compose_config(replace(line, overrides=())))
            known = [key for key, _ in dotted_items(defaults)]
            raise ConfigError(no_such_key(unknown[1], known)) from error
        raise ConfigError(str(error).strip()) from error
    drop_other_engines(config)
    return config


def no_such_key(key: str, known: Sequence[str]) -> str:
    """The complaint about a key that is not there, with those of ``known`` that may have been meant."""
    for group, chosen in (("algo", "the algorithm"), ("budget", "the budget"), ("sampler", "the sampler")):
        files = {name: groups.load(group, name) for name in groups.choices(group)}
        if having := [name for name, file in files.items() if OmegaConf.select(file, key) is not None]:
            return f"{key}: no such key under {chosen} chosen. It belongs to {group}={_listed(having)}."
    meant = difflib.get_close_matches(key, known, n=3, cutoff=0.8)
    meant += [other for other in known if other.endswith(f".{key}")][:3]
    if meant:
        return f"{key}: no such key. Did you mean {' or '.join(meant)}?"
    return f"{key}: no such key. One that verl reads and does not list is written +{key}=VALUE."


def verl_config_directory() -> Path:
    """Where verl keeps its YAML files, found without importing verl: that takes ten seconds and more.

    Raises:
        ConfigError: verl is not installed.
    """
    spec = importlib.util.find_spec("verl")
    if spec is None or spec.origin is None:
        raise ConfigError(
            "verl is not installed. Run ./scripts/setup.sh in a checkout and use its environment (.venv)."
        )
    return Path(spec.origin).parent / "trainer" / "config"


def resolve(config: DictConfig) -> DictConfig:
    """A copy with every interpolation replaced by its value.

    Raises:
        ConfigError: an interpolation points nowhere.
    """
    resolved = config.copy()
    try:
        OmegaConf.resolve(resolved)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).strip()) from error
    return resolved


def write_yaml(value: DictConfig | list[str], path: Path) -> None:
    """Write YAML through a temporary file and a rename, so that a crash leaves the old file or the new one."""
    plain = OmegaConf.to_container(value) if isinstance(value, DictConfig) else value
    with atomic_write(path) as temporary:
        temporary.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _with_home(word: str) -> str:
    """``KEY=~/FOLDER`` as a shell would have it in an assignment; Hydra gives ``~`` a meaning of its own."""
    key, _, value = word.partition("=")
    return f'{key}="{Path(value).expanduser()}"' if key != "resume" and value.startswith("~/") else word


def _key(word: str) -> str:
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException as error:
        raise ConfigError(f"{word!r} is not KEY=VALUE. Quote a value that has commas, braces or spaces.") from error
    if override.is_sweep_override():
        raise ConfigError(f"{word}: several values. Write one; verl-gsd submit --sweep makes a run of each.")
    return override.key_or_group + (f"@{override.package}" if override.package else "")


def _listed(names: Sequence[str]) -> str:
    return " | ".join(names)
