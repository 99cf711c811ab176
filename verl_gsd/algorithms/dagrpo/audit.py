"""How the config audit describes DaGRPO's mask and demonstrations."""

from __future__ import annotations

from omegaconf import DictConfig

from verl_gsd.algorithms.dagrpo.demonstration_settings import DemonstrationSettings
from verl_gsd.algorithms.dagrpo.settings import MaskSettings
from verl_gsd.audit import Effect
from verl_gsd.judge.settings import JudgeSettings

_SELF = "an earlier success of the policy itself"
_SOURCES = {"expert": "an expert's response", "self": _SELF, "expert_or_self": f"an expert's response or {_SELF}"}
_GROUPS = {"all_fail": "a group in which every rollout failed", "always": "every group"}


def mask_effect(config: DictConfig) -> Effect | None:
    """The effect of ``algorithm.gsd.dagrpo``; None without a judge, because then nothing is masked."""
    section = config.algorithm.gsd.dagrpo
    if section.get("judge") is None:
        return None
    mask, scores = MaskSettings.of(section).mask, f"scores from a judge ({JudgeSettings.of(section.judge).scorer})"
    delta = section.get("delta", MaskSettings.default("delta").last)
    if mask == "pairs":
        centre = f"rewards are compared in pairs, and only pairs whose {scores} differ by {delta} or more count"
    else:
        centre = f"only responses whose {scores} differ by {delta} or more from the other class ({mask}) count"
    return Effect(centre=f"{centre} (DaGRPO, arXiv 2512.06337)")


def demonstration_effect(config: DictConfig) -> Effect:
    """The effect of ``algorithm.gsd.dagrpo.demonstrations``."""
    settings = DemonstrationSettings.of(config.algorithm.gsd.dagrpo.demonstrations)
    source, where = _SOURCES[settings.source], _GROUPS[settings.mode]
    return Effect(
        responses=f"{source} replaces a rollout in {where} and changes the group's mean and sigma (DaGRPO's "
        "demonstrations)"
    )
