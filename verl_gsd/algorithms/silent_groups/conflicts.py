"""Settings with which silent groups cannot, or need not, be left out of the denominator, and the reasons."""

from verl_gsd.declaration import Conflict

_ACTOR = "actor_rollout_ref.actor"

CONFLICTS = (
    Conflict(
        f"{_ACTOR}.policy_loss.loss_mode!=vanilla|gspo|cispo|gpg|sapo|dppo_tv|dppo_kl|bypass_mode|dagrpo",
        "this loss is not known to be proportional to the advantages of a response and divided by a count of the "
        "mini-batch; gvpo, dro and kl_cov have a gradient in silent groups, clip_cov selects tokens by the size of "
        "advantages, and geo_mean averages over micro-batches",
        f"Set {_ACTOR}.policy_loss.loss_mode=vanilla, or silent_groups=counted.",
    ),
    Conflict(
        f"{_ACTOR}.loss_agg_mode=token-sum",
        "this loss is a sum, which is divided by no count of tokens or responses",
        f"Set {_ACTOR}.loss_agg_mode=token-mean, or silent_groups=counted.",
    ),
    Conflict(
        "algorithm.use_kl_in_reward=true",
        "the KL penalty makes the rewards of every group differ, so that no group is silent",
        "Set algorithm.use_kl_in_reward=false, or silent_groups=counted. To keep a KL term, set "
        f"{_ACTOR}.use_kl_loss=true.",
    ),
    Conflict(
        "distillation.enabled=true",
        "the teacher's loss has a gradient in silent groups",
        "Set distillation.enabled=false, or silent_groups=counted.",
    ),
    Conflict(
        f"{_ACTOR}.megatron.dynamic_context_parallel=true",
        "rows then belong to no single worker, but the workers count their own rows",
        f"Set {_ACTOR}.megatron.dynamic_context_parallel=false, or silent_groups=counted.",
    ),
)

CONTRADICTIONS = (
    Conflict(
        "algorithm.filter_groups.enable=true",
        "dynamic sampling removes silent groups before they are counted, so that the denominator hardly changes",
        "Set silent_groups=counted, or algorithm.filter_groups.enable=false.",
    ),
)
