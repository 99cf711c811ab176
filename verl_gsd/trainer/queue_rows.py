"""Responses as rows of verl's queue, read and made: what agent loop workers write, for a response they did not make."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transfer_queue as tq

from verl_gsd.responses import Response
from verl_gsd.trainer.keys import PARTITION, as_number, session_number, session_of, uid_of

#: Columns that depend on the response and that only its generation could fill.
_NOT_REMADE = ("rollout_log_probs", "routed_experts", "teacher_ids", "teacher_logprobs")


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


def read_responses(keys: Sequence[str], step: int) -> list[Response]:
    """What the rows ``keys`` hold, as responses generated for trainer step ``step``."""
    if not keys:
        return []
    fields = ["responses", "response_mask", "rm_scores", "extra_fields"]
    data = tq.kv_batch_get(keys=list(keys), partition_id=PARTITION, select_fields=fields)
    return [_response(*values, step=step) for values in zip(*(list(data[name]) for name in fields), strict=True)]


def verdict_of(extra: Any) -> dict[str, float]:
    """What the verifier returned beside the reward, by name; finite numbers alone."""
    verdict = (getattr(extra, "data", extra) or {}).get("reward_extra_info") or {}
    numbers = {name: as_number(value) for name, value in verdict.items()}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _response(tokens: torch.Tensor, mask: torch.Tensor, scores: torch.Tensor, extra: Any, *, step: int) -> Response:
    return Response(
        tokens.numpy().astype(np.int32),
        mask.numpy().astype(bool),
        float(scores.double().sum()),
        step,
        verdict_of(extra),
    )


def unmade_columns(template: Mapping[str, Any]) -> list[str]:
    """Columns of the row ``template`` that cannot be made for a response which was not generated beside it."""
    unmade = [name for name in _NOT_REMADE if name in template.keys()]  # noqa: SIM118, a TensorDict
    images = template.get("multi_modal_inputs", None)
    if template["position_ids"].dim() > 1 or getattr(images, "data", images):
        unmade.append("multi_modal_inputs")
    return unmade


def row_of(template: Mapping[str, Any], response: Response, session: int) -> dict[str, Any]:
    """A row for ``response``, like ``template``.

    Columns of neither the prompt nor the response, such as the number of turns and the time taken, stay the template's;
    so do the versions of the weights that the template was made with.

    Args:
        template: output 0 of a session of the same prompt. A later output's prompt is the context of a later turn.
    """
    row = {name: template[name] for name in template.keys()}  # noqa: SIM118, a TensorDict
    tokens, mask = torch.from_numpy(response.tokens.astype(np.int64)), torch.from_numpy(response.mask.astype(np.int64))
    scores = torch.zeros(len(tokens), dtype=row["rm_scores"].dtype)
    scores[-1] = response.reward
    extra = dict(getattr(row["extra_fields"], "data", row["extra_fields"]))
    ids = torch.cat([row["prompts"], tokens])
    return row | {
        "responses": tokens,
        "response_mask": mask,
        "loss_mask": mask,
        "input_ids": ids,
        "position_ids": torch.arange(len(ids)),
        "rm_scores": scores,
        "extra_fields": extra | {"reward_extra_info": dict(response.verdict)},
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
