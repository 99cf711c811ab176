"""A patch that makes verl's agent loops obey data.truncation.

verl 0.9.1 cuts a prompt that is longer than rollout.prompt_length on the left, whatever data.truncation says, and only
the log of an agent loop's worker mentions it. The patch has an effect under our trainer modes alone: under verl's own
nobody counts the prompts first, and with ``truncation=error`` sessions would fail that verl lets pass.
``tests/test_prompt_truncation.py`` fails when verl's agent loop reads the key itself: the patch can then go.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

#: Where a trainer of ours tells verl's agent loops to obey the key.
_OBEY = "trainer.v1.gsd_obey_truncation"


def obey_truncation(config: DictConfig) -> None:
    """Make the agent loops of this run obey ``data.truncation``. ``config`` is given to them later."""
    with open_dict(config):
        OmegaConf.update(config, _OBEY, True, force_add=True)


def install(agent_loop: ModuleType) -> None:
    """Replace verl's cut.

    Args:
        agent_loop: the module ``verl.experimental.agent_loop.agent_loop``.
    """
    original = agent_loop.AgentLoopBase._cap_text_prompt_length

    @functools.wraps(original)
    def _cap_text_prompt_length(self: Any, prompt_ids: list[int]) -> list[int]:
        if not OmegaConf.select(self.config, _OBEY):
            return original(self, prompt_ids)
        return cut(prompt_ids, int(self.rollout_config.prompt_length), str(self.data_config.get("truncation", "error")))

    agent_loop.AgentLoopBase._cap_text_prompt_length = _cap_text_prompt_length


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
