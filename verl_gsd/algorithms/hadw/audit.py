"""What HA-DW does to advantages, in words."""

from __future__ import annotations

from omegaconf import DictConfig

from verl_gsd.audit import Effect


def hadw_effect(config: DictConfig) -> Effect | None:
    """What the audit says of ``algorithm.gsd.hadw``; None where it weighs nothing."""
    preset = config.algorithm.gsd.hadw.get("preset", "hard")
    if preset in ("off", False):  # YAML makes false of off
        return None
    return Effect(weight=f"HA-DW's factor (arXiv 2601.08521), anchor {preset}")
