"""Settings that GVPO does not work with, and the reasons."""

from verl_gsd.declaration import WEIGHS, Conflict

_CORRECTION = "algorithm.rollout_correction"
_KEEP_SECOND_KL = "algorithm.gsd.gvpo.allow_second_kl"
_WITHOUT_HISTORY = "algorithm.gsd.gvpo.history_fraction=0"
_HAS_HISTORY = "algorithm.gsd.gvpo.history_fraction!=0"
_NO_IMPORTANCE_WEIGHTS = "GVPO needs no importance weights, because its optimum does not depend on the sampling policy"

CONFLICTS = (
    Conflict(
        "algorithm.gsd.alpha!=0",
        "dividing by a group's sigma^alpha moves GVPO's optimum away from pi exp(R / beta)",
        "Set algorithm.gsd.alpha=0.",
    ),
    Conflict(
        "algorithm.gsd.budget",
        "a budget gives prompts different numbers of responses and rescales their advantages to balance that, but GVPO "
        "reaches its optimum only with advantages that nothing rescales",
        "Set budget=uniform, or use another algo.",
    ),
    Conflict(
        WEIGHS,
        "GVPO's weights must sum to zero within a group, and its optimum is pi exp(R / beta) only if nothing else "
        "changes the centred rewards",
        "Remove one of the two.",
    ),
    Conflict(
        "actor_rollout_ref.actor.policy_loss.loss_mode!=gvpo",
        "its rows and weights are those of GVPO's loss",
        "Set actor_rollout_ref.actor.policy_loss.loss_mode=gvpo. For another loss, use another algo.",
    ),
    Conflict(
        "algorithm.gsd.dagrpo.probe_every",
        "the probe splits the gradient by the signs of advantages, but GVPO's gradient has other weights",
        "Set algorithm.gsd.dagrpo.probe_every=null.",
    ),
    Conflict(
        "algorithm.gsd.sampler",
        "GVPO has not been tested with prompts that a sampler chooses",
        "Set sampler=uniform, or use another algo.",
    ),
    Conflict(
        "algorithm.use_kl_in_reward=true",
        "GVPO's beta is a KL term already, and a second one moves its optimum",
        f"Set algorithm.use_kl_in_reward=false, or {_KEEP_SECOND_KL}=true to keep both.",
        when=f"{_KEEP_SECOND_KL}=false|null",
    ),
    Conflict(
        "actor_rollout_ref.actor.use_kl_loss=false",
        "policy_loss.reference=ref needs the reference model's log-probabilities, which verl computes only if "
        "use_kl_loss is true",
        "Set actor_rollout_ref.actor.use_kl_loss=true. With kl_loss_coef=0 it adds no term to the loss.",
        when="actor_rollout_ref.actor.policy_loss.reference=ref",
    ),
    Conflict(
        "critic.enable=true",
        "GVPO does not use a critic, and verl would cut GVPO's batches to fit those of the critic",
        "Set critic.enable=false.",
    ),
    Conflict("trainer.critic_warmup!=0|1", "GVPO has no critic to warm up", "Set trainer.critic_warmup=0."),
    Conflict(
        f"{_CORRECTION}.bypass_mode=true",
        "the inference engine's log-probabilities would replace those of pi_old, and the numerical difference between "
        "the two engines would count as a log-ratio",
        f"Set {_CORRECTION}.bypass_mode=false.",
    ),
    Conflict(f"{_CORRECTION}.rollout_is", _NO_IMPORTANCE_WEIGHTS, f"Set {_CORRECTION}.rollout_is=null."),
    Conflict(f"{_CORRECTION}.rollout_rs", _NO_IMPORTANCE_WEIGHTS, f"Set {_CORRECTION}.rollout_rs=null."),
    Conflict(
        "actor_rollout_ref.actor.shuffle=true",
        "every worker would shuffle its own rows, which spreads groups over mini-batches",
        "Set actor_rollout_ref.actor.shuffle=false.",
    ),
    Conflict(
        "actor_rollout_ref.actor.megatron.dynamic_context_parallel=true",
        "rows then belong to no single worker, but GVPO sums its statistics over workers",
        "Set actor_rollout_ref.actor.megatron.dynamic_context_parallel=false.",
    ),
    Conflict(
        "distillation.enabled=true",
        "GVPO's loss cannot be combined with a teacher's",
        "Set distillation.enabled=false.",
    ),
    Conflict(
        "algorithm.gsd.dagrpo.demonstrations",
        "an earlier response (history_fraction) has no verdict of the current step, so it is not known whether all "
        "responses of its group failed, and demonstrations would be stored as earlier responses",
        f"Set {_WITHOUT_HISTORY}, or algorithm.gsd.dagrpo.demonstrations=null.",
        when=_HAS_HISTORY,
    ),
    Conflict(
        "actor_rollout_ref.rollout.enable_rollout_routing_replay=true",
        "an earlier response (history_fraction) has no routes of the current policy to replay",
        f"Set actor_rollout_ref.rollout.enable_rollout_routing_replay=false, or {_WITHOUT_HISTORY}.",
        when=_HAS_HISTORY,
    ),
    Conflict(
        "actor_rollout_ref.rollout.calculate_log_probs=true",
        "an earlier response (history_fraction) has no rollout log-probabilities of the current policy, so verl's "
        "comparison of the two engines would show how the policy changed instead",
        f"Set actor_rollout_ref.rollout.calculate_log_probs=false, or {_WITHOUT_HISTORY}.",
        when=_HAS_HISTORY,
    ),
)
