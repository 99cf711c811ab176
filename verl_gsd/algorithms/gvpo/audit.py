"""What GVPO does to advantages, in words, and settings that contradict it."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig

from verl_gsd.audit import Effect


def gvpo_effect(config: DictConfig) -> Effect:
    """What the audit says of ``algorithm.gsd.gvpo``."""
    loss, share = config.actor_rollout_ref.actor.policy_loss, config.algorithm.gsd.gvpo.get("history_fraction")
    against = {"old": "the policy before the step", "ref": "the reference model"}.get(loss.get("reference"), "?")
    earlier = f"{share} of each group are earlier responses to the same prompt, from its second visit on (GVPO)"
    return Effect(
        responses=earlier if share else "",
        loss=f"advantages are fitted by {loss.get('beta')} times the log-ratio to {against}, centred per group (GVPO, "
        "arXiv 2504.19599)",
        unanimous="kept, and pulled towards the reference policy alone",
        warnings=tuple(_contradictions(config)),
    )


def _contradictions(config: DictConfig) -> Iterator[str]:
    actor, rollout, batch = (
        config.actor_rollout_ref.actor,
        config.actor_rollout_ref.rollout,
        config.data.train_batch_size,
    )
    loss, mini_batch = actor.policy_loss, actor.ppo_mini_batch_size
    if loss.get("reference") == "old" and actor.ppo_epochs == 1 and mini_batch >= batch:
        yield (
            f"actor_rollout_ref.actor.ppo_mini_batch_size={mini_batch} of data.train_batch_size={batch}, one epoch and "
            "policy_loss.reference=old: every update starts from the old policy. There GVPO is REINFORCE with the "
            "group's mean as baseline, times beta. Set a smaller mini-batch. The paper's is a quarter of the batch."
        )
    top_p, top_k = (value if isinstance(value, int | float) else 1 for value in (rollout.top_p, rollout.top_k or -1))
    if top_p < 1 or top_k > 0:
        yield (
            f"actor_rollout_ref.rollout.top_p={rollout.top_p} and top_k={rollout.top_k}: a sampler that cannot "
            "generate every response does not meet the condition for GVPO's single optimum (Theorem 3.2). Set top_p=1 "
            "and top_k=-1."
        )
    if config.algorithm.gsd.gvpo.get("history_fraction") and config.trainer.total_epochs == 1:
        yield (
            "algorithm.gsd.gvpo.history_fraction with trainer.total_epochs=1: every prompt is visited once, and no "
            "prompt has earlier responses. Set more epochs, or history_fraction=0."
        )
    if loss.get("var") is not loss.get("cov"):
        yield (
            f"actor_rollout_ref.actor.policy_loss.var={loss.get('var')} and cov={loss.get('cov')}: in the paper's "
            "Table 2 training diverged with either term left out."
        )
