"""DaGRPO's demonstrations in the trainer process: verified, and put where a group needs them.

A demonstration takes the place of the group's last session: with ``all_fail`` that of a response which failed like its
siblings and still counts as generated, with ``always`` that of one which is not generated at all. Until the update its
tokens are masked, so that whatever verl computes of the policy's own tokens (entropy, the comparison of engines,
rollout correction, KL in the reward) leaves them out; then the mask is put back and the loss knows the row by its
column.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from verl_gsd.algorithms.dagrpo.demonstration_settings import DemonstrationSettings
from verl_gsd.algorithms.dagrpo.pools import pool_of
from verl_gsd.algorithms.dagrpo.tokens import REASONS, succeeded
from verl_gsd.extension import Batch, Extension, Services, Visits
from verl_gsd.groups import Group
from verl_gsd.records import Fate
from verl_gsd.responses import Response
from verl_gsd.trainer.rows import (
    DEMONSTRATED_BY,
    DEMONSTRATED_IN,
    DEMONSTRATION,
    REPLACED,
    is_own,
    row_of,
    session_number,
    session_of,
    tag_of,
    unmade_columns,
)

#: What is noted of a visit: rollouts that were left out for demonstrations.
LEFT_OUT = "__demonstrations__"
#: Seconds in all that a step waits for the verifier's word on demonstrations; mostly it came while others generated.
VERIFIER_S = 60.0


class Demonstrating(Extension):
    """Puts a group's demonstrations into its rows, and gives the update what it must know of them.

    Args:
        settings: of ``algorithm.gsd.dagrpo.demonstrations``, or that section.
    """

    def __init__(self, settings: DemonstrationSettings | Mapping[str, Any], services: Services | None = None) -> None:
        self._settings = DemonstrationSettings.of(settings)
        super().__init__(self._settings, services)
        if services is not None:
            self._rows, self._pool = services.rows, pool_of(self._settings, services)
        self._left_out: dict[str, int] = {}  # by uid, sessions that were not asked for
        self._amended: dict[str, int] = {}  # by uid, demonstrations in the group
        self._chosen: dict[str, list[Response]] = {}  # by uid, where sessions were left out for them
        self._wanted = self._found = 0
        self._waited = 0.0
        self._probabilities: list[torch.Tensor] = []
        self._metrics: dict[str, float] = {}

    def before_rollout(self, visits: Visits) -> None:
        self._pool.look_up(visits)
        if self._settings.mode == "always":  # verified now: it must be known how many sessions to leave out
            self._chosen |= {uid: self._demonstrations(uid) for uid in visits.uids}
            found = np.array([len(self._chosen[uid]) for uid in visits.uids])
            left_out = np.minimum(found, visits.rollouts - 1)
            visits.request(visits.rollouts - left_out)
            visits.note(LEFT_OUT, left_out)
            self._left_out |= dict(zip(visits.uids, left_out.tolist(), strict=True))

    def restore_in_flight(self, visits: Visits) -> None:
        self._pool.look_up(visits)
        if (left_out := visits.noted(LEFT_OUT)) is not None:
            self._left_out |= dict(zip(visits.uids, left_out, strict=True))

    def on_groups_complete(self, groups: Sequence[Group]) -> None:
        chosen: dict[str, list[Response]] = {}
        for group in groups:
            if group.demonstrations:  # a checkpoint held it amended
                self._amended[group.uid] = group.demonstrations
            elif group.keys and self._wants(group):
                # At least one response stays, or the places that stand empty are filled.
                room = self._left_out.get(group.uid) or len(group.keys) - 1
                found = self._chosen[group.uid] if group.uid in self._chosen else self._demonstrations(group.uid)
                found = found[:room]
                self._wanted += 1
                if found:
                    self._found += 1
                    chosen[group.uid] = found
        if chosen:
            self._put([group for group in groups if group.uid in chosen], chosen)

    def on_group_left(self, group: Group, fate: Fate) -> Group:
        self._pool.forget(group.uid)
        self._chosen.pop(group.uid, None)
        self._left_out.pop(group.uid, None)
        return replace(group, demonstrations=self._amended.pop(group.uid, 0))

    def loss_columns(self, batch: Batch, advantages: torch.Tensor) -> dict[str, torch.Tensor]:
        shown = [number for number, tag in enumerate(batch.tags) if DEMONSTRATED_BY in tag]
        column = torch.zeros(len(batch.keys), dtype=torch.bool)
        column[shown] = True
        if shown:
            keys = [batch.keys[number] for number in shown]
            changed: dict[str, dict[str, torch.Tensor]] = {}
            for number, row in zip(shown, self._rows.read(keys, ["loss_mask", "old_log_probs"]), strict=True):
                mask = row["loss_mask"]
                self._probabilities.append(row["old_log_probs"][mask.bool()].double().exp())
                on_tokens = mask * advantages[number]
                changed[batch.keys[number]] = {"response_mask": mask, "advantages": on_tokens, "returns": on_tokens}
            self._rows.put(changed)
        return {DEMONSTRATION: column}

    def observe_trained(self, batch: Batch) -> None:
        real = [(key, tag) for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding")]
        step, shown = self.services.step, [tag for _, tag in real if DEMONSTRATED_BY in tag]
        self._pool.observe_trained([key for key, tag in real if is_own(tag)], batch.prompts, step)
        self._metrics = {"share": len(shown) / max(1, len(real))}
        if ages := [step - tag[DEMONSTRATED_IN] for tag in shown if tag[DEMONSTRATED_IN]]:
            self._metrics["age"] = float(np.mean(ages))

    def end_step(self, left: Sequence[Group]) -> dict[str, float]:
        """``dagrpo/demonstrations/``: ``share`` of the batch's rows; ``wanted`` and ``found``, groups that called for
        one and that have one; ``token_probability``, its mean under the policy before the update; of the policy's own
        ``known``, prompts that have one, and ``age`` of those used, in steps; ``rejected/<reason>``, candidates of
        groups that called for one."""
        metrics = self._metrics | {
            "wanted": float(self._wanted),
            "found": float(self._found),
            **{f"rejected/{reason}": float(self._pool.rejected[reason]) for reason in REASONS},
            **self._pool.end_step(),
        }
        if self._probabilities:
            metrics["token_probability"] = float(torch.cat(self._probabilities).mean())
        self._pool.rejected.clear()
        self._probabilities.clear()
        self._wanted = self._found = 0
        self._waited = 0.0
        return {f"dagrpo/demonstrations/{name}": value for name, value in metrics.items()}

    def _demonstrations(self, uid: str) -> list[Response]:
        start = time.monotonic()
        found = self._pool.demonstrations(uid, deadline=start + max(0.0, VERIFIER_S - self._waited))
        self._waited += time.monotonic() - start
        return found[: self._settings.per_group]

    def _wants(self, group: Group) -> bool:
        if self._settings.mode == "always":
            return True
        where = f"data_source={group.data_source}, index={group.index}"
        return not any(succeeded(accuracy, where) for accuracy in group.accuracies.tolist())

    def _put(self, groups: Sequence[Group], chosen: Mapping[str, Sequence[Response]]) -> None:
        # Output 0 of a session answers the prompt itself: a later output's prompt is the context of a later turn.
        templates = [f"{session_of(min(group.keys, key=session_number))}_0" for group in groups]
        rows: dict[str, dict[str, Any]] = {}
        tags: dict[str, dict[str, Any]] = {}
        replaced_rows: list[str] = []
        present = self._rows.tags
        for group, key_of_template, template in zip(groups, templates, self._rows.read(templates), strict=True):
            added = bool(self._left_out.get(group.uid))
            places = sorted(group.keys, key=session_number)
            for number, response in enumerate(chosen[group.uid]):
                made = {DEMONSTRATED_BY: "self" if response.step else "expert", DEMONSTRATED_IN: response.step}
                tag = tag_of(present[key_of_template], response) | made
                if added:
                    session = session_number(places[-1]) + 1 + number
                else:
                    place = places[-1 - number]
                    session, replaced = session_number(place), group.keys.index(place)
                    tag[REPLACED] = [float(of[replaced]) for of in (group.rewards, group.accuracies, group.tokens)]
                    replaced_rows += [key for key in present if session_of(key) == session_of(place)]
                key = f"{group.uid}_{session}_0"
                rows[key], tags[key] = _masked(template, response, session), tag
            self._amended[group.uid] = len(chosen[group.uid])
        self._rows.drop([key for key in replaced_rows if key not in rows])
        self._rows.put(rows, tags)


def _masked(template: Mapping[str, Any], response: Response, session: int) -> dict[str, Any]:
    """A row for ``response`` whose tokens count nowhere until the update; the loss's own mask has them."""
    unmade = [name for name in unmade_columns(template) if name != "rollout_log_probs"]
    if unmade:
        raise ValueError(
            f"algorithm.gsd.dagrpo.demonstrations: rows have {', '.join(unmade)}, which a demonstration has not. Leave "
            "out what makes it, or write algorithm.gsd.dagrpo.demonstrations=null."
        )
    row = row_of(template, response, session)
    row["response_mask"] = torch.zeros_like(row["loss_mask"])
    if "rollout_log_probs" in row:
        row["rollout_log_probs"] = torch.zeros(len(row["responses"]), dtype=row["rollout_log_probs"].dtype)
    return row
