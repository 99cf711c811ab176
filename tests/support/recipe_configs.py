"""Recipes composed as the command line composes them, quickly enough for a hundred times."""

import functools
import pickle

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from verl_gsd import config as groups
from verl_gsd.run.checks import validate as validation
from verl_gsd.run.compose import Line, store_groups, verl_config_directory

RECIPES = groups.choices("recipe")
#: hardware=gpu is whatever this machine has (test_engines.py).
HARDWARE = [name for name in groups.choices("hardware") if name != "gpu"]


@functools.cache
def part(*words, of_verl=False):
    """What a choice of groups says, or verl's own config: plain, interpolations open."""
    with initialize_config_dir(str(verl_config_directory()), version_base=None):
        return OmegaConf.to_container(compose("ppo_trainer" if of_verl else None, overrides=list(words)))


def merged(node, over):
    """As Hydra merges: sections by key, all else replaced."""
    if not (isinstance(node, dict) and isinstance(over, dict)):
        return over
    return node | {key: merged(node.get(key), value) for key, value in over.items()}


@functools.cache
def _of_machine(*words):
    """A pickle of verl's own config under a choice of hardware."""
    return pickle.dumps(OmegaConf.create(merged(part(of_verl=True), part(*words))))


@functools.cache
def composed(recipe, *words, resolved=True):
    """As the command line composes, a hundred times over: each group by Hydra once, then verl's, hardware and recipe
    merged in that order. Who gets it shares it with others, and changes nothing in it."""
    store_groups()
    of_groups = [word for word in words if word.partition("=")[0] in groups.GROUPS]
    hardware = [f"+{word}" for word in of_groups if word.startswith("hardware=")]
    algo = [word for word in of_groups if word.startswith("algo=")]
    rest = [f"+{word}" for word in of_groups if word.startswith("task=")]
    config = pickle.loads(_of_machine(*hardware))
    config.merge_with(OmegaConf.create(part(f"+recipe={recipe}", *algo, *rest, "+logger=console")))
    for word in words:
        key, _, value = word.partition("=")
        if word not in of_groups:
            section, _, name = key.rpartition(".")
            assert name in OmegaConf.select(config, section), key
            OmegaConf.update(config, key, OmegaConf.create(f"x: {value}").x)
    if resolved:
        OmegaConf.resolve(config)
    return config


def problems(config, *words):
    line = Line({}, words)
    checks = [check for check in validation.CHECKS if check not in validation.OF_THIS_MACHINE]
    return [problem for check in checks for problem in check(config, line)]


def leaves(node, prefix=""):
    """(dotted key, value), sections left out."""
    for name, value in node.items():
        yield from leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
