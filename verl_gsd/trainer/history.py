"""Earlier responses as a share of each group: GVPO's sampling distribution of the paper's Figure 4.

From a prompt's second visit on, some of its sessions are not generated: when the others have ended, responses of
earlier visits take their places, as rows like any other. verl then computes their old log-probabilities under the
current policy, which is what GVPO needs of them: no importance weights (Theorem 3.2).

Our reading, where the paper shows a proportion and no more: a prompt's history is its latest responses that were
trained on; those of its sessions with the lowest numbers, which are as random as any.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transfer_queue as tq
from tensordict import TensorDict
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from verl_gsd.prompts import PromptKey
from verl_gsd.responses import Response, ResponseStore

#: The column in which verl's agent loops look for how many sessions to start.
SESSIONS = "__rollout_n__"
#: The tag of a row that was not generated in this step: the step it was generated for.
TAG = "generated_in"
#: Columns that depend on the response and that only its generation could fill.
_NOT_REMADE = ("rollout_log_probs", "routed_experts", "teacher_ids", "teacher_logprobs")


class History:
    """Plans, fills in and remembers.

    Args:
        share: of each group, in (0, 1).
        group_size: responses a prompt.
        store: what is remembered of every prompt.
        partition: of verl's queue.
    """

    def __init__(self, share: float, group_size: int, store: ResponseStore, partition: str) -> None:
        self._wanted = history_size(share, group_size)
        self._group_size, self._store, self._partition = group_size, store, partition
        self._planned: dict[str, int] = {}  # by uid, of groups that have not left
        self._shortage = 0

    def plan(self, uids: Sequence[str], keys: Sequence[PromptKey], batch: TensorDict) -> None:
        """Ask verl for fewer sessions of those prompts in ``batch`` that were visited before."""
        # A TensorDict takes ``in`` for something else.
        own = list(batch[SESSIONS]) if SESSIONS in batch.keys() else [self._group_size] * len(uids)  # noqa: SIM118
        known = [min(self._wanted, len(self._store.recall(key)), int(n) - 1) for key, n in zip(keys, own, strict=True)]
        batch[SESSIONS] = torch.tensor([int(n) - found for n, found in zip(own, known, strict=True)])
        self._planned.update(zip(uids, known, strict=True))

    def replan(self, uids: Sequence[str], sessions: Sequence[int]) -> None:
        """Take up what was planned for groups that a checkpoint held, from the sessions asked for."""
        self._planned.update({uid: self._group_size - int(n) for uid, n in zip(uids, sessions, strict=True)})

    def complete(
        self, uids: Sequence[str], rows: Mapping[str, Mapping[str, Any]], key_of: Callable[[str], PromptKey]
    ) -> dict[str, dict[str, Any]]:
        """Put into the queue what the groups ``uids``, whose sessions have all ended, are short of as planned.

        Args:
            rows: key -> tag of all rows in the partition.

        Returns:
            The keys and tags of the rows that were put.

        Raises:
            ValueError: rows have a column that cannot be remade for an earlier response.
        """
        named = {uid: [f"{uid}_{self._group_size + at}_0" for at in range(self._planned.pop(uid, 0))] for uid in uids}
        # A group that a checkpoint held may be complete already.
        named = {uid: keys for uid, keys in named.items() if keys and keys[0] not in rows}
        first: dict[str, str] = {}
        for key in rows:
            uid = key.rsplit("_", 2)[0]
            if uid in named:
                first[uid] = min(key, first.get(uid, key))
        templates = list(first.values())
        if not templates:  # not one session of theirs gave a response
            self._shortage += sum(map(len, named.values()))
            return {}
        data = tq.kv_batch_get(keys=templates, partition_id=self._partition)
        keys, fields, tags = [], [], []
        for at, template in enumerate(templates):
            uid = template.rsplit("_", 2)[0]
            for key, response in zip(named[uid], self._store.recall(key_of(uid)), strict=False):
                keys.append(key)
                fields.append(_row(data[at], response, session=int(key.rsplit("_", 2)[1])))
                tags.append(_tag(rows[template], response))
        self._shortage += sum(map(len, named.values())) - len(keys)
        if keys:
            tq.kv_batch_put(
                keys=keys, partition_id=self._partition, fields=list_of_dict_to_tensordict(fields), tags=tags
            )
        return dict(zip(keys, tags, strict=True))

    def remember(
        self, keys: Sequence[str], tags: Sequence[Mapping[str, Any]], key_of: Mapping[str, PromptKey], step: int
    ) -> dict[str, float]:
        """Store responses of a batch that was trained on, still in the queue.

        Args:
            keys, tags: of the batch, padding included.
            key_of: uid -> prompt.

        Returns:
            ``gvpo/history/`` of the batch: ``share`` of its responses that are earlier ones, ``responses_saved`` and
            ``tokens_saved`` that were not generated, ``age`` of those in steps, ``first_visits``, the share of prompts
            without any, ``shortage``, responses planned and not there, and ``prompts`` that have a history now.
        """
        real = {key: tag for key, tag in zip(keys, tags, strict=True) if not tag.get("is_padding")}
        earlier = {key: tag for key, tag in real.items() if TAG in tag}
        prompts = {key.rsplit("_", 2)[0] for key in real}
        self._store_some(real.keys() - earlier.keys(), key_of, step)
        metrics = {
            "share": len(earlier) / max(1, len(real)),
            "responses_saved": float(len(earlier)),
            "tokens_saved": float(sum(tag["response_len"] for tag in earlier.values())),
            "first_visits": 1 - len({key.rsplit("_", 2)[0] for key in earlier}) / max(1, len(prompts)),
            "shortage": float(self._shortage),
            "prompts": float(len(self._store)),
        }
        if earlier:
            metrics["age"] = float(np.mean([step - tag[TAG] for tag in earlier.values()]))
        self._shortage = 0
        return {f"gvpo/history/{name}": value for name, value in metrics.items()}

    def _store_some(self, generated: set[str], key_of: Mapping[str, PromptKey], step: int) -> None:
        sessions: defaultdict[str, list[str]] = defaultdict(list)
        for key in generated:
            sessions[key.rsplit("_", 1)[0]].append(key)
        by_prompt: defaultdict[str, list[str]] = defaultdict(list)
        for session, outputs in sessions.items():
            if len(outputs) == 1:  # a session of several outputs is no one row
                by_prompt[session.rsplit("_", 1)[0]].append(outputs[0])
        chosen = [
            key
            for uid in sorted(by_prompt)
            for key in sorted(by_prompt[uid], key=lambda key: int(key.rsplit("_", 2)[1]))[: self._wanted]
        ]
        if not chosen:
            return
        fields = ["responses", "response_mask", "rm_scores", "extra_fields"]
        data = tq.kv_batch_get(keys=chosen, partition_id=self._partition, select_fields=fields)
        found: defaultdict[str, list[Response]] = defaultdict(list)
        for key, *values in zip(chosen, *(list(data[name]) for name in fields), strict=True):
            found[key.rsplit("_", 2)[0]].append(_response(*values, step=step))
        for uid, responses in found.items():
            self._store.store(key_of[uid], responses, keep=self._wanted)


def history_size(share: float, group_size: int) -> int:
    """Earlier responses in a group: ``share`` of it, rounded, and at least one response is new."""
    return min(round(share * group_size), group_size - 1)


def _response(tokens: torch.Tensor, mask: torch.Tensor, scores: torch.Tensor, extra: Any, *, step: int) -> Response:
    verdict = (getattr(extra, "data", extra) or {}).get("reward_extra_info") or {}
    return Response(
        tokens.numpy().astype(np.int32),
        mask.numpy().astype(bool),
        float(scores.double().sum()),
        step,
        {name: float(value) for name, value in verdict.items() if _is_number(value)},
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float | np.number) and math.isfinite(value)


def _row(template: Mapping[str, Any], response: Response, *, session: int) -> dict[str, Any]:
    """A row of the queue for ``response``, like ``template``, a row of the same prompt."""
    row = {name: template[name] for name in template.keys()}  # noqa: SIM118, a TensorDict
    unmade = [name for name in _NOT_REMADE if name in row]
    if row["position_ids"].dim() > 1 or getattr(row.get("multi_modal_inputs"), "data", row.get("multi_modal_inputs")):
        unmade.append("multi_modal_inputs")
    if unmade:
        raise ValueError(
            f"algorithm.gsd.gvpo.history_fraction: rows have {', '.join(unmade)}, which an earlier response has not. "
            "Write algorithm.gsd.gvpo.history_fraction=0, or leave out what makes it."
        )
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


def _tag(template: Mapping[str, Any], response: Response) -> dict[str, Any]:
    length = len(response.tokens)
    return {
        **template,
        "response_len": length,
        "seq_len": template["prompt_len"] + length,
        TAG: response.step,
    }
