"""Which of the overrides of a finding the run's config accepts, and which have an effect."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Mapping
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from verl_gsd import config as groups
from verl_gsd.conflicts import is_accepted, with_changes
from verl_gsd.dotted_keys import dotted_items, dotted_leaves, nested
from verl_gsd.unused_keys import unused_keys

_ABSENT = object()
#: A config of verl has about 700 sections and values. Each override is tried in a copy, and copying takes long.
_MOST_ENTRIES = 5000


def accepted_overrides(
    overrides: Collection[str], config: Mapping[str, Any], words: Collection[str], *, is_rated: bool = True
) -> tuple[str, ...]:
    """The overrides that lead to no conflict that an extension declares, and set no key that has no effect.

    See ``conflicts.is_accepted`` and ``unused_keys``.

    Those that are no KEY=VALUE, or leave the value to the user, are kept. So is a choice of a group that is not
    installed.

    Args:
        overrides: as ``Finding.overrides``.
        config: dotted key -> value; empty if it is not known. Others may have made it: texts with interpolations are
            not resolved, and count as not set. So do values that are neither texts, numbers, booleans, lists nor
            sections.
        words: the words of the run's command line; empty if they are not known. A key that a word sets keeps its value
            if a group is chosen anew.
        is_rated: False if some responses of the run have no ``acc`` in [0, 1]. Extensions that read it are then not
            accepted.

    Returns:
        The accepted ones; none if the config is much larger or deeper than verl's.
    """
    if not overrides or sum(1 for _ in dotted_items(dict(config), into_lists=True)) > _MOST_ENTRIES:
        return ()
    groups.store_groups()  # with the resolvers of their values
    try:
        whole = OmegaConf.create(nested({key: value for key, value in config.items() if _is_plain(value)}))
    except RecursionError:  # a key with thousands of dots
        return ()
    return tuple(override for override in overrides if _is_accepted(override, whole, words, is_rated))


def _is_plain(value: Any) -> bool:
    """Whether OmegaConf accepts a value, and resolves nothing in it. It would take a text for an interpolation."""
    if isinstance(value, dict):
        return all(isinstance(name, str) for name in value) and all(map(_is_plain, value.values()))
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return "${" not in value if isinstance(value, str) else value is None or isinstance(value, bool | int | float)


def _is_accepted(override: str, config: DictConfig, words: Collection[str], is_rated: bool) -> bool:
    try:
        command = shlex.split(override.partition("#")[0])
        changes = _changes(command, words)
        if not is_accepted(config, changes, is_rated=is_rated):
            return False
        changed = with_changes(config, changes)
        return not any(_is_unused(key, changed) for key in _keys_set(command) if _has(config, key))
    except Exception:  # it is no override that can be tried here, or the config has texts in place of sections
        return True


def _has(config: DictConfig, key: str) -> bool:
    """Whether ``config`` contains ``key``. A condition of an unused key takes such a config."""
    return OmegaConf.select(config, key, default=_ABSENT) is not _ABSENT


def _is_unused(key: str, config: DictConfig) -> bool:
    """Whether ``key`` has no effect. The checks before a run reject such a key."""
    return any(_applies(unused.unused, config) for unused in unused_keys(key))


def _applies(condition: Callable[[DictConfig], bool], config: DictConfig) -> bool:
    try:
        return condition(config)
    except Exception:  # it reads a key that the report's config lacks, or is code of another package
        return False


def _changes(command: list[str], words: Collection[str]) -> dict[str, Any]:
    """Dotted key -> value of all that an override sets in a run with these words."""
    changes: dict[str, Any] = {}
    for word in command:
        key, equals, text = word.partition("=")
        if not equals or "..." in text:
            continue
        if key not in groups.GROUPS:
            changes[key.lstrip("+")] = yaml.safe_load(text)
        elif text in groups.choices(key):
            kept = _keys_set(words) + (_keys_of_recipe(words) if key == "algo" else ())
            chosen = OmegaConf.to_container(groups.load_with_defaults(key, text))
            changes |= {
                name: value
                for name, value in dotted_leaves(chosen)
                if not any(name == own or name.startswith(f"{own}.") for own in kept)
            }
    return changes


def _keys_set(words: Collection[str]) -> tuple[str, ...]:
    """The dotted keys that the words of a command line set."""
    names = (word.lstrip("+").partition("=")[0] for word in words)
    return tuple(name for name in names if name not in groups.GROUPS)


def _keys_of_recipe(words: Collection[str]) -> tuple[str, ...]:
    """The dotted keys that the recipe itself sets, which override those of an algo that replaces the recipe's."""
    names = [word.partition("=")[2] for word in words if word.startswith("recipe=")]
    keys: list[str] = []
    while names:
        name = names.pop()
        try:
            recipe: Any = OmegaConf.to_container(groups.load("recipe", name))
        except KeyError:  # a recipe of another version
            continue
        defaults = recipe.pop("defaults", [])
        names += [base.removeprefix("/recipe/") for base in defaults if str(base).startswith("/recipe/")]
        keys += [key for key, _ in dotted_leaves(recipe)]
    return tuple(keys)
