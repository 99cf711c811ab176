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
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transfer_queue as tq
from tensordict import TensorDict
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from verl_gsd.prompts import PromptKey
from verl_gsd.responses import Response, ResponseStore
from verl_gsd.trainer.keys import GENERATED_IN, PARTITION, uid_of
from verl_gsd.trainer.parts import Part
from verl_gsd.trainer.queue_rows import dated, only_outputs, read_responses, row_of, tag_of, unmade_columns

#: The column in which verl's agent loops look for how many sessions to start, and ours for what is to be added.
SESSIONS, PLANNED = "__rollout_n__", "__gvpo_history__"


@dataclass(frozen=True)
class _Plan:
    """Of one visit to a prompt: sessions in all, and how many of them are earlier responses."""

    sessions: int
    earlier: int


class History(Part):
    """Plans, fills in and remembers.

    Args:
        share: of each group, in (0, 1).
        group_size: responses a prompt, where the data set has no number of its own.
        longest: tokens of a response at most; longer ones, of a run that allowed them, are not used.
        store: what is remembered of every prompt.
    """

    def __init__(self, share: float, group_size: int, longest: int, store: ResponseStore) -> None:
        self._wanted = history_size(share, group_size)
        self._group_size, self._longest = group_size, longest
        self._store = store
        self._planned: dict[str, _Plan] = {}  # by uid, of groups that have not ended
        self._shortage = 0

    def plan(self, uids: Sequence[str], keys: Sequence[PromptKey], batch: TensorDict) -> None:
        """Ask verl for fewer sessions of those prompts in ``batch`` that were visited before."""
        columns = set(batch.keys())  # a TensorDict takes ``in`` for something else
        own = [int(n) for n in batch[SESSIONS]] if SESSIONS in columns else [self._group_size] * len(uids)
        earlier = [min(self._wanted, len(self._recall(key)), n - 1) for key, n in zip(keys, own, strict=True)]
        batch[SESSIONS] = torch.tensor(own) - torch.tensor(earlier)
        batch[PLANNED] = torch.tensor(earlier)
        self.take_up(uids, keys, batch)

    def take_up(self, uids: Sequence[str], keys: Sequence[PromptKey], prompts: TensorDict) -> None:
        """Know what was planned for ``prompts``; nothing for those that were submitted without a history."""
        if PLANNED in set(prompts.keys()):
            for uid, generated, earlier in zip(uids, prompts[SESSIONS], prompts[PLANNED], strict=True):
                self._planned[uid] = _Plan(int(generated) + int(earlier), int(earlier))

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
        plans = {uid: plan for uid in uids if (plan := self._planned.pop(uid, None)) and plan.earlier}
        first: dict[str, str] = {}
        for key, tag in rows.items():
            uid = uid_of(key)
            if uid in plans:
                if GENERATED_IN in tag:  # a checkpoint held it complete
                    del plans[uid]
                    first.pop(uid, None)
                else:
                    first[uid] = min(key, first.get(uid, key))
        planned = sum(plan.earlier for plan in plans.values())
        keys, fields, tags = [], [], []
        if first:  # else not one session of theirs gave a response
            data = tq.kv_batch_get(keys=list(first.values()), partition_id=PARTITION)
            for at, (uid, template) in enumerate(first.items()):
                for number, response in enumerate(self._recall(key_of(uid))[: plans[uid].earlier]):
                    session = plans[uid].sessions + number
                    keys.append(f"{uid}_{session}_0")
                    fields.append(_row(data[at], response, session))
                    tags.append(_tag(rows[template], response))
        self._shortage += planned - len(keys)
        if keys:
            tq.kv_batch_put(keys=keys, partition_id=PARTITION, fields=list_of_dict_to_tensordict(fields), tags=tags)
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
        earlier = {key: tag for key, tag in real.items() if GENERATED_IN in tag}
        prompts = {uid_of(key) for key in real}
        self._store_some(real.keys() - earlier.keys(), key_of, step)
        metrics = {
            "share": len(earlier) / max(1, len(real)),
            "responses_saved": float(len(earlier)),
            "tokens_saved": float(sum(tag["response_len"] for tag in earlier.values())),
            "first_visits": 1 - len({uid_of(key) for key in earlier}) / max(1, len(prompts)),
            "shortage": float(self._shortage),
            "prompts": float(len(self._store)),
        }
        if earlier:
            metrics["age"] = float(np.mean([step - tag[GENERATED_IN] for tag in earlier.values()]))
        self._shortage = 0
        return {f"gvpo/history/{name}": value for name, value in metrics.items()}

    def _recall(self, key: PromptKey) -> list[Response]:
        return [response for response in self._store.recall(key) if len(response.tokens) <= self._longest]

    def _store_some(self, generated: set[str], key_of: Mapping[str, PromptKey], step: int) -> None:
        chosen = [key for keys in only_outputs(generated).values() for key in keys[: self._wanted]]
        found: defaultdict[str, list[Response]] = defaultdict(list)
        for key, response in zip(chosen, read_responses(chosen, step), strict=True):
            found[uid_of(key)].append(response)
        for uid, responses in found.items():
            self._store.store(key_of[uid], responses, keep=self._wanted)


def history_size(share: float, group_size: int) -> int:
    """Earlier responses in a group: ``share`` of it, rounded, a half up, and at least one response is new."""
    return min(math.floor(share * group_size + 0.5), group_size - 1)


def _row(template: Mapping[str, Any], response: Response, session: int) -> dict[str, Any]:
    if unmade := unmade_columns(template):
        raise ValueError(
            f"algorithm.gsd.gvpo.history_fraction: rows have {', '.join(unmade)}, which an earlier response has not. "
            "Write algorithm.gsd.gvpo.history_fraction=0, or leave out what makes it."
        )
    row = row_of(template, response, session)
    return row | {"extra_fields": dated(row["extra_fields"], response)}


def _tag(template: Mapping[str, Any], response: Response) -> dict[str, Any]:
    return dated(tag_of(template, response), response) | {GENERATED_IN: response.step}
