"""verl's own reward model as a judge. verl's reward workers query it, whatever function computes the reward."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from verl_gsd.judge.encoder import fingerprint
from verl_gsd.judge.scorer import JudgementError, Question
from verl_gsd.trainer.verifying import as_data


class RewardModelScorer:
    """Scores from verl's discriminative reward model (``reward.reward_model``), on that model's own scale.

    A prompt of several messages is passed on as one message with all texts.

    Args:
        workers: verl's reward workers.
        tokenizer: the policy's tokenizer. verl's workers decode with it.
        model: the path or name of the reward model. With the fingerprint of a local folder, it identifies the scores
            in the cache.
        timeout_s: maximum seconds per score.
    """

    def __init__(self, workers: Sequence[Any], tokenizer: Any, model: str, *, timeout_s: float) -> None:
        self._workers, self._tokenizer, self._timeout_s = workers, tokenizer, timeout_s
        folder = Path(model).expanduser()
        weights = f" weights={fingerprint(folder)}" if (folder / "config.json").is_file() else ""
        self.identity = f"reward_model {model}{weights}"

    async def score(self, question: Question) -> float:
        tokens = self._tokenizer.encode(question.response, add_special_tokens=False)
        chat = [{"role": "user", "content": question.problem}]
        data = as_data({"raw_prompt": chat}, [], tokens)
        answer = random.choice(self._workers).compute_score_disrm.remote(data)
        try:
            return float((await asyncio.wait_for(answer, self._timeout_s))["reward_score"])
        except asyncio.TimeoutError:
            raise JudgementError("timed_out") from None
        except ray.exceptions.RayError as error:
            raise JudgementError("server_error", type(error).__name__) from None
        except (KeyError, TypeError, ValueError) as error:
            raise JudgementError("unreadable", type(error).__name__) from None
        finally:
            ray.cancel(answer)  # otherwise verl's workers retry for hours; no effect on a finished call

    async def close(self) -> None:
        """There is nothing to release."""
