"""Earlier responses as a share of each group: the mixed sampling distribution of the paper's Figure 4.

From a prompt's second visit on, some of its sessions are not generated. When the other sessions have ended, responses
of earlier visits are added in their place, as ordinary rows. verl then computes the old log-probabilities of these rows
under the current policy. GVPO needs nothing else, in particular no importance weights (Theorem 3.2).

The paper only shows a proportion; the rest is our reading. A prompt's history is its latest responses that were trained
on. Of each visit, we keep the responses of the sessions with the lowest numbers, which are as random as any others.
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

#: The note of a visit that holds the number of earlier responses to add.
PLANNED = "__gvpo_history__"


@dataclass(frozen=True)
class _Plan:
    """The plan of one visit to a prompt.

    Attributes:
        key: the prompt.
        sessions: sessions of the group, earlier responses included.
        earlier: how many of these are earlier responses.
    """

    key: PromptKey
    sessions: int
    earlier: int


class History:
    """Requests fewer rollouts, adds earlier responses to groups, and stores new responses. ``Gvpo`` calls it.

    Args:
        share: share of each group that is earlier responses, in (0, 1).
        group_size: responses per prompt.
        longest: maximum tokens of a response. Longer ones, from a run with a higher limit, are not used.
        services: provide the rows and the store of responses.
    """

    def __init__(self, share: float, group_size: int, longest: int, services: Services) -> None:
        self._wanted, self._longest = history_size(share, group_size), longest
        self._rows, self._store = services.rows, services.prompts.responses
        self._observed: dict[str, tuple[PromptKey, list[Response]]] = {}  # uid -> new responses of the current step
        self._metrics: dict[str, float] = {}
        self._planned: dict[str, _Plan] = {}  # uid -> plan, for groups that have not ended
        self._shortage = 0

    def before_rollout(self, visits: Visits) -> None:
        """Request fewer rollouts for prompts that were visited before."""
        available = [min(self._wanted, len(self._recall(key))) for key in visits.keys]
        earlier = np.minimum(available, visits.rollouts - 1)
        visits.request(visits.rollouts - earlier)
        visits.note(PLANNED, earlier)
        self._plan(visits, visits.rollouts - earlier, earlier)

    def restore_in_flight(self, visits: Visits) -> None:
        """Restore the plans of ``visits`` from their notes. Visits that were submitted without a history have none."""
        if (earlier := visits.noted(PLANNED)) is not None:
            self._plan(visits, visits.rollouts, earlier)

    def _plan(self, visits: Visits, generated: Sequence[int] | np.ndarray, earlier: Sequence[int] | np.ndarray) -> None:
        for uid, key, new, old in zip(visits.uids, visits.keys, generated, earlier, strict=True):
            self._planned[uid] = _Plan(key, int(new) + int(old), int(old))

    def add_rows(self, uids: Sequence[str]) -> None:
        """Add the planned earlier responses to the groups ``uids``, whose sessions have all ended.

        Raises:
            ValueError: the rows have a column that cannot be filled for an earlier response.
        """
        plans = {uid: plan for uid in uids if (plan := self._planned.pop(uid, None)) and plan.earlier}
        template_keys: dict[str, str] = {}  # uid -> key of the row to copy
        present = self._rows.tags
        for key, tag in present.items():
            uid = uid_of(key)
            if uid in plans:
                if GENERATED_IN in tag:  # a checkpoint restored this group with its earlier responses
                    del plans[uid]
                    template_keys.pop(uid, None)
                else:
                    template_keys[uid] = min(key, template_keys.get(uid, key))
        planned = sum(plan.earlier for plan in plans.values())
        rows: dict[str, dict[str, Any]] = {}
        tags: dict[str, dict[str, Any]] = {}
        # A group without any response has no template row and gets no earlier responses.
        templates = self._rows.read(list(template_keys.values()))
        for (uid, template_key), template in zip(template_keys.items(), templates, strict=True):
            plan = plans[uid]
            for number, response in enumerate(self._recall(plan.key)[: plan.earlier]):
                session = plan.sessions + number
                key = f"{uid}_{session}_0"
                rows[key], tags[key] = _row(template, response, session), _tag(present[template_key], response)
        self._shortage += planned - len(rows)
        self._rows.put(rows, tags)

    def observe_trained(self, batch: Batch, step: int) -> None:
        """Read the new responses of a batch that has been trained on."""
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
        """Store the observed responses.

        Returns:
            Metrics named ``gvpo/history/...``:

            - ``share``: share of the batch's responses that are earlier ones
            - ``responses_saved``, ``tokens_saved``: responses and tokens that did not have to be generated
            - ``age``: mean age of the earlier responses, in steps
            - ``first_visits``: share of the batch's prompts without earlier responses
            - ``shortage``: earlier responses that were planned but could not be added
            - ``prompts``: prompts that have a history now
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
    """The number of earlier responses in a group: ``share`` of its size, rounded half up, but never the whole group."""
    return min(math.floor(share * group_size + 0.5), group_size - 1)


def _row(template: Mapping[str, Any], response: Response, session: int) -> dict[str, Any]:
    if unmade := unmade_columns(template):
        raise ValueError(
            f"algorithm.gsd.gvpo.history_fraction: rows have {', '.join(unmade)}, which earlier responses do not have. "
            "Set algorithm.gsd.gvpo.history_fraction=0, or turn off the feature that adds this column."
        )
    row = row_of(template, response, session)
    return row | {"extra_fields": dated(row["extra_fields"], response)}


def _tag(template: Mapping[str, Any], response: Response) -> dict[str, Any]:
    return dated(tag_of(template, response), response) | {GENERATED_IN: response.step}
