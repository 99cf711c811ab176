"""What DaGRPO adds to a trainer, read off its config: a judge, demonstrations, a probe of gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_gsd.algorithms import dagrpo_settings
from verl_gsd.demonstrations import settings as demonstrations
from verl_gsd.judge import settings as judge
from verl_gsd.judge.build import scorer_of
from verl_gsd.judge.scorer import Scorer
from verl_gsd.trainer.dagrpo_worker import PROBE
from verl_gsd.trainer.demonstrating import Demonstrating
from verl_gsd.trainer.demonstration_pools import Experts, ExpertsOrOwn, OwnSuccesses, Pool
from verl_gsd.trainer.judging import Judging
from verl_gsd.trainer.parts import Part
from verl_gsd.trainer.reward_model import RewardModelScorer


class Probing(Part):
    """Has the workers compare the gradients of positives and negatives, every so many steps."""

    def __init__(self, every: int) -> None:
        self._every = every

    def instructions(self, step: int) -> dict[str, Any]:
        return {PROBE: step % self._every == 0}


def dagrpo_parts(config: DictConfig, trainer: Any) -> Iterator[Part]:
    """The parts that ``algorithm.gsd.dagrpo`` asks for.

    Args:
        trainer: a ``GroupTrainer``; its tokenizer and reward workers are looked up when they are needed.

    Raises:
        ValueError: the section is wrong.
    """
    section = OmegaConf.select(config, "algorithm.gsd.dagrpo")
    if section is None:
        return
    own = dagrpo_settings.Settings.of(section)
    if section.get("judge") is not None:
        yield _judging(judge.Settings.of(section.judge), config, trainer)
    if section.get("demonstrations") is not None:
        yield _demonstrating(demonstrations.Settings.of(section.demonstrations), config, trainer)
    if own.probe_every is not None:
        yield Probing(own.probe_every)


def _judging(settings: judge.Settings, config: DictConfig, trainer: Any) -> Judging:
    def scorer() -> Scorer:
        if settings.scorer != "reward_model":
            return scorer_of(settings)
        model = str(config.reward.reward_model.model_path)
        return RewardModelScorer(_workers(trainer), trainer.tokenizer, model, timeout_s=settings.timeout_s)

    return Judging(settings, scorer, lambda: trainer.tokenizer)


def _demonstrating(settings: demonstrations.Settings, config: DictConfig, trainer: Any) -> Demonstrating:
    longest = int(config.data.max_response_length)
    own = OwnSuccesses(
        trainer.prompts.responses, keep=settings.per_group, longest=longest, tokenizer=lambda: trainer.tokenizer
    )
    experts = Experts(
        settings.column,
        longest=longest,
        tokenizer=lambda: trainer.tokenizer,
        template=config.data.get("apply_chat_template_kwargs") or {},
        workers=lambda: _workers(trainer),
    )
    pools: dict[str, Pool] = {"expert": experts, "self": own, "expert_or_self": ExpertsOrOwn(experts, own)}
    return Demonstrating(settings, pools[settings.source], int(config.actor_rollout_ref.rollout.n))


def _workers(trainer: Any) -> Sequence[Any]:
    return trainer.reward_loop_manager.reward_loop_worker_handles
