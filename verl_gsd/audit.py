"""What a resolved config does to a group's standard deviation, said before it runs.

Under the identity of arXiv 2607.00152 an algorithm of the GRPO family is one operation on sigma, so that its gain
sigma^(2 - alpha) tells which prompts it learns from. The auditor reads the operation off the config and names settings
that contradict each other. It computes nothing a trainer would use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from omegaconf import DictConfig, OmegaConf

from verl_gsd import config as groups
from verl_gsd import extension
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
class Effect:
    """What an extension does to advantages, in words. ``Declaration.audit`` names the function that returns it.

    Each text is a part of a sentence without a full stop, and is left out where it is empty. The audit prints texts of
    several extensions in the extensions' order.

    Attributes:
        responses: which responses join a group or leave it before its rewards are centred.
        centre: what replaces the rewards less their group's mean.
        weight: what advantages are multiplied by, after the division by sigma^alpha.
        loss: what the policy loss does with advantages.
        prompts: which prompts a step visits, and what the objective is then the average of.
        unanimous: what becomes of groups whose rewards are all equal, where no filter evicts them.
        warnings: settings that contradict the extension, each with what to set instead. Whole sentences.
    """

    responses: str = ""
    centre: str = ""
    weight: str = ""
    loss: str = ""
    prompts: str = ""
    unanimous: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Audit:
    """What was read off a config.

    Attributes:
        operation: None where the estimator is not an operation on the group's sigma.
        group_size: responses to a prompt.
        responses: which responses join groups or leave them, in words; empty where a group is its prompt's rollouts.
        centre: what rewards are centred by, in words; empty where it is the group's mean.
        weights: what advantages are multiplied by, in words, in order.
        loss: what an extension's policy loss does, in words; empty where it is one of verl's.
        silent_groups: what becomes of unanimous groups.
        task: which parts of a chosen task stay, where a line mixes it with other data; empty where nothing is mixed.
        prompts: which are visited, in words; empty where each is visited once a pass.
        attention: what the policy computes attention with, in words; empty where the engine decides.
        gains: gain at each of ``RATES`` relative to that at one half, for groups of ``group_size``.
        warnings: settings that contradict each other, each with what to write.
    """

    estimator: str
    operation: Operation | None
    group_size: int
    responses: str
    centre: str
    weights: tuple[str, ...]
    loss: str
    silent_groups: str
    task: str
    prompts: str
    attention: str
    gains: tuple[float, ...]
    warnings: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """The audit in words, one line per fact. What happens to a group's rewards comes in the order of the chain."""
        if self.responses:
            yield f"responses: {self.responses}"
        if self.centre:
            yield f"centring: {self.centre}"
        if self.operation is None:
            yield f"{self.estimator}: what it does to the group's sigma is not described here"
        else:
            centred = "centred rewards" if self.centre else "(R - mu)"
            formula = f"{centred} / (sigma + {self.operation.eps:g})^{self.operation.alpha:g}"
            yield f"{self.estimator}: {self.operation.words}; A = {formula}, ddof {self.operation.ddof}"
            curve = "  ".join(f"p={rate:g}: {value:.2f}" for rate, value in zip(RATES, self.gains, strict=False))
            yield f"gain relative to p=0.5, G={self.group_size}: {curve or 'none'}"
        if self.weights:
            yield f"weights: advantages are multiplied by {', then by '.join(self.weights)}"
        if self.loss:
            yield f"loss: {self.loss}"
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
    effects = _effects(config)
    kept = _joined(effect.unanimous for effect in effects) or "kept, with gain 0"
    silent = "evicted and replaced by other prompts" if _filters(config) else kept
    warnings = (
        *_contradictions(config, operation, group_size),
        *(text for effect in effects for text in effect.warnings),
    )
    return Audit(
        estimator=str(config.algorithm.adv_estimator),
        operation=operation,
        group_size=group_size,
        responses=_joined(effect.responses for effect in effects),
        centre=_joined(effect.centre for effect in effects),
        weights=tuple(effect.weight for effect in effects if effect.weight),
        loss=_joined(effect.loss for effect in effects),
        silent_groups=f"unanimous groups: {silent}",
        task=_mixed(config),
        prompts=_joined(effect.prompts for effect in effects),
        attention=_attention(config),
        gains=gains,
        warnings=warnings,
    )


def _effects(config: DictConfig) -> list[Effect]:
    """What the extensions of this run do, in their order."""
    is_dial = config.algorithm.adv_estimator == "gsd"
    taking_part = extension.active(OmegaConf.select(config, "algorithm.gsd"))
    audits = [of.audit for of in taking_part if of.audit is not None and (is_dial or not of.weighs)]
    return [effect for audit_of in audits if (effect := extension.load(audit_of)(config)) is not None]


def _joined(texts: Iterable[str]) -> str:
    return ", then ".join(filter(None, texts))


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


def _attention(config: DictConfig) -> str:
    actor, model = config.actor_rollout_ref.actor, config.actor_rollout_ref.model
    if actor.strategy not in ("fsdp", "fsdp2"):
        return ""
    chosen = OmegaConf.select(model, "override_config.attn_implementation") or FLASH
    rows = "packed rows" if model.use_remove_padding else "padded rows"
    # Others compute the whole row under a mask.
    apart = model.use_remove_padding and chosen in (SDPA, FLASH)
    return f"{chosen} on {rows}{', sequence by sequence' if apart else ''}"


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
