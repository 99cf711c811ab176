"""Parses the command line and composes the config.

``verl-gsd train algo=grpo task=arithmetic hardware=cpu trainer.total_training_steps=80`` composes verl's
``ppo_trainer`` config and applies our config groups on top of it. Groups are applied in the order hardware, recipe,
task, algo, budget, sampler, logger, whatever their order on the line. Single keys are applied last, so they override
all groups.

A recipe includes an algo. ``algo=`` replaces it, but the recipe's own keys still override the new algo. A recipe also
sets data and sizes, which ``task=`` overrides.

``data=FOLDER`` and ``model=PATH_OR_HUB_NAME`` are words of ``verl-gsd``, not keys of the config. ``own_data.py`` turns
them into values that override all groups. A line that has its own training data needs neither ``task=`` nor
``recipe=``: the defaults in ``config/task/_own_data.yaml`` take the place of the task.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_gsd import config as groups
from verl_gsd import extension
from verl_gsd.dotted_keys import dotted_items, dotted_leaves
from verl_gsd.errors import ConfigError
from verl_gsd.run.engines import drop_other_engines
from verl_gsd.writing import atomic_write

VERL_CONFIG_NAME = "ppo_trainer"
_UNKNOWN_KEY = re.compile(r"Could not override '([^']+)'")
#: The order in which groups are merged. Later groups override earlier ones.
_GROUP_ORDER = ("hardware", "recipe", "task", "algo", "budget", "sampler", "silent_groups", "logger")
_DEFAULT_GROUPS = {"logger": "console"}
#: Words whose values are paths, which can have characters that Hydra's grammar does not allow.
_PATH_WORDS = ("resume", "trust", "data", "model")
#: The file of the group ``task`` that a line with its own data gets instead of a task.
OWN_DATA = "_own_data"
_TRAIN_FILES, _MODEL_PATH = "data.train_files", "actor_rollout_ref.model.path"


@dataclass(frozen=True)
class Line:
    """A parsed command line.

    Attributes:
        choices: group -> chosen member.
        overrides: overrides of single keys, as on the command line.
        resume: the run to resume, if there is one.
        given: the groups that were on the command line, without those that have their default.
        data: the absolute path of a folder that ``verl-gsd prepare`` wrote, if ``data=`` is on the line.
        model: the value of ``model=``: the absolute path of a folder, or a hub name.
        trust: the run that the user trusts although somebody else may have made it, if ``trust=`` is on the line.
    """

    choices: dict[str, str]
    overrides: tuple[str, ...]
    resume: Path | None = None
    given: tuple[str, ...] = ()
    data: str | None = None
    model: str | None = None
    trust: Path | None = None

    @property
    def words(self) -> list[str]:
        """The words of the command line, without ``resume`` and ``trust``."""
        paths = {"data": self.data, "model": self.model}
        chosen = [*self.choices.items(), *((word, path) for word, path in paths.items() if path is not None)]
        return [f"{word}={value}" for word, value in chosen] + list(self.overrides)

    @property
    def words_given(self) -> list[str]:
        """As ``words``, but without groups that have their default because the user did not set them."""
        return [w for w in self.words if w.partition("=")[0] not in set(_DEFAULT_GROUPS) - set(self.given)]

    @property
    def keys(self) -> list[str]:
        """The dotted keys that the command line overrides."""
        return [_key(override) for override in self.overrides]

    @property
    def leaf_keys(self) -> list[str]:
        """As ``keys``, with the keys inside values: ``section={key: 1}`` overrides ``section.key``."""
        parser = OverridesParser.create()
        values = {_key(override): parser.parse_override(override).value() for override in self.overrides}
        return [key for key, _ in dotted_leaves(values)]

    @property
    def has_own_data(self) -> bool:
        """Whether the line brings its own training data, without a task and without a recipe."""
        has_files = self.data is not None or _TRAIN_FILES in self.keys
        return has_files and not {"task", "recipe"} & self.choices.keys()

    @property
    def title(self) -> str:
        """What the run trains on and how, for the names of its folder and of its job."""
        chosen = [self.choices[group] for group in ("recipe", "task", "algo") if group in self.choices]
        if self.data is not None:
            return "-".join([Path(self.data).name, *chosen])
        return "-".join(["own_data", *chosen] if self.has_own_data else chosen)

    def sets(self, key: str) -> bool:
        """Whether the line sets a key itself, or a value that contains it.

        A dict sets only its own keys, because Hydra keeps the others of the section.
        """
        return any(key == given or key.startswith(f"{given}.") for given in self.leaf_keys)


def parse_line(words: Sequence[str]) -> Line:
    """Parse the words of a command line. The last word for a group or key wins.

    Raises:
        ConfigError: a word is not ``key=value``, a group has no such member, or a required group is missing.
    """
    chosen = dict(_DEFAULT_GROUPS)
    overrides: dict[str, str] = {}
    paths: dict[str, str] = {}
    given = []
    for word in map(_with_home, words):
        key, _, value = word.partition("=")
        if key in _PATH_WORDS:
            paths[key] = _path(key, value)
            continue
        key = _key(word)
        if key in groups.GROUPS:
            if value not in groups.choices(key):
                hint = f" If {value} belongs to another package, install that package." if key == "algo" else ""
                raise ConfigError(
                    f"{key}={value}: no such choice. Set {key}= to one of {_listed(groups.choices(key))}.{hint}"
                )
            chosen[key] = value
            given.append(key)
        elif similar := difflib.get_close_matches(key, (*groups.GROUPS, *_PATH_WORDS), n=1, cutoff=0.75):
            raise ConfigError(f"{key}={value}: no such group. Did you mean {similar[0]}=?")
        else:
            overrides[key] = word
    line = Line(
        {group: chosen[group] for group in _GROUP_ORDER if group in chosen},
        tuple(overrides.values()),
        Path(paths["resume"]) if "resume" in paths else None,
        tuple(given),
        paths.get("data"),
        paths.get("model"),
        Path(paths["trust"]) if "trust" in paths else None,
    )
    if line.resume is None and "recipe" not in chosen:
        _check_complete(line)
    return line


def _check_complete(line: Line) -> None:
    """Raise ConfigError if a line without a recipe does not say how, on what, or which model to train."""
    if "algo" not in line.choices:
        raise ConfigError(
            f"algo is missing. Add algo= one of {_listed(groups.choices('algo'))}, or recipe=PAPER/NAME. "
            "`verl-gsd algos` describes the algorithms."
        )
    if "task" in line.choices:
        return
    if not line.has_own_data:
        raise ConfigError(
            f"task is missing. Add task= one of {_listed(groups.choices('task'))}, recipe=PAPER/NAME, or your own "
            "data and model: data=FOLDER, which verl-gsd prepare wrote, and model=FOLDER_OR_HUB_NAME."
        )
    if line.model is None and _MODEL_PATH not in line.keys:
        raise ConfigError(
            "model is missing. Add model=, the folder or the hub name of the model to train, for example "
            "model=Qwen/Qwen2.5-0.5B-Instruct."
        )


def store_groups() -> None:
    """Register our config groups, and the resolvers ``${verl_gsd.gpus:WHAT}`` with WHAT count, memory_gib or name.

    The resolvers ask the NVIDIA driver.
    """
    groups.store_groups()
    OmegaConf.register_new_resolver("verl_gsd.gpus", _gpus_here, replace=True)


def _gpus_here(what: str) -> int | str | None:
    from verl_gsd.run import gpus  # imported here, because it imports this module

    return {"count": gpus.count_here, "memory_gib": gpus.memory_gib_here, "name": gpus.name_here}[what]()


def compose_config(line: Line) -> DictConfig:
    """Compose verl's ``ppo_trainer`` with the groups and overrides of the command line. Interpolations stay unresolved.

    The values of ``data=`` and ``model=`` are missing; ``own_data.py`` adds them.

    Raises:
        ConfigError: Hydra rejects an override, because the key is unknown or the value cannot be parsed.
    """
    replaced = {"algo"} if "recipe" in line.choices else set()  # the recipe has already added it
    members = line.choices | ({"task": OWN_DATA} if line.has_own_data else {})
    in_order = ((group, members[group]) for group in _GROUP_ORDER if group in members)
    chosen = [f"{'' if group in replaced else '+'}{group}={name}" for group, name in in_order]
    words = chosen + list(line.overrides)
    store_groups()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(verl_config_directory()), version_base=None):
            config = compose(VERL_CONFIG_NAME, overrides=words)
    except (HydraException, OmegaConfBaseException, OSError) as error:  # Hydra looks for long keys in file names
        unknown = _UNKNOWN_KEY.search(str(error))
        if unknown and line.overrides:
            defaults = OmegaConf.to_container(compose_config(replace(line, overrides=())))
            known = [key for key, _ in dotted_items(defaults)]
            raise ConfigError(no_such_key(unknown[1], known)) from error
        raise ConfigError(str(error).strip()) from error
    drop_other_engines(config)
    return config


def verl_defaults() -> dict[str, Any]:
    """Dotted key -> value of verl's own config, without groups and overrides."""
    return dict(dotted_leaves(OmegaConf.to_container(resolve(compose_config(Line({}, ()))))))


def no_such_key(key: str, known: Sequence[str]) -> str:
    """The error message for a key that does not exist, with similar keys from ``known``."""
    options = {"algo": "algorithm", "budget": "budget", "sampler": "sampler", "silent_groups": "silent_groups"}
    for group, option in options.items():
        files = {name: groups.load(group, name) for name in groups.choices(group)}
        if members := [name for name, file in files.items() if OmegaConf.select(file, key) is not None]:
            return f"{key}: the chosen {option} does not have this key. It belongs to {group}={_listed(members)}."
    if key.startswith("algorithm.gsd."):
        return _no_such_gsd_key(key, known)
    if key in {f"hardware.{name}" for name in groups.load("hardware", "gpu").hardware}:
        return f"{key}: this key describes GPUs, but the line has no hardware= with GPUs. Set hardware=gpu to use it."
    similar = difflib.get_close_matches(key, known, n=3, cutoff=0.8)
    similar += [other for other in known if other.endswith(f".{key}")][:3]
    if similar:
        return f"{key}: no such key. Did you mean {' or '.join(similar)}?"
    return f"{key}: no such key. If verl reads it although its config does not list it, use +{key}=VALUE."


def _no_such_gsd_key(key: str, known: Sequence[str]) -> str:
    """As ``no_such_key``, for keys in ``algorithm.gsd``, where the owner of a section may not be known yet."""
    section = ".".join(key.split(".")[:3])
    name = section.rpartition(".")[2]
    if section in known:
        names, unknown = [], key
        remedy = f"If {name} has this setting, use +{key}=VALUE."
    elif extension.declared(name) is not None:
        return f"{key}: the config does not have this section. Use +{key}=VALUE to add it."
    else:
        names, unknown = [declaration.name for declaration in extension.declarations()], section
        remedy = f"To add the section of an extension, use +{key}=VALUE."
    parent, _, last = unknown.rpartition(".")
    names += [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == parent]
    similar = difflib.get_close_matches(last, names, n=1)
    question = f" Did you mean {parent}.{similar[0]}?" if similar else ""
    return f"{key}: no such key.{question} {remedy}"


def verl_config_directory() -> Path:
    """The folder of verl's YAML files. Found without importing verl, which takes more than ten seconds.

    Raises:
        ConfigError: verl is not installed.
    """
    spec = importlib.util.find_spec("verl")
    if spec is None or spec.origin is None:
        raise ConfigError(
            "verl is not installed. Run ./scripts/setup.sh in a checkout of verl-gsd, and use the environment .venv "
            "that it creates."
        )
    return Path(spec.origin).parent / "trainer" / "config"


def resolve(config: DictConfig) -> DictConfig:
    """A copy with every interpolation replaced by its value.

    Raises:
        ConfigError: an interpolation refers to a key that does not exist.
    """
    resolved = config.copy()
    try:
        OmegaConf.resolve(resolved)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).strip()) from error
    return resolved


def write_yaml(value: DictConfig | list[str], path: Path) -> None:
    """Write YAML through a temporary file and a rename, so that a crash leaves the old file or the new one."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(to_yaml(value))


def to_yaml(value: DictConfig | list[str]) -> bytes:
    """A config, or the words of a command line, as the content of a YAML file."""
    plain = OmegaConf.to_container(value) if isinstance(value, DictConfig) else value
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).encode()


def _with_home(word: str) -> str:
    """Expand ``~`` in ``KEY=~/FOLDER`` as a shell does in an assignment. In Hydra's grammar ``~`` means deletion."""
    key, _, value = word.partition("=")
    return f'{key}="{Path(value).expanduser()}"' if key not in _PATH_WORDS and value.startswith("~/") else word


def _path(word: str, value: str) -> str:
    """The value of a path word. Local paths become absolute, so that a resume finds them."""
    if not value:
        raise ConfigError(f"{word}=: the value is empty. Set it, or remove the word.")
    path = Path(value).expanduser()
    if word in ("resume", "trust"):
        return str(path)
    is_hub_name = word == "model" and not value.startswith(("/", "~", ".")) and not path.is_dir()
    return value if is_hub_name else str(path.absolute())


def _key(word: str) -> str:
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException as error:
        raise ConfigError(
            f"{word!r} is not KEY=VALUE. Put quotes around values with commas, braces or spaces."
        ) from error
    if override.is_sweep_override():
        raise ConfigError(
            f"{word}: has several values. Set a single value, or use verl-gsd submit --sweep for one run per value."
        )
    return override.key_or_group + (f"@{override.package}" if override.package else "")


def _listed(names: Sequence[str]) -> str:
    return " | ".join(names)
