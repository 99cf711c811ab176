"""Earlier responses as a share of each group: GVPO's sampling distribution of the paper's Figure 4.

From a prompt's second visit on, some of its sessions are not generated: when the others have ended, responses of
earlier visits take their places, as rows like any other. verl then computes their old log-probabilities under the
current policy, which is what GVPO needs of them: no importance weights (Theorem 3.2).

Our reading, where the paper shows a proportion and no more: a prompt's history is its latest responses that were
trained on; those of its sessions with the lowest numbers, which are as random as any.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from verl_gsd.extension import Batch, Services, Visits
from verl_gsd.responses import PromptKey, Response
from verl_gsd.trainer.rows import (
    GENERATED_IN,
    dated,
    only_outputs,
    read_responses,
    row_of,
    tag_of,
    uid_of,
    unmade_columns,
)

#: What is noted of a visit: earlier responses that are to be added.
PLANNED = "__gvpo_history__"


@dataclass(frozen=True)
class _Plan:
    """Of one visit to a prompt: sessions in all, and how many of them are earlier responses."""

    key: PromptKey
    sessions: int
    earlier: int


class History:
    """Requests fewer rollouts, fills in earlier responses, and remembers new ones; ``Gvpo`` calls it.

    Args:
        share: of each group, in (0, 1).
        group_size: responses a prompt.
        longest: tokens of a response at most; longer ones, of a run that allowed them, are not used.
        services: have the rows, and the store of responses.
    """

    def __init__(self, share: float, group_size: int, longest: int, services: Services) -> None:
        self._wanted, self._longest = history_size(share, group_size), longest
        self._rows, self._store = services.rows, services.prompts.responses
        self._observed: dict[str, tuple[PromptKey, list[Response]]] = {}  # by uid, new responses of the step at hand
        self._metrics: dict[str, float] = {}
        self._planned: dict[str, _Plan] = {}  # by uid, of groups that have not ended
        self._shortage = 0

    def before_rollout(self, visits: Visits) -> None:
        """Request fewer rollouts of those prompts that were visited before."""
        known = [min(self._wanted, len(self._recall(key))) for key in visits.keys]
        earlier = np.minimum(known, visits.rollouts - 1)
        visits.request(visits.rollouts - earlier)
        visits.note(PLANNED, earlier)
        self._plan(visits, visits.rollouts - earlier, earlier)

    def restore_in_flight(self, visits: Visits) -> None:
        """Know what was planned for ``visits``; nothing for those that were submitted without a history."""
        if (earlier := visits.noted(PLANNED)) is not None:
            self._plan(visits, visits.rollouts, earlier)

    def _plan(self, visits: Visits, generated: Sequence[int] | np.ndarray, earlier: Sequence[int] | np.ndarray) -> None:
        for uid, key, new, old in zip(visits.uids, visits.keys, generated, earlier, strict=True):
            self._planned[uid] = _Plan(key, int(new) + int(old), int(old))

    def add_rows(self, uids: Sequence[str]) -> None:
        """Put what the groups ``uids``, whose sessions have all ended, are short of as planned.

        Raises:
            ValueError: rows have a column that cannot be remade for an earlier response.
        """
        plans = {uid: plan for uid in uids if (plan := self._planned.pop(uid, None)) and plan.earlier}
        first: dict[str, str] = {}
        present = self._rows.tags
        for key, tag in present.items():
            uid = uid_of(key)
            if uid in plans:
                if GENERATED_IN in tag:  # a checkpoint held it complete
                    del plans[uid]
                    first.pop(uid, None)
                else:
                    first[uid] = min(key, first.get(uid, key))
        planned = sum(plan.earlier for plan in plans.values())
        rows: dict[str, dict[str, Any]] = {}
        tags: dict[str, dict[str, Any]] = {}
        # A group not one of whose sessions gave a response has no template.
        templates = self._rows.read(list(first.values()))
        for (uid, key_of_template), template in zip(first.items(), templates, strict=True):
            plan = plans[uid]
            for number, response in enumerate(self._recall(plan.key)[: plan.earlier]):
                session = plan.sessions + number
                key = f"{uid}_{session}_0"
                rows[key], tags[key] = _row(template, response, session), _tag(present[key_of_template], response)
        self._shortage += planned - len(rows)
        self._rows.put(rows, tags)

    def observe_trained(self, batch: Batch, step: int) -> None:
        """Read the new responses of a batch that was trained on."""
        real = {key: tag for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding")}
        earlier = {key: tag for key, tag in real.items() if GENERATED_IN in tag}
        prompts = {uid_of(key) for key in real}
        new = only_outputs(real.keys() - earlier.keys())
        chosen = [key for keys in new.values() for key in keys[: self._wanted]]
        for key, response in zip(chosen, read_responses(self._rows, chosen, step), strict=True):
            uid = uid_of(key)
            self._observed.setdefault(uid, (batch.prompts[uid], []))[1].append(response)
        self._metrics = {
            "share": len(earlier) / max(1, len(real)),
            "responses_saved": float(len(earlier)),
            "tokens_saved": float(sum(tag["response_len"] for tag in earlier.values())),
            "first_visits": 1 - len({uid_of(key) for key in earlier}) / max(1, len(prompts)),
        }
        if earlier:
            self._metrics["age"] = float(np.mean([step - tag[GENERATED_IN] for tag in earlier.values()]))

    def end_step(self) -> dict[str, float]:
        """Store what was observed.

        Returns:
            ``gvpo/history/`` of the batch: ``share`` of its responses that are earlier ones, ``responses_saved`` and
            ``tokens_saved`` that were not generated, ``age`` of those in steps, ``first_visits``, the share of prompts
            without any, ``shortage``, responses planned and not there, and ``prompts`` that have a history now.
        """
        observed, self._observed = self._observed, {}
        for key, responses in observed.values():
            self._store.store(key, responses, keep=self._wanted)
        metrics = self._metrics | {"shortage": float(self._shortage), "prompts": float(len(self._store))}
        self._metrics, self._shortage = {}, 0
        return {f"gvpo/history/{name}": value for name, value in metrics.items()}

    def _recall(self, key: PromptKey) -> list[Response]:
        return [response for response in self._store.recall(key) if len(response.tokens) <= self._longest]


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
