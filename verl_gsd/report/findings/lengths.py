"""Overrides that allow longer prompts or responses, as far as the context of the model allows them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_gsd.hub_cache import cached_config
from verl_gsd.plain_data import parse_json
from verl_gsd.planning.memory import SHAPES, Shape
from verl_gsd.regular_files import read_regular
from verl_gsd.report.findings.finding import KL_IN_REWARD, numeric_value, scaled

MAX_PROMPT, MAX_RESPONSE = "data.max_prompt_length", "data.max_response_length"
#: Whether verl's reward manager dapo penalizes responses that are almost as long as ``_PENALIZED``.
OVERLONG = "reward.reward_kwargs.overlong_buffer_cfg.enable"
_PENALIZED = "reward.reward_kwargs.max_resp_len"
_CONTEXT = "actor_rollout_ref.rollout.max_model_len"
_MODEL = "actor_rollout_ref.model.path"
_POSITIONS = "actor_rollout_ref.model.override_config.max_position_embeddings"
_DYNAMIC, _ROOM = "actor_rollout_ref.actor.use_dynamic_bsz", "actor_rollout_ref.actor.ppo_max_token_len_per_gpu"
#: Tokens per micro-batch of old and reference log-probabilities. By default, verl takes those of ``_ROOM``.
_LOG_PROB_ROOM, _REFERENCE_ROOM = (
    f"actor_rollout_ref.{name}.log_prob_max_token_len_per_gpu" for name in ("rollout", "ref")
)
#: Either needs the reference policy. Without one, its keys have no effect.
_KL = ("actor_rollout_ref.actor.use_kl_loss", KL_IN_REWARD)
_LORA = "actor_rollout_ref.model.lora_rank"
_PARALLEL = (
    "actor_rollout_ref.actor.ulysses_sequence_parallel_size",
    "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size",
)
_REFERENCE_PARALLEL = (
    "actor_rollout_ref.ref.ulysses_sequence_parallel_size",
    "actor_rollout_ref.ref.fsdp_config.ulysses_sequence_parallel_size",
)
#: The settings that ``run/sizing.py`` chose, each as a text ``KEY=VALUE: why``. It chooses them anew for other lengths.
_SIZING = "hardware.sizing"


def doubled(config: Mapping[str, Any], key: str, why: str) -> tuple[str, ...]:
    """An override that doubles ``key``, or raises it to what the model's context leaves; else that model's context.

    It also raises the keys that limit the same length to a lower value, but for those that are chosen by the length.

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
    overridden = numeric_value(config, _POSITIONS)
    if overridden is not None and math.isfinite(overridden):
        positions: int | None = int(overridden)
    else:
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
        # verl fails if a sequence is longer than a micro-batch. With sequence parallelism, each GPU has a part of it.
        rooms = dict.fromkeys((_ROOM, _LOG_PROB_ROOM), _PARALLEL)
        if any(config.get(name) is True for name in _KL) and not (numeric_value(config, _LORA) or 0) > 0:
            rooms[_REFERENCE_ROOM] = _REFERENCE_PARALLEL
        is_chosen = _is_chosen(config, _ROOM)
        for name, keys in rooms.items():
            if not (is_chosen and config.get(name) == config.get(_ROOM)):  # its default follows
                sizes = [size for of in keys if (size := numeric_value(config, of)) is not None]
                limits[name] = math.ceil(needed / max([1, *sizes]))
    if key == MAX_RESPONSE and config.get(OVERLONG) is True:
        limits[_PENALIZED] = wanted  # the penalty grows without bound above it
    raised = "".join(
        f" {name}={least}"
        for name, least in limits.items()
        if (limit := numeric_value(config, name)) is not None and limit < least and not _is_chosen(config, name)
    )
    return (f"{key}={wanted}{raised}  # {why}, {allowed}it is {value:g}",)


def _is_chosen(config: Mapping[str, Any], key: str) -> bool:
    """Whether the command, and not the line, set ``key`` to what fits the lengths and the GPUs."""
    choices = config.get(_SIZING)
    return isinstance(choices, list) and any(str(choice).startswith(f"{key}=") for choice in choices)


def _positions(path: str) -> int | None:
    """The longest sequence that a model accepts, in tokens.

    None if it is not known: from the model's folder, the table of known models, or the cache of downloaded ones.
    """
    try:
        folder = Path(path).expanduser()
        cached = None if path in SHAPES or folder.is_dir() else cached_config(path)
        content = parse_json(read_regular(folder / "config.json" if cached is None else cached.resolve()))
    except (OSError, ValueError, RuntimeError):
        shape = SHAPES.get(path)
    else:
        shape = Shape.of(content) if isinstance(content, dict) else None
    return shape.positions if shape is not None else None
