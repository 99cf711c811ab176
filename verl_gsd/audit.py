"""Describe what a resolved config does to the group's standard deviation sigma, before the run starts.

By the identity of arXiv 2607.00152, an algorithm of the GRPO family is one operation on sigma. Its gain
sigma^(2 - alpha) therefore tells which prompts it learns from. The audit reads the operation from the config and warns
of settings that contradict each other. It computes nothing that a trainer uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from omegaconf import DictConfig, OmegaConf

from verl_gsd import config as groups
from verl_gsd import extension
from verl_gsd.config.attention import FLASH, SDPA
from verl_gsd.conflicts import is_accepted
from verl_gsd.denominators import WITH_OTHER_TERMS, divided_by
from verl_gsd.dotted_keys import dotted_leaves
from verl_gsd.dynamic_sampling import GRADED_VERIFIERS, OLD_METRICS
from verl_gsd.estimators import has_group_baseline
from verl_gsd.planning import gain
from verl_gsd.scalars import is_finite, is_whole

#: Solve rates for which the audit prints the gain. The gain is symmetric about 0.5.
RATES = (0.01, 0.05, 0.1, 0.25, 0.5)


#: Clips of single tokens are 0.2 and 0.28, and GSPO's of whole responses are 3e-4 and 4e-4.
_WIDE_GSPO_CLIP = 0.05
#: Reward functions of this package that return only 0 and 1.
_BINARY_VERIFIERS = frozenset(f"pkg://verl_gsd.tasks.{name}" for name in ("arithmetic", "maths", "choice"))


@dataclass(frozen=True)
class Operation:
    """A_i = scale * (R_i - mu) / (sigma + eps)^alpha, where sigma has the divisor G - ddof.

    Attributes:
        description: what the operation does to sigma.
        scale: a constant factor, for groups of equal size.
    """

    description: str
    alpha: float
    ddof: int
    eps: float
    scale: float = 1.0


@dataclass(frozen=True)
class Effect:
    """What an extension does to advantages, in words. ``Declaration.audit`` names the function that returns it.

    Each text is a part of a sentence without a full stop. An empty text is left out. If several extensions have a text,
    the audit prints them in the order of the extensions.

    Attributes:
        responses: responses that join or leave a group before its rewards are centred.
        centre: what replaces the rewards minus their group's mean.
        weight: the factor of the advantages, which applies after the division by sigma^alpha.
        loss: what the policy loss does with advantages.
        prompts: which prompts a step visits, and over what the objective then averages.
        unanimous: what happens to groups whose rewards are all equal, if no filter removes them.
        gain: a function (rates, group_size, *, alpha, ddof, eps) -> the expected gain at these solve rates, if the
            extension adds responses to groups. None: that of the dial.
        gain_note: the condition under which ``gain`` holds.
        warnings: settings that contradict the extension, each with what to set instead. Whole sentences.
    """

    responses: str = ""
    centre: str = ""
    weight: str = ""
    loss: str = ""
    prompts: str = ""
    unanimous: str = ""
    gain: Callable[..., np.ndarray] | None = None
    gain_note: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Audit:
    """The description of a config.

    Attributes:
        operation: None if the estimator is not an operation on the group's sigma.
        group_size: responses per prompt.
        responses: responses that join or leave groups; empty if a group is exactly the rollouts of its prompt.
        centre: what replaces the rewards minus their group's mean; empty if nothing does.
        weights: the factors of the advantages, in order.
        loss: what an extension's policy loss does; empty if the loss is one of verl's.
        silent_groups: what happens to groups whose rewards are all equal.
        task: which parts of the chosen task are still in use, if the command line mixes it with other data; empty if
            nothing is mixed.
        prompts: which prompts are visited; empty if each prompt is visited once per epoch.
        attention: how the policy computes attention; empty if the engine decides.
        gains: the gain at each of ``RATES`` divided by the gain at 0.5, for groups of ``group_size``.
        gain_note: the condition under which these gains hold; empty if there is none.
        warnings: settings that contradict each other, each with what to set instead.
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
    gain_note: str
    warnings: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """One line per fact. The steps from rewards to advantages are in the order in which they run."""
        if self.responses:
            yield f"responses: {self.responses}"
        if self.centre:
            yield f"centring: {self.centre}"
        if self.operation is None:
            yield f"{self.estimator}: the audit does not describe what this estimator does to the group's sigma"
        else:
            centred = "centred rewards" if self.centre else "(R - mu)"
            formula = f"{centred} / (sigma + {self.operation.eps:g})^{self.operation.alpha:g}"
            if self.operation.scale != 1:
                formula = f"{self.operation.scale:.3g} {formula}"
            yield f"{self.estimator}: {self.operation.description}; A = {formula}; {_divisor(self.operation.ddof)}"
            curve = "  ".join(f"p={rate:g}: {value:.2f}" for rate, value in zip(RATES, self.gains, strict=False))
            note = f" ({self.gain_note})" if self.gain_note else ""
            yield f"gain by solve rate p, relative to p=0.5, with groups of {self.group_size}: {curve or 'none'}{note}"
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
    """Describe ``config``, a resolved verl config."""
    group_size = int(config.actor_rollout_ref.rollout.n)
    operation = _operation(config.algorithm, group_size)
    effects = _effects(config)
    gains: tuple[float, ...] = ()
    if operation is not None and group_size > 1:
        expected = next((effect.gain for effect in effects if effect.gain is not None), gain)
        curve = np.asarray(
            expected(np.array(RATES), group_size, alpha=operation.alpha, ddof=operation.ddof, eps=operation.eps)
        )
        gains = tuple((curve / curve[-1]).tolist())
    if _filters_groups(config):
        silent_groups = "removed and replaced by groups of other prompts"
    else:
        silent_groups = _join(effect.unanimous for effect in effects) or _kept_groups(config, operation)
    warnings = (
        *_contradictions(config, operation, group_size),
        *(warning for effect in effects for warning in effect.warnings),
    )
    return Audit(
        estimator=str(config.algorithm.adv_estimator),
        operation=operation,
        group_size=group_size,
        responses=_join(effect.responses for effect in effects),
        centre=_join(effect.centre for effect in effects),
        weights=tuple(effect.weight for effect in effects if effect.weight),
        loss=_join(effect.loss for effect in effects),
        silent_groups=f"silent groups: {silent_groups}",
        task=_mixed_task(config),
        prompts=_join(effect.prompts for effect in effects),
        attention=_attention(config),
        gains=gains,
        gain_note=_join(effect.gain_note for effect in effects),
        warnings=warnings,
    )


def _effects(config: DictConfig) -> list[Effect]:
    """The effects of this run's extensions, in order."""
    is_dial = config.algorithm.adv_estimator == "gsd"
    active = extension.active(OmegaConf.select(config, "algorithm.gsd"))
    declarations = [declaration for declaration in active if is_dial or not declaration.weighs]
    effects = [_effect(declaration, config) for declaration in declarations]
    return [effect for effect in effects if effect is not None]


def _effect(declaration: extension.Declaration, config: DictConfig) -> Effect | None:
    """The declared effect of an extension. If another package declares none, its hooks say what it changes."""
    if declaration.audit is not None:
        return extension.call_declared(declaration, "audit", config)
    if extension.is_ours(declaration):
        return None
    runtime, text = (
        extension.load(declaration.runtime),
        f"algorithm.gsd.{declaration.name}, which declares no audit text",
    )
    centre, weight = (extension.overrides(runtime, hook) for hook in ("centre", "weight"))
    return Effect(centre=f"by {text}" if centre else "", weight=f"the factor of {text}" if weight else "")


def _kept_groups(config: DictConfig, operation: Operation | None) -> str:
    """What silent groups do to an update if nothing removes them or leaves them out of the denominator."""
    if not has_group_baseline(config.algorithm.adv_estimator):
        return "kept, and trained on: this estimator does not compare the responses of a group"
    if config.algorithm.use_kl_in_reward:
        return "kept, and trained on: the KL penalty of algorithm.use_kl_in_reward makes their rewards differ"
    actor = config.actor_rollout_ref.actor
    if actor.policy_loss.loss_mode in WITH_OTHER_TERMS:
        return (
            "kept, with advantages 0; the policy loss still has a gradient in these groups, because "
            f"policy_loss.loss_mode={actor.policy_loss.loss_mode} has a term without the advantage"
        )
    unit = divided_by(actor.policy_loss.loss_mode, actor.loss_agg_mode)
    if operation is None or unit is None:
        return "kept, with gain 0"
    text = (
        f"kept, with gain 0; the policy loss is also divided by the {unit} of these groups, so that a share s of "
        f"silent {unit} makes the policy's gradient smaller by the factor 1 - s"
    )
    left_out = dict(dotted_leaves(OmegaConf.to_container(groups.load("silent_groups", "left_out"))))
    return f"{text} (silent_groups=left_out divides by the others alone)" if is_accepted(config, left_out) else text


def _join(texts: Iterable[str]) -> str:
    return ", then ".join(filter(None, texts))


#: What a task provides, by the key that replaces it.
_TASK_KEYS = {
    "data.train_files": "the training prompts",
    "data.val_files": "the held-out set",
    "reward.custom_reward_function.path": "the verifier",
    "actor_rollout_ref.model.path": "the model",
}
#: A user who replaces the data may forget that these keys still have the task's values.
_EASILY_FORGOTTEN = ("reward.custom_reward_function.path", "data.val_files")


def _mixed_task(config: DictConfig) -> str:
    """The value of ``Audit.task``."""
    name = OmegaConf.select(config, "task.name")
    if name is None:
        return ""
    task = OmegaConf.merge(groups.load_with_defaults("task", name), {"task": config.task})
    is_the_tasks = {key: OmegaConf.select(config, key) == OmegaConf.select(task, key) for key in _TASK_KEYS}
    others = ["a recipe"] if "recipe" in config else []
    others += [f"another {key}" for key in _TASK_KEYS if not is_the_tasks[key]]
    kept = [
        f"{_TASK_KEYS[key]} ({key}={OmegaConf.select(config, key)})" for key in _EASILY_FORGOTTEN if is_the_tasks[key]
    ]
    if not others or not kept:
        return ""
    are = "is" if len(kept) == 1 else "are"
    keys = "this key" if len(kept) == 1 else "these keys"
    return (
        f"task={name} with {' and '.join(others)}: {' and '.join(kept)} {are} still the task's. Set {keys} to change "
        "that."
    )


def _operation(algorithm: DictConfig, group_size: int) -> Operation | None:
    estimator = str(algorithm.adv_estimator)
    if estimator == "gsd":
        gsd = algorithm.gsd
        return Operation(_describe(gsd.alpha), gsd.alpha, gsd.ddof, gsd.eps)
    if estimator in ("grpo", "grpo_vectorized"):
        alpha = 1.0 if algorithm.norm_adv_by_std_in_grpo else 0.0
        return Operation(_describe(alpha), alpha, 1, 1e-6)
    if estimator in ("rloo", "rloo_vectorized") and group_size > 1:
        return Operation("keeps sigma (RLOO: G/(G-1) times Dr. GRPO)", 0.0, 1, 0.0, group_size / (group_size - 1))
    return None


def _attention(config: DictConfig) -> str:
    actor, model = config.actor_rollout_ref.actor, config.actor_rollout_ref.model
    if actor.strategy not in ("fsdp", "fsdp2"):
        return ""
    implementation = OmegaConf.select(model, "override_config.attn_implementation") or FLASH
    rows = "packed rows" if model.use_remove_padding else "padded rows"
    # Other implementations compute the whole row under a mask.
    by_sequence = model.use_remove_padding and implementation in (SDPA, FLASH)
    return f"{implementation} on {rows}{', sequence by sequence' if by_sequence else ''}"


def _divisor(ddof: int) -> str:
    """The divisor of sigma's squares, which ``ddof`` sets."""
    return f"sigma has the divisor G{f' - {ddof}' if ddof else ''} (ddof {ddof})"


def _describe(alpha: float) -> str:
    """What the division by sigma^alpha does to sigma."""
    descriptions: dict[float, str] = {
        1: "divides by sigma (GRPO)",
        0: "keeps sigma (Dr. GRPO)",
        2: "divides by sigma^2 (gives all mixed groups the same weight)",
    }
    return descriptions.get(alpha, f"divides by sigma^{alpha:g}")


def _contradictions(config: DictConfig, operation: Operation | None, group_size: int) -> Iterator[str]:
    algorithm, actor = config.algorithm, config.actor_rollout_ref.actor
    if group_size < 2:
        yield (
            f"actor_rollout_ref.rollout.n={group_size}: the rewards of a group are always equal, so that the policy "
            "learns nothing. Set it to 2 or more."
        )
    if actor.loss_agg_mode == "seq-mean-token-sum-norm":
        if operation is not None and operation.alpha == 1:
            yield (
                "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm belongs to Dr. GRPO, which keeps sigma, "
                f"but this config divides by sigma. Set {_setting_to_keep_sigma(algorithm)}, or set loss_agg_mode to "
                "GRPO's seq-mean-token-mean."
            )
        if actor.loss_scale_factor is None:
            yield (
                "actor_rollout_ref.actor.loss_scale_factor=null: verl then divides by the longest response of each "
                "micro-batch. Set it to a constant, for example data.max_response_length."
            )
    if operation is not None and operation.alpha > 1 and _rewards_may_be_graded(config):
        is_dr_grpos = actor.loss_agg_mode == "seq-mean-token-sum-norm"
        with_mode = " (to 1 only with loss_agg_mode=seq-mean-token-mean)" if is_dr_grpos else ""
        yield (
            f"algorithm.gsd.alpha={operation.alpha:g} with rewards that may be graded: sigma can then be close to 0, "
            "and advantages would grow without limit. Sigma therefore has a floor of s / (2 sqrt(G)), where s is a "
            "usual range of the rewards within the groups of a data source. Below the floor, a group's weight falls to "
            "0 as sigma does. If all rewards of a source are 0 or 1, this has no effect. A penalty above four times "
            "the difference between right and wrong, in two or more groups of a batch, puts groups of 0 and 1 below "
            "the floor. If responses differ only by noise, such as a length term, because hardly any of them is right, "
            "the noise can become the scale. In these cases set algorithm.gsd.alpha to 1 or "
            f"less{with_mode}, or set "
            "reward.custom_reward_function.path to a function that returns 0 or 1."
        )
    if operation is not None and algorithm.use_kl_in_reward:
        yield (
            "algorithm.use_kl_in_reward=true: sigma is then the standard deviation of the reward minus a KL penalty, "
            "and no group is silent. Set it to false, and set actor_rollout_ref.actor.use_kl_loss=true instead."
        )
    clips = {name: actor[name] for name in ("clip_ratio_low", "clip_ratio_high") if is_finite(actor[name])}
    if actor.policy_loss.loss_mode == "gspo" and max(clips.values(), default=0.0) > _WIDE_GSPO_CLIP:
        settings = " and ".join(f"actor_rollout_ref.actor.{name}={clip:g}" for name, clip in clips.items())
        yield (
            f"{settings} with policy_loss.loss_mode=gspo: its ratio is the geometric mean of those of a response's "
            "tokens and stays close to 1, so that it would not be clipped. GSPO's paper clips at 0.0003 and 0.0004. "
            "Set actor_rollout_ref.actor.clip_ratio_low=0.0003 and actor_rollout_ref.actor.clip_ratio_high=0.0004."
        )
    yield from _padded_steps(config)
    if _filters_groups(config):
        yield from _filter_contradictions(config)


def _mode(config: DictConfig) -> str:
    """verl's name of the trainer mode, also for ours on top of it."""
    return str(config.trainer.v1.trainer_mode).removeprefix("gsd_")


def parts_of_step(config: DictConfig) -> int:
    """The number of parts of a step. verl generates and updates part by part, and then gives vLLM the new weights.

    It is 1 if the config has no valid number, which another check reports.
    """
    parts = (config.trainer.v1.get(_mode(config)) or {}).get("parameter_sync_step")
    return parts if is_whole(parts, 1) else 1


def _padded_steps(config: DictConfig) -> Iterator[str]:
    """Say so if a step does not consist of whole mini-batches, because verl then adds rows of padding."""
    if any(declaration.counts_groups for declaration in extension.active(OmegaConf.select(config, "algorithm.gsd"))):
        return  # such an extension decides which rows a mini-batch has, and pads them itself
    actor, data, mode = config.actor_rollout_ref.actor, config.data, _mode(config)
    parts, mini = parts_of_step(config), actor.ppo_mini_batch_size
    prompts = data.train_batch_size // parts
    padding = -prompts % mini
    if mode == "separate_async" or not padding:
        return  # verl and our checks reject other sizes in separate_async
    step = "step" if parts == 1 else f"part of a step (trainer.v1.{mode}.parameter_sync_step={parts})"
    counts = divided_by(actor.policy_loss.loss_mode, actor.loss_agg_mode) == "responses"
    effect = " The loss is divided by the number of responses, and these rows count." if counts else ""
    # The rows of a mini-batch also have to divide among the workers, and into micro-batches of a fixed size.
    micro = 1 if actor.use_dynamic_bsz else actor.ppo_micro_batch_size_per_gpu or 1
    unit = config.trainer.nnodes * config.trainer.n_gpus_per_node * micro
    size = config.actor_rollout_ref.rollout.n
    wholes = [n for n in range(1, min(prompts, mini) + 1) if prompts % n == 0 and n * size % unit == 0]
    remedies = [f"actor_rollout_ref.actor.ppo_mini_batch_size={max(wholes)}"] if wholes else []
    # Recipes set the mini-batch to the batch, so that it would grow with it.
    fixed = f" and actor_rollout_ref.actor.ppo_mini_batch_size={mini}" if parts > 1 else ""
    remedies.append(f"data.train_batch_size={max(1, prompts // mini) * mini * parts}{fixed}")
    yield (
        f"actor_rollout_ref.actor.ppo_mini_batch_size={mini} with data.train_batch_size={data.train_batch_size}: each "
        f"{step} has {prompts} prompts, which are no whole mini-batches. verl adds rows of padding for {padding} "
        f"prompts, which have no loss.{effect} Set {', or '.join(remedies)}."
    )


def _rewards_may_be_graded(config: DictConfig) -> bool:
    """Whether rewards other than 0 and 1 are possible: only reward functions of this package are known not to."""
    has_length_penalty = OmegaConf.select(config, "reward.reward_kwargs.overlong_buffer_cfg.enable")
    return bool(has_length_penalty) or config.reward.custom_reward_function.path not in _BINARY_VERIFIERS


def _filters_groups(config: DictConfig) -> bool:
    """Whether verl's dynamic sampling replaces silent groups."""
    return bool(OmegaConf.select(config, "algorithm.filter_groups.enable"))


def _setting_to_keep_sigma(algorithm: DictConfig) -> str:
    is_dial = algorithm.adv_estimator == "gsd"
    return "algorithm.gsd.alpha=0" if is_dial else "algorithm.norm_adv_by_std_in_grpo=false"


def _reward_terms(config: DictConfig) -> str:
    """What ``metric=reward`` compares and what it leaves out, as a part of a sentence."""
    has_overlong_penalty = OmegaConf.select(config, "reward.reward_manager.name") == "dapo" and OmegaConf.select(
        config, "reward.reward_kwargs.overlong_buffer_cfg.enable"
    )
    terms = ", with the overlong penalty of reward.reward_kwargs.overlong_buffer_cfg" if has_overlong_penalty else ""
    return terms + (", without the KL penalty" if config.algorithm.use_kl_in_reward else "")


def _filter_contradictions(config: DictConfig) -> Iterator[str]:
    key, metric = "algorithm.filter_groups.metric", config.algorithm.filter_groups.metric
    has_verifier = OmegaConf.select(config, "reward.custom_reward_function.path") is not None
    if config.reward.reward_model.enable and not has_verifier:
        return  # its groups have no acc, and gsd_section.py rejects settings that read acc
    if metric in OLD_METRICS or not metric:
        return  # gsd_section.py rejects them
    is_graded = config.reward.custom_reward_function.path in GRADED_VERIFIERS
    if is_graded and metric == "acc":
        yield (
            f"{key}=acc: verl evicts groups whose verdicts agree, even if their scores differ. With partial credit, "
            "such groups have a gradient. Set it to score to evict only groups whose scores agree."
        )
    elif is_graded and metric == "score":
        return  # its score has no other terms
    elif metric == "reward":
        yield (
            f"{key}=reward: verl compares the rewards of a group{_reward_terms(config)}. Rewards with a term for "
            "length or format are rarely equal, so the filter keeps groups whose responses are all right or all wrong. "
            "Set it to acc, the verifier's verdict, if the reward function returns it."
        )
    elif metric == "score":
        yield (
            f"{key}=score: verl compares the score that the reward function returns, before a penalty of the reward "
            "manager. If the score has a term for length or format, the filter keeps groups whose responses are all "
            "right or all wrong. If the function returns a plain number, verl has no score and stops when the first "
            "group is complete. Set it to acc, the verifier's verdict, if the reward function returns it."
        )
    elif metric != "acc":
        yield (
            f"{key}={metric}: the reward function must return a value of this name for every response. Otherwise verl "
            "stops when the first group is complete. Set it to acc to compare the verifier's verdicts."
        )
    elif not has_verifier:
        yield (
            "algorithm.filter_groups.metric=acc with verl's own scorers: most of them return only a number, and verl "
            "sets acc to it. This is right only if the number is 0 or 1. Otherwise set "
            "reward.custom_reward_function.path to a function that returns score and acc."
        )
