"""Calls the reward function of the config in this process, as verl's reward manager ``naive`` does."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.utils.reward_score import default_compute_score

from verl_gsd.errors import ConfigError
from verl_gsd.extension import Verdict
from verl_gsd.trainer.reward_failures import failure_of_score
from verl_gsd.trainer.rows import verdict_of


class RewardFailedError(RuntimeError):
    """The reward function raised an error or returned no finite number. The message names the prompt."""


@dataclass(frozen=True)
class Reward:
    """What the reward function returned for one response.

    Attributes:
        score: the reward.
        info: the other values, as verl stores them in ``reward_extra_info``.
    """

    score: float
    info: Mapping[str, Any]


class InlineVerifier:
    """The reward function, and the verifier of extensions (``extension.Verifier``), which answers at once.

    Raises:
        ConfigError: the reward function is asynchronous.
    """

    def __init__(self, config: DictConfig, tokenizer: Any) -> None:
        self._compute_score = get_custom_reward_fn(config) or default_compute_score
        if inspect.iscoroutinefunction(self._compute_score):
            raise ConfigError(
                f"reward.custom_reward_function.name={config.reward.custom_reward_function.name}: the laboratory calls "
                "reward functions in its own process, and this one is asynchronous. Use a function without async, or "
                "train on the stack with verl-gsd train."
            )
        self.workers: Sequence[Any] = ()  # nothing to send responses to: they are verified at once
        self._tokenizer = tokenizer
        self._texts: dict[tuple[int, ...], str] = {}

    def reward(self, columns: Mapping[str, Any], response: Sequence[int]) -> Reward:
        """The reward of a response, given as token ids.

        Args:
            columns: the prompt's columns of the data set.

        Raises:
            RewardFailedError: see there.
        """
        extra_info = dict(columns.get("extra_info") or {}) | {"num_turns": 2, "rollout_reward_scores": {}}
        where = f"data_source={columns['data_source']}, index={columns['index']}"
        try:
            result = self._compute_score(
                data_source=columns["data_source"],
                solution_str=self._text(response),
                ground_truth=columns["reward_model"]["ground_truth"],
                extra_info=extra_info,
            )
            info = dict(result) if isinstance(result, Mapping) else {"acc": result}
            score = result["score"] if isinstance(result, Mapping) else result
            problem = failure_of_score(score)
        except Exception as error:
            raise RewardFailedError(
                f"the reward function raised {type(error).__name__} for {where}: {error}"
            ) from error
        if problem is not None:
            raise RewardFailedError(f"the reward function {problem.describe()} for {where}")
        return Reward(float(score), info)

    def submit(self, columns: Mapping[str, Any], prompt: Sequence[int], response: Sequence[int]) -> Reward:
        return self.reward(columns, response)

    def has_answered(self, answer: Reward) -> bool:
        return True

    def verdict(self, answer: Reward, timeout_s: float) -> Verdict | None:
        return Verdict(answer.score, verdict_of({"reward_extra_info": answer.info}))

    def _text(self, response: Sequence[int]) -> str:
        key = tuple(response)
        if key not in self._texts:
            self._texts[key] = self._tokenizer.decode(key, skip_special_tokens=True)
        return self._texts[key]
