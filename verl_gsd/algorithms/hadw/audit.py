"""How the config audit describes HA-DW."""

from __future__ import annotations

from omegaconf import DictConfig

from verl_gsd.algorithms.hadw.settings import HadwSettings
from verl_gsd.audit import Effect


def hadw_effect(config: DictConfig) -> Effect | None:
    """The effect of ``algorithm.gsd.hadw``; None if its preset is ``off``."""
    preset = HadwSettings.of(config.algorithm.gsd.hadw).preset
    if preset == "off":
        return None
    return Effect(weight=f"HA-DW's factor (arXiv 2601.08521), anchor {preset}")
