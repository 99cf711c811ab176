"""Verifies responses that no agent loop generated, with the run's own verifier: verl's reward workers."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray
import torch
from tensordict import TensorDict
from verl import DataProto

from verl_gsd.extension import Verdict
from verl_gsd.trainer.reward_failures import Failure
from verl_gsd.trainer.rows import verdict_of

logger = logging.getLogger(__name__)


class RewardWorkers:
    """verl's reward ``workers`` as the verifier of extensions; see ``extension.Verifier``."""

    def __init__(self, workers: Sequence[Any]) -> None:
        self.workers = workers

    def submit(self, columns: Mapping[str, Any], prompt: Sequence[int], response: Sequence[int]) -> ray.ObjectRef:
        """Send one response to a random worker, as verl's agent loops do."""
        return random.choice(self.workers).compute_score.remote(as_data(columns, prompt, response))

    def has_answered(self, answer: ray.ObjectRef) -> bool:
        return bool(ray.wait([answer], timeout=0)[0])

    def verdict(self, answer: ray.ObjectRef, timeout_s: float) -> Verdict | None:
        """The verdict; None if the verifier failed or took longer, which is logged."""
        try:
            result = ray.get(answer, timeout=timeout_s)
            if failure := Failure.from_extra_info(result["reward_extra_info"]):
                logger.warning("a demonstration could not be verified: the reward function %s", failure.describe())
                return None
            return Verdict(float(result["reward_score"]), verdict_of(result))
        except (ray.exceptions.RayError, TimeoutError, KeyError, TypeError, ValueError) as error:
            logger.warning("a demonstration could not be verified: %s", type(error).__name__)
            return None


def as_data(columns: Mapping[str, Any], prompt: Sequence[int], response: Sequence[int]) -> DataProto:
    """One response in the format of verl's reward workers. For the arguments see ``extension.Verifier.submit``."""
    ids = torch.tensor([*prompt, *response]).unsqueeze(0)
    batch = {
        "prompts": ids[:, : len(prompt)],
        "responses": ids[:, len(prompt) :],
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(ids.shape[1]).unsqueeze(0),
    }
    other_columns = dict(columns) | {
        "__num_turns__": 2,  # as verl counts a question and its answer
        "tool_extra_fields": {},
        "prompt_len": len(prompt),
        "response_len": len(response),
    }
    return DataProto(
        batch=TensorDict(batch, batch_size=1),
        non_tensor_batch={name: _object_array(value) for name, value in other_columns.items()},
    )


def _object_array(value: Any) -> np.ndarray:
    """An array (1,) that holds ``value`` as an object. ``np.array`` would unpack a list."""
    array: np.ndarray = np.empty(1, dtype=object)
    array[0] = value
    return array
