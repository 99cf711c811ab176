"""How the config audit describes a budget and a sampler."""

from __future__ import annotations

from omegaconf import DictConfig

from verl_gsd.algorithms.rollouts.sampler_settings import SamplerSettings
from verl_gsd.audit import Effect


def budget_effect(config: DictConfig) -> Effect:
    """The effect of ``algorithm.gsd.budget``."""
    one_visit = (
        "algorithm.gsd.budget with trainer.total_epochs=1: every prompt is visited once. Without earlier visits, "
        "all prompts get the same number of rollouts. Set more epochs, or budget=uniform."
    )
    return Effect(
        weight="mean rollouts / the prompt's rollouts, times the expected gain of an equal group / that of its group "
        "(budget), so prompts with more rollouts do not weigh more on average: exactly for alpha=0 or rewards of 0 and "
        "1, and within 6% for a verifier's partial credit and alpha up to 1; if the reward has more values than acc, "
        "within 10% for a length penalty or the share of tests passed and within 24% for a penalty that few responses "
        "have, for alpha up to 1, measured along the reward; above 1, groups of two can weigh half or twice as much",
        warnings=(one_visit,) if config.trainer.total_epochs == 1 else (),
    )


def sampler_effect(config: DictConfig) -> Effect:
    """The effect of ``algorithm.gsd.sampler``."""
    explore = SamplerSettings.of(config.algorithm.gsd.sampler).explore
    return Effect(
        prompts="sampled by expected disagreement (the posterior of earlier visits); the objective is then the average "
        "over sampled prompts, not over the data set; a share of "
        f"{explore} of the probability is equal for all prompts (sampler)"
    )
