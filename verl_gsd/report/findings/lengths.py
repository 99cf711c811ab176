"""Overrides that allow longer prompts or responses, as far as the context of the model allows them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_gsd.plain_data import parse_json
from verl_gsd.planning.memory import SHAPES, Shape
from verl_gsd.regular_files import read_regular
from verl_gsd.report.findings.finding import numeric_value, scaled

MAX_PROMPT, MAX_RESPONSE = "data.max_prompt_length", "data.max_response_length"
#: Whether verl's reward manager dapo penalizes responses that are almost as long as ``_PENALIZED``.
OVERLONG = "reward.reward_kwargs.overlong_buffer_cfg.enable"
_PENALIZED = "reward.reward_kwargs.max_resp_len"
_CONTEXT = "actor_rollout_ref.rollout.max_model_len"
_MODEL = "actor_rollout_ref.model.path"
_DYNAMIC, _ROOM = "actor_rollout_ref.actor.use_dynamic_bsz", "actor_rollout_ref.actor.ppo_max_token_len_per_gpu"


def doubled(config: Mapping[str, Any], key: str, why: str) -> tuple[str, ...]:
    """An override that doubles ``key``, or raises it to what the model's context leaves; else that model's context.

    It also raises the keys that limit the same length to a lower value.

    Args:
        config: dotted key -> value.
        key: ``MAX_PROMPT`` or ``MAX_RESPONSE``.
        why: the comment of the override.
    """
    value, other = (
        numeric_value(config, key),
        numeric_value(config, MAX_PROMPT if key == MAX_RESPONSE else MAX_RESPONSE),
    )
    if value is None or other is None or not math.isfinite(2 * value + other):
        return scaled(config, key, 2, f"{why}, if the model's context allows it")
    positions = _positions(str(config.get(_MODEL)))
    wanted = int(2 * value if positions is None else min(2 * value, positions - other))
    if wanted <= value:
        return (
            f"{_MODEL}=...  # a model with a longer context: prompts and responses fill the {positions} tokens of "
            "this one",
        )
    allowed = "if the model's context allows it; " if positions is None else ""
    needed = int(wanted + other)
    limits = {_CONTEXT: needed}  # verl cuts responses where prompt and response fill it
    if config.get(_DYNAMIC) is True:
        limits[_ROOM] = needed  # verl fails if a sequence is longer than a micro-batch
    if key == MAX_RESPONSE and config.get(OVERLONG) is True:
        limits[_PENALIZED] = wanted  # the penalty grows without bound above it
    raised = "".join(
        f" {name}={least}"
        for name, least in limits.items()
        if (limit := numeric_value(config, name)) is not None and limit < least
    )
    return (f"{key}={wanted}{raised}  # {why}, {allowed}it is {value:g}",)


def _positions(path: str) -> int | None:
    """The longest sequence that a model accepts, in tokens; None if neither its folder nor our table has the model."""
    try:
        content = parse_json(read_regular(Path(path).expanduser() / "config.json"))
    except (OSError, ValueError, RuntimeError):
        shape = SHAPES.get(path)
    else:
        shape = Shape.of(content) if isinstance(content, dict) else None
    return shape.positions if shape is not None else None
