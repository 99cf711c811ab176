"""Rewards in the trainer: counts those that failed and the time they took, tells the user, and stops the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from omegaconf import DictConfig

from verl_gsd.run.checks.limits import limits_of
from verl_gsd.run.messages import MessageWriter, RunStoppedError
from verl_gsd.trainer.reward_failures import KINDS, Failure

#: A run is not stopped for fewer lost rewards in a step or a validation, whatever share they are.
_FEWEST = 2
#: Rewards are too slow if the slowest takes more than this share of a step, as many steps in a row.
_SLOW_SHARE, _SLOW_STEPS = 0.5, 2

#: What to do about prompts that are too long.
_LONGER = (
    " Set data.max_prompt_length higher, or data.truncation=left, right or middle to cut prompts that are too long, or "
    "leave such prompts out of the data."
)


@dataclass(frozen=True)
class LostReward:
    """A response without a reward.

    Attributes:
        data_source, index: of its prompt.
        by_agent_loop: the agent loop gave the reward itself, and no reward function.
    """

    data_source: str
    index: int | str
    failure: Failure
    by_agent_loop: bool = False


@dataclass(frozen=True)
class Rewards:
    """What was read of the rewards of groups that are new in a partition.

    Attributes:
        groups, responses: how many; a response that lost its reward counts too.
        lost: responses without a reward. They are no longer in the queue.
        seconds: that responses waited for their reward, as far as verl measured it.
    """

    partition: str
    groups: int
    responses: int
    lost: tuple[LostReward, ...]
    seconds: tuple[float, ...] = ()


class _Count:
    """Responses seen, and those of them that lost their reward."""

    def __init__(self) -> None:
        self.responses = 0
        self.lost: list[LostReward] = []

    def add(self, responses: int, lost: Sequence[LostReward]) -> None:
        self.responses += responses
        self.lost += lost

    @property
    def share(self) -> float:
        return len(self.lost) / max(1, self.responses)

    def described(self) -> str:
        """``3 of 64 responses lost their reward (KeyError 2, returned None 1)``."""
        whats = Counter(loss.failure.what for loss in self.lost).most_common()
        return (
            f"{len(self.lost)} of {self.responses} responses lost their reward "
            f"({', '.join(f'{what} {count}' for what, count in whats)})"
        )


class RewardMonitor:
    """Sees the rewards of every response that the trainer reads, one step or one validation at a time.

    Args:
        function: the reward function, in words.
        limit: share of the responses, in [0, 1], whose reward may fail.
        batch_groups, batch_responses: groups and responses that an update takes. An asynchronous trainer may read few
            responses for a step, because the others were read in an earlier one; their share is of a batch.
        workers: number of reward workers.
        overlaps: rewards are computed while the policy is updated, so that slow ones need not slow a step.
    """

    def __init__(
        self,
        messages: MessageWriter,
        *,
        function: str,
        limit: float,
        batch_groups: int,
        batch_responses: int,
        workers: int,
        overlaps: bool,
    ) -> None:
        self._messages, self._function, self._limit = messages, function, limit
        self._batch_groups, self._batch_responses = batch_groups, batch_responses
        self._workers, self._overlaps = workers, overlaps
        self._of_step, self._of_validation = _Count(), _Count()
        self._groups = 0
        self._seconds: list[float] = []
        self._whats: set[str] = set()  # of which the user has the first case
        self._lost = self._told_lost = 0  # in training
        self._told_share = 0.0
        self._slow_steps, self._told_slow = 0, False

    @classmethod
    def of(cls, config: DictConfig, messages: MessageWriter, *, batch_groups: int, overlaps: bool) -> RewardMonitor:
        """For the run of ``config``."""
        return cls(
            messages,
            function=function_of(config),
            limit=limits_of(config).failed_rewards,
            batch_groups=batch_groups,
            batch_responses=batch_groups * config.actor_rollout_ref.rollout.n,
            workers=config.reward.num_workers,
            overlaps=overlaps,
        )

    # Training

    def saw(self, step: int, groups: int, responses: int, lost: Sequence[LostReward], seconds: Sequence[float]) -> None:
        """Rewards of further groups were read.

        Args:
            groups, responses: how many; those that lost their reward count too.
            seconds: that each response waited for its reward; fewer where some did not.

        Raises:
            RunStoppedError: too many are lost. Dynamic sampling replaces such groups without end, and never trains.
        """
        self._groups += groups
        self._of_step.add(responses, lost)
        self._seconds += seconds
        self._lost += len(lost)
        self._tell_first(lost, f"step {step}")
        if self._groups >= self._batch_groups:
            self.check(step)

    def check(self, step: int) -> None:
        """A batch is about to be chosen.

        Raises:
            RunStoppedError: too many responses of the step lost their reward.
        """
        consequence = "The model was not updated with the batch at hand."
        self._check(self._of_step, f"step {step}", consequence, at_least=self._batch_responses)

    def end_step(self, step: int, seconds: float) -> dict[str, float]:
        """The step took ``seconds``.

        Returns:
            Of the responses that were read in the step ``reward/failed``, how many lost their reward;
            ``reward/failed_share``; ``reward/failures/<kind>``, how many by each kind of failure;
            ``reward/seconds/{mean,max}`` that a response waited for its reward; and ``reward/share_of_step``, the
            longest of these waits as a share of the step.
        """
        count, waits = self._of_step, self._seconds
        self._of_step, self._seconds, self._groups = _Count(), [], 0
        kinds = Counter(loss.failure.kind for loss in count.lost)
        metrics = {"reward/failed": float(len(count.lost)), "reward/failed_share": count.share}
        metrics |= {f"reward/failures/{kind}": float(kinds[kind]) for kind in KINDS}
        if count.lost and (self._lost >= 2 * self._told_lost or count.share >= 2 * self._told_share):
            self._told_lost, self._told_share = self._lost, max(self._told_share, count.share)
            self._messages.write("warning", f"Step {step}: {count.described()}; {self._lost} so far in this run.")
        if waits:
            longest = max(waits)
            metrics |= {"reward/seconds/mean": float(np.mean(waits)), "reward/seconds/max": longest}
            metrics["reward/share_of_step"] = longest / seconds
            self._tell_slow(step, longest, seconds)
        return metrics

    # Validation

    def saw_validation(self, step: int, responses: int, lost: Sequence[LostReward]) -> None:
        """Rewards of a batch of a validation were read; arguments as ``saw``."""
        self._of_validation.add(responses, lost)
        self._tell_first(lost, f"the validation at step {step}")

    def end_validation(self, step: int) -> dict[str, float]:
        """Returns ``val/failed_rewards``: how many responses lost their reward.

        Raises:
            RunStoppedError: too many did.
        """
        count, self._of_validation = self._of_validation, _Count()
        where = f"the validation at step {step}"
        self._check(count, where, "Its accuracies are not reported.")
        if count.lost:
            self._messages.write(
                "warning",
                f"In {where}, {count.described()}. They count as wrong in val-core/*/acc, as sessions that fail do; "
                "val-aux/*/acc_success_only leaves them out.",
            )
        return {"val/failed_rewards": float(len(count.lost))}

    # Words

    def _tell_first(self, lost: Sequence[LostReward], where: str) -> None:
        for loss in lost:
            failure = loss.failure
            if failure.what in self._whats:
                continue
            consequence = (
                ""
                if self._whats
                else (
                    " Such a response is not trained on. The run stops if more than "
                    f"{100 * self._limit:g}% of the responses of a step or a validation, and at least {_FEWEST}, lose "
                    "their reward "
                    f"(algorithm.gsd.limits.failed_rewards={self._limit:g})."
                )
            )
            self._whats.add(failure.what)
            case = self._case(loss) + "." + (_LONGER if failure.kind == "prompt_too_long" else "")
            self._messages.write(
                "warning",
                f"A response lost its reward in {where}: {case}{consequence}{_indented(failure.trace)}",
            )

    def _case(self, loss: LostReward) -> str:
        of_agent_loop = loss.by_agent_loop or loss.failure.kind == "prompt_too_long"
        who = "the agent loop" if of_agent_loop else self._function
        return f"{who} {loss.failure.described()} (data_source={loss.data_source}, index={loss.index})"

    def _check(self, count: _Count, where: str, consequence: str, *, at_least: int = 0) -> None:
        responses = max(count.responses, at_least)
        if len(count.lost) >= _FEWEST and len(count.lost) / responses > self._limit:
            raise self._stopped(count, responses, where, consequence)

    def _stopped(self, count: _Count, responses: int, where: str, consequence: str) -> RunStoppedError:
        share = f"{100 * len(count.lost) / responses:.1f}%"
        of_batch = f" of the {responses} that an update takes" if responses > count.responses else ""
        first = next((loss for loss in count.lost if loss.failure.trace), count.lost[0])
        seconds = (
            " For slow ones set algorithm.gsd.limits.reward_seconds (with reward.reward_manager.name=rate_limited "
            "reward.timeout) or reward.num_workers higher."
        )
        kinds = {loss.failure.kind for loss in count.lost}
        function = "" if kinds == {"prompt_too_long"} else " Correct the function."
        return RunStoppedError(
            f"In {where}, {count.described()}: {share}{of_batch}, more than "
            f"algorithm.gsd.limits.failed_rewards={self._limit:g} allows. {consequence} For example "
            f"{self._case(first)}.{function}{_LONGER if 'prompt_too_long' in kinds else ''}"
            f"{seconds if 'too_slow' in kinds else ''} Or set algorithm.gsd.limits.failed_rewards to the share of "
            f"responses that the run may lose.{_indented(first.failure.trace)}"
        )

    def _tell_slow(self, step: int, longest: float, seconds: float) -> None:
        self._slow_steps = self._slow_steps + 1 if longest > _SLOW_SHARE * seconds else 0
        if self._overlaps or self._slow_steps < _SLOW_STEPS or self._told_slow:
            return
        self._told_slow = True
        self._messages.write(
            "warning",
            f"Rewards take most of a step: in step {step} a response waited {longest:.1f} s of {seconds:.1f} s for "
            f"{self._function}. Set reward.num_workers above {self._workers}, make the function faster, or, if it "
            "waits for a server, make it an async function.",
        )


def function_of(config: DictConfig) -> str:
    """The reward function of a run, in words."""
    custom, model = config.reward.custom_reward_function, config.reward.reward_model
    if custom.path is not None:
        return f"{custom.name} of {custom.path}"
    if model.enable:
        return f"the reward model {model.model_path}"
    return "verl's own reward function"


def _indented(trace: str) -> str:
    return "".join(f"\n    {line}" for line in trace.splitlines())
