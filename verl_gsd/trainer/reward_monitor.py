"""Counts failed rewards and the time that rewards take, warns the user, and stops a run that loses too many rewards."""

from __future__ import annotations

import math
import numbers
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from omegaconf import DictConfig

from verl_gsd.groups import Group, first_invalid_accuracy
from verl_gsd.run.checks.limits import limits_of
from verl_gsd.run.messages import MessageWriter, RunStoppedError
from verl_gsd.trainer.reward_failures import KINDS, Failure

#: A run never stops for fewer lost rewards than this in a step or a validation, whatever their share.
_FEWEST = 2
#: Rewards are too slow if the slowest takes more than ``_SLOW_SHARE`` of a step in ``_SLOW_STEPS`` steps in a row.
_SLOW_SHARE, _SLOW_STEPS = 0.5, 2

#: What to do about prompts that are too long.
_TOO_LONG_FIX = (
    " Set data.max_prompt_length higher, or set data.truncation=left, right or middle to cut such prompts, or remove "
    "them from the data."
)


@dataclass(frozen=True)
class LostReward:
    """A response without a reward.

    Attributes:
        data_source, index: the key of its prompt.
        by_agent_loop: whether the agent loop returned the reward itself, without a reward function.
    """

    data_source: str
    index: int | str
    failure: Failure
    by_agent_loop: bool = False


def index_to_show(index: Any) -> int | str:
    """A prompt's index for display. Some data sets have texts as indices."""
    return int(index) if isinstance(index, numbers.Integral) else str(index)


@dataclass(frozen=True)
class Rewards:
    """The rewards of newly completed groups of a partition.

    Attributes:
        groups, responses: number of groups and of responses, including responses that lost their reward.
        lost: responses without a reward. They are no longer in the queue.
        seconds: seconds that each response waited for its reward, for the responses that verl measured.
    """

    partition: str
    groups: int
    responses: int
    lost: tuple[LostReward, ...]
    seconds: tuple[float, ...] = ()


class _Count:
    """Counts responses, and collects those that lost their reward."""

    def __init__(self) -> None:
        self.responses = 0
        self.lost: list[LostReward] = []

    def add(self, responses: int, lost: Sequence[LostReward]) -> None:
        self.responses += responses
        self.lost += lost

    @property
    def share(self) -> float:
        return len(self.lost) / max(1, self.responses)

    def describe(self) -> str:
        """For example ``3 of 64 responses lost their reward (KeyError 2, returned None 1)``."""
        counts = Counter(loss.failure.what for loss in self.lost).most_common()
        return (
            f"{len(self.lost)} of {self.responses} responses lost their reward "
            f"({', '.join(f'{label} {count}' for label, count in counts)})"
        )


class RewardMonitor:
    """Counts the rewards of every response that the trainer reads, per step and per validation.

    Args:
        function: a description of the reward function.
        limit: share of the responses, in [0, 1], whose reward may fail.
        batch_groups, batch_responses: groups and responses per update. An asynchronous trainer may read few responses
            in a step, because it read the others in an earlier step. The share is then relative to a batch.
        workers: number of reward workers.
        overlaps: whether rewards are computed while the policy is updated. Slow rewards then need not slow a step.
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
        self._reported_labels: set[str] = set()  # ``Failure.what`` of which the user has seen the first case
        self._lost = self._reported_lost = 0  # in training
        self._reported_share = 0.0
        self._slow_steps, self._slow_reported = 0, False
        self._unrated_reported: set[str] = set()  # why responses had no accuracy: ``outside``, ``none`` or ``missing``

    @classmethod
    def from_config(
        cls, config: DictConfig, messages: MessageWriter, *, batch_groups: int, overlaps: bool
    ) -> RewardMonitor:
        """The monitor for the run of ``config``."""
        return cls(
            messages,
            function=describe_reward_function(config),
            limit=limits_of(config).failed_rewards,
            batch_groups=batch_groups,
            batch_responses=batch_groups * config.actor_rollout_ref.rollout.n,
            workers=config.reward.num_workers,
            overlaps=overlaps,
        )

    # Training

    def on_rewards(
        self, step: int, groups: int, responses: int, lost: Sequence[LostReward], seconds: Sequence[float]
    ) -> None:
        """Rewards of more training groups were read.

        Args:
            groups, responses: number of groups and of responses, including responses that lost their reward.
            seconds: seconds that each response waited for its reward, for the responses that verl measured.

        Raises:
            RunStoppedError: a batch's worth of groups was read, and too many rewards are lost. Without this check,
                dynamic sampling would replace such groups for ever and never train.
        """
        self._groups += groups
        self._of_step.add(responses, lost)
        self._seconds += seconds
        self._lost += len(lost)
        self._report_first(lost, f"step {step}")
        if self._groups >= self._batch_groups:
            self.check(step)

    def check(self, step: int) -> None:
        """A batch is about to be chosen.

        Raises:
            RunStoppedError: too many responses of the step lost their reward.
        """
        consequence = "The model was not updated with this batch."
        self._check(self._of_step, f"step {step}", consequence, at_least=self._batch_responses)

    def end_step(self, step: int, seconds: float) -> dict[str, float]:
        """The step ended and took ``seconds``.

        Returns:
            Metrics of the responses that were read in the step:

            - ``reward/failed``: number of responses that lost their reward; ``reward/failed_share``: their share.
            - ``reward/failures/<kind>``: number of failures of each kind.
            - ``reward/seconds/{mean,max}``: seconds that a response waited for its reward.
            - ``reward/share_of_step``: the longest of these waits as a share of the step.
        """
        count, waits = self._of_step, self._seconds
        self._of_step, self._seconds, self._groups = _Count(), [], 0
        kinds = Counter(loss.failure.kind for loss in count.lost)
        metrics = {"reward/failed": float(len(count.lost)), "reward/failed_share": count.share}
        metrics |= {f"reward/failures/{kind}": float(kinds[kind]) for kind in KINDS}
        if count.lost and (self._lost >= 2 * self._reported_lost or count.share >= 2 * self._reported_share):
            self._reported_lost, self._reported_share = self._lost, max(self._reported_share, count.share)
            self._messages.write("warning", f"Step {step}: {count.describe()}; {self._lost} so far in this run.")
        if waits:
            longest = max(waits)
            metrics |= {"reward/seconds/mean": float(np.mean(waits)), "reward/seconds/max": longest}
            metrics["reward/share_of_step"] = longest / seconds
            self._report_slow(step, longest, seconds)
        return metrics

    def report_restored(self, unrated: Collection[str]) -> None:
        """Warn of data sources that have no accuracies in this run, whatever the reward function returns now.

        Args:
            unrated: the sources of which a checkpoint says so (``PromptStore.unrated``).
        """
        if unrated:
            sources = ", ".join(sorted(unrated))
            if not sources.isprintable():  # somebody else may have made the checkpoint
                sources = ascii(sources)
            self._messages.write(
                "warning",
                f"There are no solve rates of data_source={sources}, because acc was outside [0, 1] "
                "before the checkpoint. If the reward function has been corrected since then, resume with "
                "algorithm.gsd.state=fresh. The memory of prompts and all other saved state is then empty, and new "
                "records have solve rates. Reports still have none of this source for the whole run.",
            )

    def report_unrated(self, step: int, groups: Sequence[Group], rated: Collection[str]) -> None:
        """Warn of the first step in which responses have no accuracy in [0, 1].

        If they only lacked one, the first step in which one lies outside [0, 1] is reported as well. So is the first
        one in which responses without an ``acc`` count as wrong, because others of their data source have one.

        Args:
            groups: the groups that left in the step.
            rated: the data sources that have accuracies (``records.rated_sources``).
        """
        invalid = {group.uid: accuracy for group in groups if (accuracy := first_invalid_accuracy(group)) is not None}

        def reason(group: Group) -> str:
            if not math.isnan(invalid[group.uid]):
                return "outside"
            return "missing" if group.data_source in rated else "none"

        # A value outside [0, 1] comes first, because it costs the data source all its accuracies.
        first = min(
            (group for group in groups if group.uid in invalid),
            key=lambda group: ("outside", "none", "missing").index(reason(group)),
            default=None,
        )
        if first is None or self._unrated_reported & {"outside", reason(first)}:
            return
        self._unrated_reported.add(reason(first))
        in_groups = f"In {len(invalid)} of {len(groups)} groups of step {step},"
        example = f"For example, data_source={first.data_source}, index={first.index} has"
        if reason(first) == "missing":
            self._messages.write(
                "warning",
                f"{in_groups} responses have no acc. {example} no acc from {self._function}, which returned acc for "
                "another response of this data source. Responses without acc count as wrong in all solve rates, as in "
                "verl's validations. Return acc for every response, 1 for a right and 0 for a wrong one, beside score "
                "from reward.custom_reward_function.",
            )
            return
        value, remedy = "no acc", ""
        consequence = "The records and reports have no solve rates of this data source as long as no response has acc"
        if reason(first) == "outside":
            value = f"acc={invalid[first.uid]:g}"
            consequence = (
                f"Groups without a value outside [0, 1] are no fair sample of data_source={first.data_source}. The "
                "records therefore have no solve rates of this source from now on, reports have none for the whole run"
            )
            remedy = " A resume then needs algorithm.gsd.state=fresh."
        self._messages.write(
            "warning",
            f"{in_groups} responses have no accuracy in [0, 1]. {example} {value} from {self._function}. "
            f"{consequence}, and there are no predictions of silent groups. To get them, return acc, 1 for a right and "
            f"0 for a wrong response, beside score from reward.custom_reward_function.{remedy}",
        )

    # Validation

    def on_validation_rewards(self, step: int, responses: int, lost: Sequence[LostReward]) -> None:
        """Rewards of a validation batch were read. For the arguments see ``on_rewards``."""
        self._of_validation.add(responses, lost)
        self._report_first(lost, f"the validation at step {step}")

    def end_validation(self, step: int) -> dict[str, float]:
        """The validation ended.

        Returns:
            The metric ``val/failed_rewards``: number of responses of the validation that lost their reward.

        Raises:
            RunStoppedError: too many responses lost their reward.
        """
        count, self._of_validation = self._of_validation, _Count()
        where = f"the validation at step {step}"
        self._check(count, where, "Its accuracies are not reported.")
        if count.lost:
            self._messages.write(
                "warning",
                f"In {where}, {count.describe()}. They count as wrong in val-core/*/acc, as verl counts failed "
                "sessions, and val-aux/*/acc_success_only leaves them out.",
            )
        return {"val/failed_rewards": float(len(count.lost))}

    # Messages

    def _report_first(self, lost: Sequence[LostReward], where: str) -> None:
        """Report the first failure of each label in this run."""
        for loss in lost:
            failure = loss.failure
            if failure.what in self._reported_labels:
                continue
            consequence = (
                ""
                if self._reported_labels
                else (
                    " Such a response is not trained on. The run stops if more than "
                    f"{100 * self._limit:g}% of the responses of a step or a validation, and at least {_FEWEST}, lose "
                    "their reward "
                    f"(algorithm.gsd.limits.failed_rewards={self._limit:g})."
                )
            )
            self._reported_labels.add(failure.what)
            case = self._case(loss) + "." + (_TOO_LONG_FIX if failure.kind == "prompt_too_long" else "")
            self._messages.write(
                "warning",
                f"A response lost its reward in {where}: {case}{consequence}{_indented(failure.trace)}",
            )

    def _case(self, loss: LostReward) -> str:
        is_agent_loops = loss.by_agent_loop or loss.failure.kind == "prompt_too_long"
        culprit = "the agent loop" if is_agent_loops else self._function
        return f"{culprit} {loss.failure.describe()} (data_source={loss.data_source}, index={loss.index})"

    def _check(self, count: _Count, where: str, consequence: str, *, at_least: int = 0) -> None:
        responses = max(count.responses, at_least)
        if len(count.lost) >= _FEWEST and len(count.lost) / responses > self._limit:
            raise self._too_many_lost(count, responses, where, consequence)

    def _too_many_lost(self, count: _Count, responses: int, where: str, consequence: str) -> RunStoppedError:
        share = f"{100 * len(count.lost) / responses:.1f}%"
        of_batch = f" of the {responses} responses of an update" if responses > count.responses else ""
        first = next((loss for loss in count.lost if loss.failure.trace), count.lost[0])
        slow_fix = (
            " For rewards that take too long, set algorithm.gsd.limits.reward_seconds (or +reward.timeout with "
            "reward.reward_manager.name=rate_limited) or reward.num_workers higher."
        )
        kinds = {loss.failure.kind for loss in count.lost}
        function_fix = "" if kinds == {"prompt_too_long"} else " Correct the reward function."
        return RunStoppedError(
            f"In {where}, {count.describe()}: {share}{of_batch}, more than "
            f"algorithm.gsd.limits.failed_rewards={self._limit:g} allows. {consequence} For example, "
            f"{self._case(first)}.{function_fix}{_TOO_LONG_FIX if 'prompt_too_long' in kinds else ''}"
            f"{slow_fix if 'too_slow' in kinds else ''} Or set algorithm.gsd.limits.failed_rewards to the share of "
            f"responses that the run may lose.{_indented(first.failure.trace)}"
        )

    def _report_slow(self, step: int, longest: float, seconds: float) -> None:
        self._slow_steps = self._slow_steps + 1 if longest > _SLOW_SHARE * seconds else 0
        if self._overlaps or self._slow_steps < _SLOW_STEPS or self._slow_reported:
            return
        self._slow_reported = True
        self._messages.write(
            "warning",
            f"Rewards take most of a step: in step {step} a response waited {longest:.1f} s of the step's "
            f"{seconds:.1f} s for {self._function}. Set reward.num_workers above {self._workers}, make the function "
            "faster, or, if it waits for a server, make it an async function.",
        )


def describe_reward_function(config: DictConfig) -> str:
    """A description of a run's reward function for messages."""
    custom, model = config.reward.custom_reward_function, config.reward.reward_model
    if custom.path is not None:
        return f"{custom.name} of {custom.path}"
    if model.enable:
        return f"the reward model {model.model_path}"
    return "verl's own reward function"


def _indented(trace: str) -> str:
    return "".join(f"\n    {line}" for line in trace.splitlines())
