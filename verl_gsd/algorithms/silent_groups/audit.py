"""How the config audit describes a denominator without silent groups."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig

from verl_gsd.algorithms.silent_groups.conflicts import CONTRADICTIONS
from verl_gsd.audit import Effect
from verl_gsd.conflicts import Condition
from verl_gsd.denominators import divided_by


def silent_groups_effect(config: DictConfig) -> Effect:
    """The effect of ``algorithm.gsd.silent_groups``."""
    actor = config.actor_rollout_ref.actor
    unit = divided_by(actor.policy_loss.loss_mode, actor.loss_agg_mode)
    has_budget = config.algorithm.gsd.get("budget") is not None
    under_budget = (
        ". Under a budget, a response counts n / the prompt's rollouts, so that every prompt counts alike"
        if has_budget
        else ""
    )
    return Effect(
        unanimous="kept, with gain 0, and left out of the denominator: the policy loss is divided by the "
        f"{unit} of the other groups of the mini-batch, KL and entropy terms by those of all. With a share s of silent "
        f"{unit}, the policy's gradient is 1 / (1 - s) times verl's, as large as if dynamic sampling had removed these "
        "groups, but noisier, because no other groups are generated in their place. With SGD, this is a learning rate "
        "1 / (1 - s) times as large. With Adam, a factor that stays the same cancels, and only changes of s count. It "
        f"always changes the policy loss relative to KL and entropy terms, and to clip_grad{under_budget}",
        warnings=tuple(_contradictions(config)),
    )


def _contradictions(config: DictConfig) -> Iterator[str]:
    for contradiction in CONTRADICTIONS:
        if Condition.parse(contradiction.setting).holds(config):
            yield (
                f"algorithm.gsd.silent_groups with {contradiction.setting}: {contradiction.reason}. {contradiction.fix}"
            )
