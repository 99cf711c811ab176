"""The check that reports every setting that an extension of the run does not work with."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from verl_gsd.conflicts import SECTIONS, conflicts_in
from verl_gsd.run.compose import Line
from verl_gsd.scalars import as_yaml


def check_conflicts(config: DictConfig, line: Line) -> Iterator[str]:
    """Report every setting that an extension of this run does not work with."""
    for in_config in conflicts_in(config):
        if in_config.applies:
            name, conflict = in_config.declaration.name, in_config.conflict
            value = OmegaConf.select(config, in_config.key)
            setting = in_config.key if OmegaConf.is_config(value) else f"{in_config.key}={as_yaml(value)}"
            group = setting.removeprefix(SECTIONS)
            if group in line.choices:  # the section is there because of this word, which the user knows
                setting = f"{group}={line.choices[group]}, which sets {setting}"
            yield f"{setting}: {SECTIONS}{name} does not work with it: {conflict.reason}. {conflict.fix}"
