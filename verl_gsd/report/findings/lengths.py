"""Overrides that allow longer prompts or responses, as far as the context of the model allows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_gsd.plain_data import parse_json
from verl_gsd.planning.memory import SHAPES, Shape
from verl_gsd.report.findings.finding import numeric_value, scaled

MAX_PROMPT, MAX_RESPONSE = "data.max_prompt_length", "data.max_response_length"
_MODEL = "actor_rollout_ref.model.path"
_DYNAMIC, _ROOM = "actor_rollout_ref.actor.use_dynamic_bsz", "actor_rollout_ref.actor.ppo_max_token_len_per_gpu"


def doubled(config: Mapping[str, Any], key: str, why: str) -> tuple[str, ...]:
    """An override that doubles ``key``, or raises it to what the model's context leaves; else that model's context.

    Args:
        config: dotted key -> value.
        key: ``MAX_PROMPT`` or ``MAX_RESPONSE``.
        why: the comment of the override.
    """
    value, other = (
        numeric_value(config, key),
        numeric_value(config, MAX_PROMPT if key == MAX_RESPONSE else MAX_RESPONSE),
    )
    if value is None or other is None:
        return scaled(config, key, 2, f"{why}, if the model's context allows it")
    positions = _positions(str(config.get(_MODEL)))
    wanted = int(2 * value if positions is None else min(2 * value, positions - other))
    if wanted <= value:
        return (
            f"{_MODEL}=...  # a model with a longer context: prompts and responses fill the {positions} tokens of "
            "this one",
        )
    allowed = "if the model's context allows it; " if positions is None else ""
    needed, room = int(wanted + other), numeric_value(config, _ROOM)
    # verl fails if a sequence is longer than a micro-batch.
    micro_batch = f" {_ROOM}={needed}" if config.get(_DYNAMIC) is True and room is not None and room < needed else ""
    return (f"{key}={wanted}{micro_batch}  # {why}, {allowed}it is {value:g}",)


def _positions(path: str) -> int | None:
    """The longest sequence that a model accepts, in tokens; None if neither its folder nor our table has the model."""
    try:
        content = parse_json((Path(path).expanduser() / "config.json").read_bytes())
    except (OSError, ValueError, RuntimeError):
        shape = SHAPES.get(path)
    else:
        shape = Shape.of(content) if isinstance(content, dict) else None
    return shape.positions if shape is not None else None
