"""Responses as rows of verl's queue: keys, tags, and rows for responses that were not generated in this step.

A key is ``<uid>_<session>_<output>``. The uid names a visit to a prompt, the session one of its rollouts, and the
output one of the rows that this rollout put into the batch. The uid of a padding row starts with ``pad``.
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
from verl_gsd.scalars import is_whole
from verl_gsd.solve_rates.dumps import EARLIER, POLICY

#: The partition of training rows, and that of validation rows, which pass through the same buffer.
PARTITION, VALIDATION = "train", "val"

#: Tag of a response from an earlier step: the step that generated it.
GENERATED_IN = "generated_in"
#: Tag of a demonstration: who wrote it, ``expert`` or ``self`` (the policy).
DEMONSTRATED_BY = "demonstrated_by"
#: Tag of a demonstration: the step that generated it, if the policy did; 0 for an expert's.
DEMONSTRATED_IN = "demonstrated_in"
#: Tag of a demonstration that replaced a response: the reward, accuracy and tokens of that response, which still count.
REPLACED = "replaced"
#: Tag of the same demonstration: what the verifier reported about that response (``reported``).
REPLACED_REPORT = "replaced_report"
#: Column (bool) that is true for demonstrations.
DEMONSTRATION = "demonstration"

#: Values of a verifier that are the final answer of a response. Verifiers of verl return ``pred``, and ours ``answer``:
#: with ``pred``, verl computes majority votes at each validation, which takes minutes with many samples.
ANSWER_NAMES = ("answer", "pred")
#: What verl's ``math_dapo`` returns as ``pred`` if it finds no answer in a response.
_NO_ANSWER = "[INVALID]"

#: Columns that only the generation of a response can fill.
_NOT_REMADE = ("rollout_log_probs", "routed_experts", "teacher_ids", "teacher_logprobs")


def uid_of(key: str) -> str:
    """The visit to a prompt to which the row belongs."""
    return key.rsplit("_", 2)[0]


def session_of(key: str) -> str:
    """``<uid>_<session>``: the response to which the row belongs."""
    return key.rsplit("_", 1)[0]


def session_number(key: str) -> int:
    return int(key.rsplit("_", 2)[1])


def output_number(key: str) -> int:
    return int(key.rsplit("_", 1)[1])


def is_padding(key: str) -> bool:
    return key.startswith("pad")


def is_own(tag: Mapping[str, Any]) -> bool:
    """Whether the policy generated the row in this step: no demonstration and no earlier response."""
    return GENERATED_IN not in tag and DEMONSTRATED_BY not in tag


def origin(tag: Mapping[str, Any]) -> str:
    """Who generated the row, in the words of ``solve_rates.dumps.ORIGIN``."""
    return POLICY if is_own(tag) else tag.get(DEMONSTRATED_BY, EARLIER)


def replaced_reward(tag: Mapping[str, Any]) -> float | None:
    """The reward of the policy's response that a demonstration replaced; None if the row replaced none."""
    return tag[REPLACED][0] if REPLACED in tag else None


def as_number(value: Any) -> float:
    """A value that a verifier returned, as a float; NaN if it is not a number."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # None, text, a tensor of several values, 10**400
        return math.nan


def answer_of(info: Mapping[str, Any]) -> str | None:
    """The final answer of a response, from its ``reward_extra_info``; None if the verifier does not return it.

    The answer is empty if the response has none.
    """
    for name in ANSWER_NAMES:
        if name in info:
            answer = "" if info[name] is None else str(info[name]).strip()
            return "" if answer == _NO_ANSWER else answer
    return None


def reported(info: Mapping[str, Any]) -> dict[str, float | str]:
    """What groups count of a response, in addition to its accuracy, from its ``reward_extra_info``.

    - ``unverified``, ``doubtful``: the verifier's flags, numbers.
    - ``answer``: see ``answer_of``.

    What the verifier does not return is missing.
    """
    flags = {name: as_number(info.get(name)) for name in ("unverified", "doubtful")}
    report: dict[str, float | str] = {name: flag for name, flag in flags.items() if not math.isnan(flag)}
    if (answer := answer_of(info)) is not None:
        report["answer"] = answer
    return report


def only_outputs(keys: Iterable[str]) -> dict[str, list[str]]:
    """uid -> the keys of rows that are the only output of their session, sorted by session."""
    outputs: defaultdict[str, list[str]] = defaultdict(list)
    for key in keys:
        outputs[session_of(key)].append(key)
    by_uid: defaultdict[str, list[str]] = defaultdict(list)
    for rows in outputs.values():
        if len(rows) == 1:
            by_uid[uid_of(rows[0])].append(rows[0])
    return {uid: sorted(rows, key=session_number) for uid, rows in sorted(by_uid.items())}


def read_responses(rows: RowStore, keys: Sequence[str], step: int) -> list[Response]:
    """The rows ``keys``, on which trainer step ``step`` trains, as responses.

    ``Response.step`` is the step that generates with the weights of a response's last token. In the asynchronous modes
    it can be an earlier one than ``step``.
    """
    if not keys:
        return []
    columns = ["responses", "response_mask", "rm_scores", "extra_fields"]
    return [_response(row, step) for row in rows.read(keys, columns)]


def read_verdicts(rows: RowStore, keys: Sequence[str]) -> list[dict[str, float]]:
    """``verdict_of`` of the rows ``keys``. This does not read their tokens."""
    return [verdict_of(row["extra_fields"]) for row in rows.read(keys, ["extra_fields"])] if keys else []


def verdict_of(extra: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers that the verifier returned in addition to the reward, by name."""
    verdict = (extra or {}).get("reward_extra_info") or {}
    numbers = {name: as_number(value) for name, value in verdict.items() if name not in ANSWER_NAMES}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _response(row: Mapping[str, Any], step: int) -> Response:
    extra = row["extra_fields"] or {}
    version = extra.get("max_global_steps")  # of the weights; step s generates with those of s - 1
    return Response(
        row["responses"].numpy().astype(np.int32),
        row["response_mask"].numpy().astype(bool),
        float(row["rm_scores"].double().sum()),
        version + 1 if is_whole(version, 0) else step,
        verdict_of(extra),
    )


def unmade_columns(template: Mapping[str, Any]) -> list[str]:
    """Columns of the row ``template`` that cannot be filled for a response of another step."""
    unmade = [name for name in _NOT_REMADE if name in template]
    if template["position_ids"].dim() > 1 or template.get("multi_modal_inputs"):
        unmade.append("multi_modal_inputs")
    return unmade


def row_of(template: Mapping[str, Any], response: Response, session: int) -> dict[str, Any]:
    """A row for ``response``, modelled on ``template``.

    Columns that describe neither the prompt nor the response keep the template's values. Examples are the number of
    turns, the time taken and the versions of the weights.

    Args:
        template: output 0 of a session of the same prompt. The prompt of a later output is the context of a later turn.
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
    """The tag of that row. ``template`` is the tag of the template in ``row_of``."""
    length = len(response.tokens)
    return dict(template) | {"response_len": length, "seq_len": template["prompt_len"] + length}


def dated(values: Mapping[str, Any], response: Response) -> dict[str, Any]:
    """``values`` with the version of the weights that generated ``response``: step s generates with those of s - 1."""
    dates = {
        name: response.step - 1 for name in ("min_global_steps", "max_global_steps") if values.get(name) is not None
    }
    return dict(values) | dates
