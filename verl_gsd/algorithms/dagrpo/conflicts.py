"""Settings that DaGRPO's judge and demonstrations do not work with, and the reasons."""

from verl_gsd.declaration import Conflict

_MODE = "algorithm.gsd.dagrpo.demonstrations.mode"

JUDGE_CONFLICTS = (
    Conflict(
        "algorithm.use_kl_in_reward=true",
        "the KL penalty gives two correct responses different rewards, so the mask would treat them as a better and a "
        "worse response",
        "Set algorithm.use_kl_in_reward=false. To keep a KL term, set actor_rollout_ref.actor.use_kl_loss=true.",
    ),
)

#: The losses that do not work with demonstrations.
OTHER_LOSS = Conflict(
    "actor_rollout_ref.actor.policy_loss.loss_mode!=dagrpo|gvpo",
    "a demonstration is not a sample of the old policy, and only the losses dagrpo and gvpo do without its ratio to "
    "that policy",
    "Set actor_rollout_ref.actor.policy_loss.loss_mode=dagrpo. For demonstrations with GVPO, set "
    "algo=gvpo_demonstrations.",
)
DEMONSTRATION_CONFLICTS = (
    Conflict(
        "algorithm.adv_estimator!=gsd",
        "it changes or uses the advantages of the estimator gsd",
        "Set algorithm.adv_estimator=gsd.",
    ),
    OTHER_LOSS,
    Conflict(
        "algorithm.gsd.budget",
        "demonstrations.mode=always lets demonstrations decide whether the rewards of a group differ, but the budget "
        "divides rollouts by how often they differ",
        f"Set {_MODE}=all_fail, or budget=uniform.",
        when=f"{_MODE}=always",
    ),
    Conflict(
        "algorithm.rollout_correction.bypass_mode=true",
        "the inference engine has no log-probabilities of a demonstration",
        "Set algorithm.rollout_correction.bypass_mode=false.",
    ),
    Conflict(
        "actor_rollout_ref.rollout.enable_rollout_routing_replay=true",
        "a demonstration has no routes to replay",
        "Set actor_rollout_ref.rollout.enable_rollout_routing_replay=false.",
    ),
    Conflict(
        "critic.enable=true",
        "a critic would learn from the masked tokens of demonstrations",
        "Set critic.enable=false.",
    ),
)
