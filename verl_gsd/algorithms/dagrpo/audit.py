"""What DaGRPO's mask and demonstrations do to advantages, in words."""

from __future__ import annotations

from omegaconf import DictConfig

from verl_gsd.audit import Effect

_SELF = "an earlier success of the policy itself"
_SOURCES = {"expert": "an expert's response", "self": _SELF, "expert_or_self": f"an expert's response or {_SELF}"}
_GROUPS = {"all_fail": "a group in which every rollout failed", "always": "every group"}


def mask_effect(config: DictConfig) -> Effect | None:
    """What the audit says of ``algorithm.gsd.dagrpo``; None where nobody judges, so that nothing is masked."""
    section = config.algorithm.gsd.dagrpo
    if section.get("judge") is None:
        return None
    by, delta = f"scores by a judge ({section.judge.get('scorer', 'openai')})", section.get("delta")
    if section.get("mask", "pairs") == "pairs":
        centre = f"rewards are compared in pairs, and only pairs whose {by} differ by {delta} or more count"
    else:
        centre = (
            f"only responses count whose {by} differ by {delta} or more from those of the other class ({section.mask})"
        )
    return Effect(centre=f"{centre} (DaGRPO, arXiv 2512.06337)")


def demonstration_effect(config: DictConfig) -> Effect:
    """What the audit says of ``algorithm.gsd.dagrpo.demonstrations``."""
    section = config.algorithm.gsd.dagrpo.demonstrations
    source = _SOURCES.get(section.get("source", "expert"), "?")
    where = _GROUPS.get(section.get("mode", "all_fail"), "?")
    return Effect(
        responses=f"{source} takes the place of a rollout in {where} and moves the group's mean and sigma (DaGRPO's "
        "demonstrations)"
    )
