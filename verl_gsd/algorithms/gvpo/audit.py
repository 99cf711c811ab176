"""How the config audit describes GVPO, and its warnings about settings that defeat GVPO's purpose."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig

from verl_gsd.audit import Effect, parts_of_step


def gvpo_effect(config: DictConfig) -> Effect:
    """The effect of ``algorithm.gsd.gvpo``."""
    loss, share = config.actor_rollout_ref.actor.policy_loss, config.algorithm.gsd.gvpo.get("history_fraction")
    reference = {"old": "the policy before the step", "ref": "the reference model"}.get(loss.get("reference"), "?")
    replayed = (
        f"a share of {share} of each group is earlier responses to the same prompt, from its second visit on (GVPO)"
    )
    return Effect(
        responses=replayed if share else "",
        loss=f"fits {loss.get('beta')} times the log-ratio to {reference}, centred per group, to the advantages (GVPO, "
        "arXiv 2504.19599)",
        unanimous=f"kept; their only effect is a pull towards {reference}",
        warnings=tuple(_contradictions(config)),
    )


def _contradictions(config: DictConfig) -> Iterator[str]:
    actor, rollout, batch = (
        config.actor_rollout_ref.actor,
        config.actor_rollout_ref.rollout,
        config.data.train_batch_size,
    )
    loss, mini_batch = actor.policy_loss, actor.ppo_mini_batch_size
    mode = str(config.trainer.v1.trainer_mode).removeprefix("gsd_")
    parts = parts_of_step(config)
    # In separate_async, all parts of a step share the old policy. In the other modes, each part has its own.
    has_one_update = mini_batch * parts >= batch and not (mode == "separate_async" and parts > 1)
    if loss.get("reference") == "old" and actor.ppo_epochs == 1 and has_one_update:
        of_parts, part = ("", "step") if parts == 1 else (f" and trainer.v1.{mode}.parameter_sync_step={parts}", "part")
        yield (
            f"actor_rollout_ref.actor.ppo_mini_batch_size={mini_batch} with data.train_batch_size={batch}{of_parts}, "
            f"ppo_epochs=1 and policy_loss.reference=old: each {part} has one update, which starts from the old "
            "policy. GVPO is then beta times REINFORCE with the group's mean as baseline. A demonstration is then a "
            "response with a positive advantage, and nothing pulls the policy back from it. Set a smaller mini-batch. "
            "The paper's is a quarter of the batch."
        )
    top_p, top_k = (value if isinstance(value, int | float) else 1 for value in (rollout.top_p, rollout.top_k or -1))
    if top_p < 1 or top_k > 0:
        yield (
            f"actor_rollout_ref.rollout.top_p={rollout.top_p} and top_k={rollout.top_k}: GVPO has a single "
            "optimum only if every response can be sampled (Theorem 3.2). Set top_p=1 and top_k=-1."
        )
    if config.algorithm.gsd.gvpo.get("history_fraction") and config.trainer.total_epochs == 1:
        yield (
            "algorithm.gsd.gvpo.history_fraction with trainer.total_epochs=1: every prompt is visited once, so no "
            "prompt has earlier responses. Set more epochs, or history_fraction=0."
        )
    if loss.get("var") is not loss.get("cov"):
        yield (
            f"actor_rollout_ref.actor.policy_loss.var={loss.get('var')} and cov={loss.get('cov')}: in the paper's "
            "Table 2, training diverged if either term was left out. Set both to true."
        )
