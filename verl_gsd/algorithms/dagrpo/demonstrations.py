"""DaGRPO's demonstrations in the trainer's process: they are verified and added to the groups that need them.

A demonstration takes the place of the group's last session. In mode ``all_fail``, it replaces a response that failed
like all others of the group; that response still counts as generated. In mode ``always``, the session it replaces is
not generated at all.

Until the update, the tokens of a demonstration are masked. verl therefore leaves them out of everything that it
computes about the policy's own tokens: entropy, the comparison of engines, rollout correction, and KL in the reward.
For the update, the mask is restored, and a column tells the loss which rows are demonstrations.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from verl_gsd.algorithms.dagrpo.demonstration_settings import DemonstrationSettings
from verl_gsd.algorithms.dagrpo.pools import build_pool
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
    REPLACED_REPORT,
    is_own,
    reported,
    row_of,
    session_number,
    session_of,
    tag_of,
    uid_of,
    unmade_columns,
)

#: The note of a visit that holds the number of rollouts that demonstrations replace.
LEFT_OUT = "__demonstrations__"
#: Maximum seconds that a step waits for verdicts on demonstrations. Most verdicts arrive while rollouts are generated.
VERIFIER_S = 60.0


class DemonstrationExtension(Extension):
    """Adds demonstrations to the rows of groups, and tells the update which rows they are.

    Args:
        settings: settings or config section of ``algorithm.gsd.dagrpo.demonstrations``.
    """

    def __init__(self, settings: DemonstrationSettings | Mapping[str, Any], services: Services | None = None) -> None:
        self._settings = DemonstrationSettings.of(settings)
        super().__init__(self._settings, services)
        if services is not None:
            self._rows, self._pool = services.rows, build_pool(self._settings, services)
        self._left_out: dict[str, int] = {}  # uid -> sessions that were not requested
        self._counts: dict[str, int] = {}  # uid -> demonstrations in the group
        self._chosen: dict[str, list[Response]] = {}  # uid -> demonstrations, in mode "always"
        self._groups_wanting = self._groups_served = 0
        self._seconds_waited = 0.0
        self._probabilities: list[torch.Tensor] = []  # of demonstrations' tokens
        self._own_probabilities: list[torch.Tensor] = []  # of the policy's tokens in the same groups
        self._metrics: dict[str, float] = {}

    def before_rollout(self, visits: Visits) -> None:
        self._pool.look_up(visits)
        if self._settings.mode == "always":  # verify them now, because they decide how many sessions to request
            self._chosen |= {uid: self._demonstrations(uid) for uid in visits.uids}
            available = np.array([len(self._chosen[uid]) for uid in visits.uids])
            left_out = np.minimum(available, visits.rollouts - 1)
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
            if group.demonstrations:  # a checkpoint restored this group with its demonstrations
                self._counts[group.uid] = group.demonstrations
            elif group.keys and self._wants(group):
                # Fill the sessions that were not requested; without any, replace responses but keep at least one.
                room = self._left_out.get(group.uid) or len(group.keys) - 1
                candidates = self._chosen[group.uid] if group.uid in self._chosen else self._demonstrations(group.uid)
                self._groups_wanting += 1
                if selected := candidates[:room]:
                    self._groups_served += 1
                    chosen[group.uid] = selected
        if chosen:
            self._put([group for group in groups if group.uid in chosen], chosen)

    def on_group_left(self, group: Group, fate: Fate) -> Group:
        self._pool.forget(group.uid)
        self._chosen.pop(group.uid, None)
        self._left_out.pop(group.uid, None)
        return replace(group, demonstrations=self._counts.pop(group.uid, 0))

    def loss_columns(self, batch: Batch, advantages: torch.Tensor) -> dict[str, torch.Tensor]:
        demonstrations = [number for number, tag in enumerate(batch.tags) if DEMONSTRATED_BY in tag]
        column = torch.zeros(len(batch.keys), dtype=torch.bool)
        column[demonstrations] = True
        if demonstrations:
            keys = [batch.keys[number] for number in demonstrations]
            changed: dict[str, dict[str, torch.Tensor]] = {}
            for number, row in zip(demonstrations, self._rows.read(keys, ["loss_mask", "old_log_probs"]), strict=True):
                mask = row["loss_mask"]
                self._probabilities.append(row["old_log_probs"][mask.bool()].double().exp())
                on_tokens = mask * advantages[number]
                changed[batch.keys[number]] = {"response_mask": mask, "advantages": on_tokens, "returns": on_tokens}
            self._rows.put(changed)
            uids = {uid_of(key) for key in keys}
            own = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if uid_of(key) in uids and is_own(tag)]
            if own:
                self._own_probabilities += [
                    row["old_log_probs"][row["response_mask"].bool()].double().exp()
                    for row in self._rows.read(own, ["response_mask", "old_log_probs"])
                ]
        return {DEMONSTRATION: column}

    def observe_trained(self, batch: Batch) -> None:
        real = [(key, tag) for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding")]
        step, tags = self.services.step, [tag for _, tag in real if DEMONSTRATED_BY in tag]
        self._pool.observe_trained([key for key, tag in real if is_own(tag)], batch.prompts, step)
        self._metrics = {"share": len(tags) / max(1, len(real))}
        if ages := [step - tag[DEMONSTRATED_IN] for tag in tags if tag[DEMONSTRATED_IN]]:
            self._metrics["age"] = float(np.mean(ages))

    def end_step(self, left: Sequence[Group]) -> dict[str, float]:
        """Metrics named ``dagrpo/demonstrations/...``.

        - ``share``: share of the batch's rows that are demonstrations
        - ``wanted``, ``found``: groups that need a demonstration, and those of them that have one
        - ``token_probability``: mean probability of demonstrations' tokens under the policy before the update
        - ``own_token_probability``: the same for the tokens that the policy generated in the same groups
        - ``known``: prompts for which a success of the policy is stored
        - ``age``: mean age in steps of the policy's own successes that were used
        - ``rejected/<reason>``: rejected candidates of the groups that need a demonstration
        """
        metrics = self._metrics | {
            "wanted": float(self._groups_wanting),
            "found": float(self._groups_served),
            **{f"rejected/{reason}": float(self._pool.rejected[reason]) for reason in REASONS},
            **self._pool.end_step(),
        }
        if self._probabilities:
            metrics["token_probability"] = float(torch.cat(self._probabilities).mean())
        if self._own_probabilities:
            metrics["own_token_probability"] = float(torch.cat(self._own_probabilities).mean())
        self._pool.rejected.clear()
        self._probabilities.clear()
        self._own_probabilities.clear()
        self._groups_wanting = self._groups_served = 0
        self._seconds_waited = 0.0
        return {f"dagrpo/demonstrations/{name}": value for name, value in metrics.items()}

    def _demonstrations(self, uid: str) -> list[Response]:
        start = time.monotonic()
        deadline = start + max(0.0, VERIFIER_S - self._seconds_waited)
        demonstrations = self._pool.demonstrations(uid, deadline=deadline)
        self._seconds_waited += time.monotonic() - start
        return demonstrations[: self._settings.per_group]

    def _wants(self, group: Group) -> bool:
        if self._settings.mode == "always":
            return True
        where = f"data_source={group.data_source}, index={group.index}"
        return not any(succeeded(accuracy, where) for accuracy in group.accuracies.tolist())

    def _put(self, groups: Sequence[Group], chosen: Mapping[str, Sequence[Response]]) -> None:
        # Use output 0 of a session as template: it answers the prompt itself, later outputs answer later turns.
        templates = [f"{session_of(min(group.keys, key=session_number))}_0" for group in groups]
        rows: dict[str, dict[str, Any]] = {}
        tags: dict[str, dict[str, Any]] = {}
        replaced_rows: list[str] = []
        replaced_keys: dict[str, str] = {}  # key of a demonstration -> key of the response that it replaces
        present = self._rows.tags
        for group, template_key, template in zip(groups, templates, self._rows.read(templates), strict=True):
            has_free_sessions = bool(self._left_out.get(group.uid))
            keys = sorted(group.keys, key=session_number)
            for number, response in enumerate(chosen[group.uid]):
                origin = {DEMONSTRATED_BY: "self" if response.step else "expert", DEMONSTRATED_IN: response.step}
                tag = tag_of(present[template_key], response) | origin
                if has_free_sessions:
                    session = session_number(keys[-1]) + 1 + number
                else:
                    replaced_key = keys[-1 - number]
                    session, replaced = session_number(replaced_key), group.keys.index(replaced_key)
                    columns = (group.rewards, group.accuracies, group.tokens)
                    tag[REPLACED] = [float(column[replaced]) for column in columns]
                    replaced_rows += [key for key in present if session_of(key) == session_of(replaced_key)]
                    replaced_keys[f"{group.uid}_{session}_0"] = replaced_key
                key = f"{group.uid}_{session}_0"
                rows[key], tags[key] = _masked(template, response, session), tag
            self._counts[group.uid] = len(chosen[group.uid])
        if replaced_keys:
            read = self._rows.read(list(replaced_keys.values()), ["extra_fields"])
            for key, row in zip(replaced_keys, read, strict=True):
                tags[key][REPLACED_REPORT] = reported(row["extra_fields"].get("reward_extra_info") or {})
        self._rows.drop([key for key in replaced_rows if key not in rows])
        self._rows.put(rows, tags)


def _masked(template: Mapping[str, Any], response: Response, session: int) -> dict[str, Any]:
    """A row for ``response``. Its ``response_mask`` is 0 until the update; its ``loss_mask`` has its tokens."""
    unmade = [name for name in unmade_columns(template) if name != "rollout_log_probs"]
    if unmade:
        raise ValueError(
            f"algorithm.gsd.dagrpo.demonstrations: rows have {', '.join(unmade)}, which demonstrations do not have. "
            "Turn off the feature that adds this column, or set algorithm.gsd.dagrpo.demonstrations=null."
        )
    row = row_of(template, response, session)
    row["response_mask"] = torch.zeros_like(row["loss_mask"])
    if "rollout_log_probs" in row:
        row["rollout_log_probs"] = torch.zeros(len(row["responses"]), dtype=row["rollout_log_probs"].dtype)
    return row
