"""A patch that makes verl's agent loops obey data.truncation.

If a prompt is longer than rollout.prompt_length, verl 0.9.1 drops tokens on its left, whatever data.truncation is. Only
the log of the agent loop's worker mentions it. The patch has an effect only under our trainer modes, because no other
trainer looks for the mark described below. ``tests/contract/test_prompt_truncation.py`` fails when verl's agent loop
reads the key itself. The patch can then be removed.

With ``truncation=error``, a run is rejected if a counted prompt is too long (``prompt_lengths.py``). An agent loop can
still build a prompt that is too long and could not be counted. An exception would end the session, and verl does not
count failed sessions. Therefore, the patch lets verl cut the prompt and marks the response as one whose reward failed
(``reward_failures.py``). The trainer then counts the response, does not train on it, and stops the run if there are too
many.
"""

from __future__ import annotations

import contextvars
import functools
from types import ModuleType
from typing import Any

from verl_gsd.run.truncation import is_obeyed
from verl_gsd.trainer.reward_failures import Failure

#: Failures of the current response in an agent loop's worker: its prompts that are too long and must not be cut.
_TOO_LONG: contextvars.ContextVar[list[Failure]] = contextvars.ContextVar("too_long")


def install(agent_loop: ModuleType) -> None:
    """Replace verl's truncation, and mark responses to prompts that are too long and must not be cut.

    Args:
        agent_loop: the module ``verl.experimental.agent_loop.agent_loop``.
    """
    base, worker = agent_loop.AgentLoopBase, agent_loop.AgentLoopWorker
    original, run, score = base._cap_text_prompt_length, worker._run_agent_loop, worker._compute_score

    @functools.wraps(original)
    def _cap_text_prompt_length(self: Any, prompt_ids: list[int]) -> list[int]:
        if not is_obeyed(self.config):
            return original(self, prompt_ids)
        limit, truncation = int(self.rollout_config.prompt_length), str(self.data_config.get("truncation", "error"))
        failures = _TOO_LONG.get(None)
        if truncation != "error" or failures is None or len(prompt_ids) <= limit:
            return cut(prompt_ids, limit, truncation)
        failures.append(_failure(len(prompt_ids), limit))
        return original(self, prompt_ids)

    @functools.wraps(run)
    async def _run_agent_loop(self: Any, *args: Any, **kwargs: Any) -> Any:
        token = _TOO_LONG.set([])  # all tasks that the agent loop starts share this list
        try:
            return await run(self, *args, **kwargs)
        finally:
            _TOO_LONG.reset(token)

    @functools.wraps(score)
    async def _compute_score(self: Any, outputs: list[Any], kwargs: dict[str, Any]) -> None:
        if failures := _TOO_LONG.get(None):
            outputs[-1].reward_score = 0.0  # verl sends a response that has a score to no reward worker
            outputs[-1].extra_fields["reward_extra_info"] = failures[0].as_extra_info()
        await score(self, outputs, kwargs)

    base._cap_text_prompt_length = _cap_text_prompt_length
    worker._run_agent_loop, worker._compute_score = _run_agent_loop, _compute_score


def _failure(length: int, limit: int) -> Failure:
    text = f"built a prompt of {length} tokens, more than actor_rollout_ref.rollout.prompt_length={limit}, with "
    return Failure("prompt_too_long", "prompt too long", text + "data.truncation=error")


def cut(tokens: list[int], limit: int, truncation: str) -> list[int]:
    """Cut a prompt to at most ``limit`` tokens.

    Args:
        truncation: "left" and "right" drop tokens on that side. "middle" keeps limit // 2 tokens at the start and the
            others at the end, as verl's ``postprocess_data`` does.

    Raises:
        ValueError: the prompt is longer than ``limit``, and ``truncation`` is "error" or unknown.
    """
    if len(tokens) <= limit:
        return tokens
    if truncation == "left":
        return tokens[-limit:]
    if truncation == "right":
        return tokens[:limit]
    if truncation == "middle":
        start = limit // 2
        return tokens[:start] + tokens[len(tokens) - (limit - start) :]
    raise ValueError(
        f"a prompt has {len(tokens)} tokens, more than actor_rollout_ref.rollout.prompt_length={limit}, and "
        f"data.truncation={truncation}. Set data.max_prompt_length to {len(tokens)} or more, set "
        "data.filter_overlong_prompts=true to drop such prompts, or set data.truncation=left, right or middle to cut "
        "them."
    )
