"""What a resolved config does to a group's standard deviation, said before it runs.

Under the identity of arXiv 2607.00152 an algorithm of the GRPO family is one operation on sigma, so that its gain
sigma^(2 - alpha) tells which prompts it learns from. The auditor reads the operation off the config and names settings
that contradict each other. It computes nothing a trainer would use.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from omegaconf import DictConfig, OmegaConf

from verl_gsd import config as groups
from verl_gsd.config.attention import FLASH, SDPA
from verl_gsd.planning import gain

#: Solve rates at which the gain is shown; it is symmetric about one half.
RATES = (0.01, 0.05, 0.1, 0.25, 0.5)


@dataclass(frozen=True)
class Operation:
    """A_i = scale * (R_i - mu) / (sigma + eps)^alpha, with sigma's divisor G - ddof.

    Attributes:
        words: what it does to sigma.
        scale: a constant for groups of one size.
    """

    words: str
    alpha: float
    ddof: int
    eps: float
    scale: float = 1.0


@dataclass(frozen=True)
class Audit:
    """What was read off a config.

    Attributes:
        operation: None where the estimator is not an operation on the group's sigma.
        group_size: responses to a prompt.
        afterwards: what becomes of the advantages after that, in words.
        silent_groups: what becomes of unanimous groups.
        task: which parts of a chosen task stay, where a line mixes it with other data; empty where nothing is mixed.
        prompts: which are drawn, in words; empty where each is visited once a pass.
        attention: what the policy computes attention with, in words; empty where the engine decides.
        gains: gain at each of ``RATES`` relative to that at one half, for groups of ``group_size``.
        warnings: settings that contradict each other, each with what to write.
    """

    estimator: str
    operation: Operation | None
    group_size: int
    afterwards: str
    silent_groups: str
    task: str
    prompts: str
    attention: str
    gains: tuple[float, ...]
    warnings: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """The audit in words, a line a fact."""
        if self.operation is None:
            yield f"{self.estimator}: what it does to the group's sigma is not described here"
        else:
            formula = f"(R - mu) / (sigma + {self.operation.eps:g})^{self.operation.alpha:g}"
            yield f"{self.estimator}: {self.operation.words}; A = {formula}, ddof {self.operation.ddof}"
            curve = "  ".join(f"p={rate:g}: {value:.2f}" for rate, value in zip(RATES, self.gains, strict=False))
            yield f"gain relative to p=0.5, G={self.group_size}: {curve or 'none'}"
        if self.afterwards:
            yield f"then {self.afterwards}"
        yield self.silent_groups
        if self.task:
            yield self.task
        if self.prompts:
            yield f"prompts: {self.prompts}"
        if self.attention:
            yield f"attention: {self.attention}"
        for warning in self.warnings:
            yield f"warning: {warning}"


def audit(config: DictConfig) -> Audit:
    """Read what ``config``, a resolved verl config, does to sigma."""
    group_size = int(config.actor_rollout_ref.rollout.n)
    operation = _operation(config.algorithm, group_size)
    gains: tuple[float, ...] = ()
    if operation is not None and group_size > 1:
        curve = np.asarray(gain(RATES, group_size, operation.alpha, ddof=operation.ddof, eps=operation.eps))
        gains = tuple((curve / curve[-1]).tolist())
    evicts = _filters(config)
    kept = "kept, and pulled towards the reference policy alone" if is_gvpo(config) else "kept, with gain 0"
    silent = "evicted and replaced by other prompts" if evicts else kept
    return Audit(
        str(config.algorithm.adv_estimator),
        operation,
        group_size,
        ", then ".join(words for of in _AFTERWARDS if (words := of(config))),
        f"unanimous groups: {silent}",
        _mixed(config),
        _drawn(config),
        _attention(config),
        gains,
        tuple(_contradictions(config, operation, group_size)),
    )


#: What a task brings, by the key that replaces it.
_OF_A_TASK = {
    "data.train_files": "the training prompts",
    "data.val_files": "the held-out set",
    "reward.custom_reward_function.path": "the verifier",
    "actor_rollout_ref.model.path": "the model",
}
#: Those that a user may take for replaced, because they belong to data.
_EASILY_FORGOTTEN = ("reward.custom_reward_function.path", "data.val_files")


def _mixed(config: DictConfig) -> str:
    name = OmegaConf.select(config, "task.name")
    if name is None:
        return ""
    own = OmegaConf.merge(groups.load("task", name), {"task": config.task})
    stays = {key: OmegaConf.select(config, key) == OmegaConf.select(own, key) for key in _OF_A_TASK}
    others = ["a recipe"] if "recipe" in config else []
    others += [f"another {key}" for key, is_the_tasks in stays.items() if not is_the_tasks]
    kept = [f"{_OF_A_TASK[key]} ({key}={OmegaConf.select(config, key)})" for key in _EASILY_FORGOTTEN if stays[key]]
    if not others or not kept:
        return ""
    are = "is" if len(kept) == 1 else "are"
    keys = "this key" if len(kept) == 1 else "these keys"
    return f"task={name} with {' and '.join(others)}: {' and '.join(kept)} {are} the task's. Set {keys} to change that."


def _operation(algorithm: DictConfig, group_size: int) -> Operation | None:
    estimator = str(algorithm.adv_estimator)
    if estimator == "gsd":
        gsd = algorithm.gsd
        return Operation(_words(gsd.alpha), gsd.alpha, gsd.ddof, gsd.eps)
    if estimator in ("grpo", "grpo_vectorized"):
        alpha = 1.0 if algorithm.norm_adv_by_std_in_grpo else 0.0
        return Operation(_words(alpha), alpha, 1, 1e-6)
    if estimator in ("rloo", "rloo_vectorized") and group_size > 1:
        return Operation("keeps sigma (RLOO: G/(G-1) times Dr. GRPO)", 0.0, 1, 0.0, group_size / (group_size - 1))
    return None


def _masked_by(config: DictConfig) -> str:
    dagrpo = OmegaConf.select(config, "algorithm.gsd.dagrpo")
    if dagrpo is None or dagrpo.get("judge") is None:
        return ""
    delta, judge = dagrpo.get("delta"), dagrpo.judge.get("scorer")
    return f"summed over the pairs whose scores by a judge ({judge}) differ by {delta} (DaGRPO, arXiv 2512.06337)"


def _demonstrated(config: DictConfig) -> str:
    shown = OmegaConf.select(config, "algorithm.gsd.dagrpo.demonstrations")
    if shown is None:
        return ""
    own = "an earlier success of the policy's own"
    who = {"expert": "an expert's response", "self": own, "expert_or_self": f"an expert's response or {own}"}
    where = {"all_fail": "a group that failed", "always": "every group"}.get(shown.mode, "?")
    return f"joined by {who.get(shown.source, '?')} in {where}, whose sigma it moves"


def _weighed_by(config: DictConfig) -> str:
    hadw = OmegaConf.select(config, "algorithm.gsd.hadw")
    if config.algorithm.adv_estimator != "gsd" or hadw is None or hadw.get("preset") == "off":
        return ""
    return f"weighed by HA-DW's factor (arXiv 2601.08521), anchor {hadw.get('preset') or 'hard'}"


def is_gvpo(config: DictConfig) -> bool:
    """Whether the policy loss is GVPO's."""
    return OmegaConf.select(config, "actor_rollout_ref.actor.policy_loss.loss_mode") == "gvpo"


def is_dagrpo_loss(config: DictConfig) -> bool:
    """Whether the policy loss is the one that knows demonstrations."""
    return OmegaConf.select(config, "actor_rollout_ref.actor.policy_loss.loss_mode") == "dagrpo"


def demonstration_column(config: DictConfig) -> str | None:
    """The column of the training data that has demonstrations; None where none is read."""
    section = OmegaConf.select(config, "algorithm.gsd.dagrpo.demonstrations")
    return None if not isinstance(section, DictConfig) or section.get("source") == "self" else section.get("column")


def _fitted_by(config: DictConfig) -> str:
    if not is_gvpo(config):
        return ""
    loss = config.actor_rollout_ref.actor.policy_loss
    against = {"old": "the policy before the step", "ref": "the reference model"}.get(loss.get("reference"), "?")
    return f"fitted by {loss.get('beta')} times the log-ratio to {against}, centred too (GVPO, arXiv 2504.19599)"


def _budgeted(config: DictConfig) -> str:
    if OmegaConf.select(config, "algorithm.gsd.budget") is None:
        return ""
    return "weighed by G / the prompt's own rollouts (budget), so that those with more count as much"


def _drawn(config: DictConfig) -> str:
    sampler = OmegaConf.select(config, "algorithm.gsd.sampler")
    if sampler is None:
        return ""
    return (
        "drawn by how much earlier visits have their answers disagree, so that what is trained is the average over "
        f"what is drawn; {sampler.get('explore', 0.1)} of the chance is the same for all (sampler)"
    )


def _attention(config: DictConfig) -> str:
    actor, model = config.actor_rollout_ref.actor, config.actor_rollout_ref.model
    if actor.strategy not in ("fsdp", "fsdp2"):
        return ""
    chosen = OmegaConf.select(model, "override_config.attn_implementation") or FLASH
    rows = "packed rows" if model.use_remove_padding else "padded rows"
    # Others compute the whole row under a mask.
    apart = model.use_remove_padding and chosen in (SDPA, FLASH)
    return f"{chosen} on {rows}{', sequence by sequence' if apart else ''}"


#: What may become of the advantages, in the order it does.
_AFTERWARDS = (_masked_by, _budgeted, _weighed_by, _fitted_by, _demonstrated)


def _words(alpha: float) -> str:
    named: dict[float, str] = {
        1: "divides by sigma (GRPO)",
        0: "keeps sigma (Dr. GRPO)",
        2: "divides by sigma^2 (all mixed groups weigh the same)",
    }
    return named.get(alpha, f"divides by sigma^{alpha:g}")


def _contradictions(config: DictConfig, operation: Operation | None, group_size: int) -> Iterator[str]:
    algorithm, actor = config.algorithm, config.actor_rollout_ref.actor
    if group_size < 2:
        yield f"actor_rollout_ref.rollout.n={group_size}: every group is silent, nothing is learned. Write 2 or more."
    if actor.loss_agg_mode == "seq-mean-token-sum-norm":
        if operation is not None and operation.alpha == 1:
            yield (
                "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm is Dr. GRPO's, whose point is to keep "
                f"sigma, and it is divided by. Write {_dividing_off(algorithm)}, or GRPO's seq-mean-token-mean."
            )
        if actor.loss_scale_factor is None:
            yield (
                "actor_rollout_ref.actor.loss_scale_factor=null: verl then divides by the longest response of each "
                "micro-batch. Write a constant, such as data.max_response_length."
            )
    if operation is not None and algorithm.use_kl_in_reward:
        yield (
            "algorithm.use_kl_in_reward=true: sigma is then that of the reward less a KL penalty, and no group is "
            "unanimous. Write actor_rollout_ref.actor.use_kl_loss=true instead."
        )
    if _filters(config):
        yield from _filter_contradictions(config)
    if is_gvpo(config):
        yield from _gvpo_contradictions(config)
    if OmegaConf.select(config, "algorithm.gsd.budget") is not None and config.trainer.total_epochs == 1:
        yield (
            "algorithm.gsd.budget with trainer.total_epochs=1: every prompt is visited once, nothing is known of any, "
            "and all have as many rollouts. Write more epochs, or budget=uniform."
        )


def _filters(config: DictConfig) -> bool:
    return bool(OmegaConf.select(config, "algorithm.filter_groups.enable"))


def _dividing_off(algorithm: DictConfig) -> str:
    gsd = algorithm.adv_estimator == "gsd"
    return "algorithm.gsd.alpha=0" if gsd else "algorithm.norm_adv_by_std_in_grpo=false"


def _filter_contradictions(config: DictConfig) -> Iterator[str]:
    metric = config.algorithm.filter_groups.metric
    has_verifier = OmegaConf.select(config, "reward.custom_reward_function.path") is not None
    if config.reward.reward_model.enable and not has_verifier:
        return  # its groups have no acc, and gsd_section.py rejects what would read one
    if metric != "acc":
        yield (
            f"algorithm.filter_groups.metric={metric}: a shaped score is rarely equal within a group and lets silent "
            "groups through. Write acc, the verifier's verdict."
        )
    elif not has_verifier:
        yield (
            "algorithm.filter_groups.metric=acc with verl's own scorers: most return a number alone, and verl fills "
            "acc with it. Right as long as that number is 0 or 1; otherwise name a reward.custom_reward_function that "
            "returns score and acc."
        )


def _gvpo_contradictions(config: DictConfig) -> Iterator[str]:
    actor, rollout, batch = (
        config.actor_rollout_ref.actor,
        config.actor_rollout_ref.rollout,
        config.data.train_batch_size,
    )
    loss, mini_batch = actor.policy_loss, actor.ppo_mini_batch_size
    if loss.get("reference") == "old" and actor.ppo_epochs == 1 and mini_batch >= batch:
        yield (
            f"actor_rollout_ref.actor.ppo_mini_batch_size={mini_batch} of data.train_batch_size={batch}, one epoch and "
            "policy_loss.reference=old: every update starts from the old policy, where GVPO is REINFORCE with the "
            "group's mean as baseline, times beta. Write a smaller mini-batch; the paper's is a quarter."
        )
    top_p, top_k = (value if isinstance(value, int | float) else 1 for value in (rollout.top_p, rollout.top_k or -1))
    if top_p < 1 or top_k > 0:
        yield (
            f"actor_rollout_ref.rollout.top_p={rollout.top_p} and top_k={rollout.top_k}: a sampler that cannot give "
            "every response does not meet GVPO's condition for its one optimum (Theorem 3.2). Write top_p=1, top_k=-1."
        )
    if OmegaConf.select(config, "algorithm.gsd.gvpo.history_fraction") and config.trainer.total_epochs == 1:
        yield (
            "algorithm.gsd.gvpo.history_fraction with trainer.total_epochs=1: every prompt is visited once, and none "
            "has earlier responses. Write more epochs, or history_fraction=0."
        )
    if loss.get("var") is not loss.get("cov"):
        yield (
            f"actor_rollout_ref.actor.policy_loss.var={loss.get('var')} and cov={loss.get('cov')}: in the paper's "
            "Table 2 training diverged with either term left out."
        )
