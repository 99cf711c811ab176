"""A patch that makes verl's agent loops obey data.truncation.

verl 0.9.1 cuts a prompt that is longer than rollout.prompt_length on the left, whatever data.truncation says, and only
the log of an agent loop's worker mentions it. The patch has an effect under our trainer modes alone: no other trainer
looks for the mark described below. ``tests/contract/test_prompt_truncation.py`` fails when verl's agent loop reads
the key itself: the patch can then go.

With ``truncation=error`` a run is rejected if a counted prompt is too long (``prompt_lengths.py``). An agent loop can
still build one from prompts that cannot be counted. An exception would end the session, and verl counts no sessions
that fail. The prompt is therefore cut as verl cuts it, and the response is marked as one whose reward failed
(``reward_failures.py``): nothing is trained on it, it is counted, and the run stops if there are too many.
"""

from __future__ import annotations

import contextvars
import functools
from types import ModuleType
from typing import Any

from verl_gsd.run.truncation import is_obeyed
from verl_gsd.trainer.reward_failures import Failure

#: What an agent loop's worker has found of the response at hand: prompts that are too long and must not be cut.
_TOO_LONG: contextvars.ContextVar[list[Failure]] = contextvars.ContextVar("too_long")


def install(agent_loop: ModuleType) -> None:
    """Replace verl's cut, and mark responses to prompts that must not be cut.

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
        found = _TOO_LONG.get(None)
        if truncation != "error" or found is None or len(prompt_ids) <= limit:
            return cut(prompt_ids, limit, truncation)
        found.append(_failure(len(prompt_ids), limit))
        return original(self, prompt_ids)

    @functools.wraps(run)
    async def _run_agent_loop(self: Any, *args: Any, **kwargs: Any) -> Any:
        token = _TOO_LONG.set([])  # one list for the tasks that the agent loop may start
        try:
            return await run(self, *args, **kwargs)
        finally:
            _TOO_LONG.reset(token)

    @functools.wraps(score)
    async def _compute_score(self: Any, outputs: list[Any], kwargs: dict[str, Any]) -> None:
        if found := _TOO_LONG.get(None):
            outputs[-1].reward_score = 0.0  # a response that has one is not given to a reward worker
            outputs[-1].extra_fields["reward_extra_info"] = found[0].as_info()
        await score(self, outputs, kwargs)

    base._cap_text_prompt_length = _cap_text_prompt_length
    worker._run_agent_loop, worker._compute_score = _run_agent_loop, _compute_score


def _failure(length: int, limit: int) -> Failure:
    text = f"built a prompt of {length} tokens, more than actor_rollout_ref.rollout.prompt_length={limit}, with "
    return Failure("prompt_too_long", "prompt too long", text + "data.truncation=error")


def cut(tokens: list[int], limit: int, truncation: str) -> list[int]:
    """The tokens of a prompt that the policy is given.

    Args:
        limit: the largest number of tokens.
        truncation: "left" and "right" drop tokens there. "middle" keeps limit // 2 tokens at the start and the others
            at the end, as verl's ``postprocess_data`` does.

    Raises:
        ValueError: the prompt is longer than ``limit``, and ``truncation`` is "error" or no such word.
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
        f"data.truncation={truncation}. Set data.max_prompt_length to {len(tokens)} or more, "
        "data.filter_overlong_prompts=true to drop such prompts, or data.truncation=left, right or middle to cut them."
    )
