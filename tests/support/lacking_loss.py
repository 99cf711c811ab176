"""A user's policy loss that reads a column which no extension sends. verl imports it by VERL_USE_EXTERNAL_MODULES."""

from verl.trainer.ppo.core_algos import register_policy_loss

from verl_gsd.trainer.loss_context import loss_context


@register_policy_loss("lacking")
def lacking_loss(old_log_prob, log_prob, advantages, response_mask, loss_agg_mode, config, rollout_is_weights=None):
    weights = loss_context().rows["difficulty"]
    return -(log_prob * advantages * response_mask * weights).mean(), {}
