"""Every key that some config has: verl's own, those of all choices of the groups, and those of the settings models."""

import functools

from omegaconf import OmegaConf

from verl_gsd import config as groups
from verl_gsd import extension
from verl_gsd.dial_settings import DIAL_SETTINGS
from verl_gsd.dotted_keys import dotted_items
from verl_gsd.run.checks.limits import LimitSettings
from verl_gsd.run.compose import Line, compose_config
from verl_gsd.run.engines import SUPPORTED


@functools.cache
def known_keys():
    """Dotted keys, of sections and of values."""
    keys = set()
    for engine in SUPPORTED:  # each engine has other files of verl
        line = Line({}, (f"model_engine={engine}",))
        keys |= {key for key, _ in dotted_items(OmegaConf.to_container(compose_config(line)))}
    for group in groups.GROUPS:
        for name in groups.choices(group):
            node = groups.load(group, name) if group == "recipe" else groups.load_with_defaults(group, name)
            keys |= {key for key, _ in dotted_items(OmegaConf.to_container(node))}
    for declaration in extension.declarations():
        model = extension.declared_object(declaration, "settings") if declaration.settings else None
        fields = model.model_fields if model else {}
        keys |= {f"algorithm.gsd.{declaration.name}", *(f"algorithm.gsd.{declaration.name}.{name}" for name in fields)}
    keys |= {f"algorithm.gsd.{name}" for name in (*DIAL_SETTINGS, *extension.RESERVED)}
    keys |= {f"algorithm.gsd.limits.{name}" for name in LimitSettings.model_fields}
    return frozenset(keys)
