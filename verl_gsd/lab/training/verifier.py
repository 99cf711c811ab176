"""Calls the reward function of the config in this process, as verl's reward manager ``naive`` does."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.utils.reward_score import default_compute_score

from verl_gsd.errors import ConfigError
from verl_gsd.extension import Verdict
from verl_gsd.run.reward_sources import without_code
from verl_gsd.trainer.reward_failures import ESCAPING, Failure, failure_of_error, failure_of_score
from verl_gsd.trainer.rows import verdict_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reward:
    """The reward of one response, as verl's reward workers return it under our trainer modes.

    Attributes:
        score: the reward; 0.0 if it failed.
        info: what verl stores in ``reward_extra_info``: the other values that the reward function returned, or the mark
            of the failure.
    """

    score: float
    info: Mapping[str, Any]

    @property
    def failure(self) -> Failure | None:
        """How the reward failed; None if it did not."""
        return Failure.from_extra_info(self.info)


class InlineVerifier:
    """The reward function, and the verifier of extensions (``extension.Verifier``), which answers at once.

    Raises:
        ConfigError: the reward function is asynchronous.
    """

    def __init__(self, config: DictConfig, tokenizer: Any) -> None:
        self._compute_score = get_custom_reward_fn(config) or without_code(default_compute_score)
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
        """The reward of a response, given as token ids. It is a failed one if the reward function fails.

        Args:
            columns: the prompt's columns of the data set.
        """
        try:
            score, info = self._call(columns, response)
            failure = failure_of_score(score)
        except (Exception, *ESCAPING) as error:
            failure = failure_of_error(error)
        return Reward(float(score), info) if failure is None else Reward(0.0, failure.as_extra_info())

    def _call(self, columns: Mapping[str, Any], response: Sequence[int]) -> tuple[Any, dict[str, Any]]:
        """(the score, the values for ``reward_extra_info``), as verl's reward manager takes them from the result."""
        result = self._compute_score(
            data_source=columns["data_source"],
            solution_str=self._text(response),
            ground_truth=columns["reward_model"]["ground_truth"],
            extra_info=dict(columns.get("extra_info") or {}) | {"num_turns": 2, "rollout_reward_scores": {}},
        )
        return (result["score"], dict(result)) if isinstance(result, dict) else (result, {"acc": result})

    def submit(self, columns: Mapping[str, Any], prompt: Sequence[int], response: Sequence[int]) -> Reward:
        return self.reward(columns, response)

    def has_answered(self, answer: Reward) -> bool:
        return True

    def verdict(self, answer: Reward, timeout_s: float) -> Verdict | None:
        """The verdict; None if the verifier failed, which is logged."""
        if failure := answer.failure:
            logger.warning("a demonstration could not be verified: the reward function %s", failure.describe())
            return None
        return Verdict(answer.score, verdict_of({"reward_extra_info": answer.info}))

    def _text(self, response: Sequence[int]) -> str:
        key = tuple(response)
        if key not in self._texts:
            self._texts[key] = self._tokenizer.decode(key, skip_special_tokens=True)
        return self._texts[key]
