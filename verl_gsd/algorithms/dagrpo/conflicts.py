"""Settings that DaGRPO's judge and demonstrations do not work with, and why."""

from verl_gsd.declaration import Conflict

_MODE = "algorithm.gsd.dagrpo.demonstrations.mode"

JUDGE_CONFLICTS = (
    Conflict(
        "algorithm.use_kl_in_reward=true",
        "each response has a KL penalty of its own, so that the rewards of two correct responses differ too, and their "
        "pairs would be masked or kept",
        "Set algorithm.use_kl_in_reward=false. To keep a KL term, set actor_rollout_ref.actor.use_kl_loss=true.",
    ),
)

DEMONSTRATION_CONFLICTS = (
    Conflict(
        "algorithm.gsd.budget",
        "with demonstrations.mode=always a demonstration in every group decides whether its rewards differ, and the "
        "budget divides rollouts by exactly that",
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
