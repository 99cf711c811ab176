"""How the config audit describes DaGRPO's mask and demonstrations."""

from __future__ import annotations

from functools import partial

import numpy as np
from omegaconf import DictConfig
from scipy.stats import binom

from verl_gsd.algorithms.dagrpo.checks import is_dagrpo_loss
from verl_gsd.algorithms.dagrpo.demonstration_settings import DemonstrationSettings
from verl_gsd.algorithms.dagrpo.settings import MaskSettings
from verl_gsd.audit import Effect
from verl_gsd.judge.settings import JudgeSettings
from verl_gsd.planning.rates import gain, log_gain

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
    demonstrated = "those in which every rollout failed get a demonstration, if there is one; all others are kept"
    return Effect(
        responses=f"{source} replaces a rollout in {where} and changes the group's mean and sigma (DaGRPO's "
        "demonstrations)",
        # Another loss has its own text on groups that are unanimous with their demonstrations.
        unanimous=f"{demonstrated}, with gain 0" if is_dagrpo_loss(config) else "",
        gain=partial(demonstrated_gain, demonstrations=settings.per_group, always=settings.mode == "always"),
        gain_note="if every such group gets its demonstration",
    )


def demonstrated_gain(
    rates: np.ndarray, size: int, *, alpha: float, ddof: int, eps: float, demonstrations: int, always: bool
) -> np.ndarray:
    """The expected gain of a prompt's group of ``size`` rows, of which some are right demonstrations, (N,).

    A group has k right rollouts and d demonstrations, which gives it the gain of k + d right of ``size``. If all
    rollouts failed, the demonstrations replace d of them: k = 0. In mode ``always``, k of only ``size`` - d rollouts
    are right.

    Args:
        rates: (N,) solve rates.
        demonstrations: d. At least one row is a rollout.
        always: every group has demonstrations. Otherwise only groups in which every rollout failed have them.
    """
    shown = min(demonstrations, size - 1)
    if not always:
        of_failed = np.exp(log_gain(shown, size, alpha, ddof, eps))
        return np.asarray(gain(rates, size, alpha, ddof=ddof, eps=eps)) + (1 - rates) ** size * of_failed
    right = np.arange(size - shown)  # if all rollouts are right, the group is unanimous
    chances = binom.pmf(right, size - shown, rates[:, None])
    return chances @ np.exp(log_gain(right + shown, size, alpha, ddof, eps))
