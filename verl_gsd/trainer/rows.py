"""Responses as rows of verl's queue: their keys, their tags, and rows for responses that no rollout of this step made.

A key is ``<uid>_<session>_<output>``: a visit to a prompt, one of its rollouts, and one of the outputs that the rollout
put into the batch. Padding's uid starts with ``pad``.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from verl_gsd.extension import RowStore
from verl_gsd.responses import Response

#: The partition of training rows, and that of validation, which goes through the same buffer.
PARTITION, VALIDATION = "train", "val"

#: The tag of a row that was not generated in this step: the step it was generated for.
GENERATED_IN = "generated_in"
#: The tag of a demonstration: by whom, ``expert`` or ``self``.
DEMONSTRATED_BY = "demonstrated_by"
#: The step it was generated for, if the policy generated it; 0 for an expert's.
DEMONSTRATED_IN = "demonstrated_in"
#: And of one that stands in the place of a response: that one's reward, accuracy and tokens, which still count.
REPLACED = "replaced"
#: The column, bool, of rows that are demonstrations.
DEMONSTRATION = "demonstration"

#: Columns that depend on the response and that only its generation could fill.
_NOT_REMADE = ("rollout_log_probs", "routed_experts", "teacher_ids", "teacher_logprobs")


def uid_of(key: str) -> str:
    """The visit to a prompt that the row belongs to."""
    return key.rsplit("_", 2)[0]


def session_of(key: str) -> str:
    """``<uid>_<session>``: the response that the row is (a part of)."""
    return key.rsplit("_", 1)[0]


def session_number(key: str) -> int:
    return int(key.rsplit("_", 2)[1])


def output_number(key: str) -> int:
    return int(key.rsplit("_", 1)[1])


def is_padding(key: str) -> bool:
    return key.startswith("pad")


def is_own(tag: Mapping[str, Any]) -> bool:
    """Whether the policy generated the row in this step: it is no demonstration and no earlier response."""
    return GENERATED_IN not in tag and DEMONSTRATED_BY not in tag


def as_number(value: Any) -> float:
    """What a verifier returned under a name of its own choosing, as a number; NaN if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # None, text, a tensor of several, 10**400
        return math.nan


def only_outputs(keys: Iterable[str]) -> dict[str, list[str]]:
    """uid -> the rows of ``keys`` that are all of their session's output, by the sessions' numbers."""
    outputs: defaultdict[str, list[str]] = defaultdict(list)
    for key in keys:
        outputs[session_of(key)].append(key)
    found: defaultdict[str, list[str]] = defaultdict(list)
    for rows in outputs.values():
        if len(rows) == 1:  # a session of several outputs is no one row
            found[uid_of(rows[0])].append(rows[0])
    return {uid: sorted(rows, key=session_number) for uid, rows in sorted(found.items())}


def read_responses(rows: RowStore, keys: Sequence[str], step: int) -> list[Response]:
    """What the rows ``keys`` hold, as responses generated for trainer step ``step``."""
    if not keys:
        return []
    columns = ["responses", "response_mask", "rm_scores", "extra_fields"]
    return [_response(row, step) for row in rows.read(keys, columns)]


def verdict_of(extra: Mapping[str, Any]) -> dict[str, float]:
    """What the verifier returned beside the reward, by name; finite numbers alone."""
    verdict = (extra or {}).get("reward_extra_info") or {}
    numbers = {name: as_number(value) for name, value in verdict.items()}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _response(row: Mapping[str, Any], step: int) -> Response:
    return Response(
        row["responses"].numpy().astype(np.int32),
        row["response_mask"].numpy().astype(bool),
        float(row["rm_scores"].double().sum()),
        step,
        verdict_of(row["extra_fields"]),
    )


def unmade_columns(template: Mapping[str, Any]) -> list[str]:
    """Columns of the row ``template`` that cannot be made for a response which was not generated beside it."""
    unmade = [name for name in _NOT_REMADE if name in template]
    if template["position_ids"].dim() > 1 or template.get("multi_modal_inputs"):
        unmade.append("multi_modal_inputs")
    return unmade


def row_of(template: Mapping[str, Any], response: Response, session: int) -> dict[str, Any]:
    """A row for ``response``, like ``template``.

    Columns of neither the prompt nor the response, such as the number of turns and the time taken, stay the template's;
    so do the versions of the weights that the template was made with.

    Args:
        template: output 0 of a session of the same prompt. A later output's prompt is the context of a later turn.
    """
    tokens, mask = torch.from_numpy(response.tokens.astype(np.int64)), torch.from_numpy(response.mask.astype(np.int64))
    scores = torch.zeros(len(tokens), dtype=template["rm_scores"].dtype)
    scores[-1] = response.reward
    ids = torch.cat([template["prompts"], tokens])
    return dict(template) | {
        "responses": tokens,
        "response_mask": mask,
        "loss_mask": mask,
        "input_ids": ids,
        "position_ids": torch.arange(len(ids)),
        "rm_scores": scores,
        "extra_fields": dict(template["extra_fields"]) | {"reward_extra_info": dict(response.verdict)},
        "session_id": session,
    }


def tag_of(template: Mapping[str, Any], response: Response) -> dict[str, Any]:
    """The tag of such a row, like ``template``, the tag of the same row as in ``row_of``."""
    length = len(response.tokens)
    return dict(template) | {"response_len": length, "seq_len": template["prompt_len"] + length}


def dated(values: Mapping[str, Any], response: Response) -> dict[str, Any]:
    """``values`` with the weights' version that made ``response``: step s generates with those of step s - 1."""
    dates = {
        name: response.step - 1 for name in ("min_global_steps", "max_global_steps") if values.get(name) is not None
    }
    return dict(values) | dates
