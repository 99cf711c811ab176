"""Keys that have no effect under the resolved config. A key that the user set on the command line is then an error."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from verl_gsd.run.compose import Line
from verl_gsd.unused_keys import UnusedKey, unused_keys

__all__ = ["UnusedKey", "check_unused_keys"]  # extensions of other packages may import the former from here


def check_unused_keys(config: DictConfig, line: Line) -> Iterator[str]:
    """Report keys of the command line that have no effect, each with the first reason."""
    for key in line.keys:
        reason = next((unused.reason for unused in unused_keys(key) if unused.unused(config)), None)
        if reason is not None:
            yield f"{key}={OmegaConf.select(config, key)} does nothing: {reason}."
