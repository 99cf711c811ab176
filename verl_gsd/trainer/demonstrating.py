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
import transfer_queue as tq
from tensordict import TensorDict
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from verl_gsd.demonstrations.settings import Settings
from verl_gsd.demonstrations.tokens import REASONS, succeeded
from verl_gsd.groups import Group
from verl_gsd.prompts import PromptKey
from verl_gsd.responses import Response
from verl_gsd.trainer.demonstration_pools import Pool
from verl_gsd.trainer.keys import (
    DEMONSTRATED_BY,
    DEMONSTRATED_IN,
    PARTITION,
    REPLACED,
    is_own,
    session_number,
    session_of,
)
from verl_gsd.trainer.losses import DEMONSTRATION
from verl_gsd.trainer.parts import Part, Tags
from verl_gsd.trainer.queue_rows import row_of, tag_of, unmade_columns

#: The column in which verl's agent loops look for how many sessions to start, and ours for how many were left out.
SESSIONS, LEFT_OUT = "__rollout_n__", "__demonstrations__"
#: Seconds in all that a step waits for the verifier's word on demonstrations; mostly it came while others generated.
VERIFIER_S = 60.0


class Demonstrating(Part):
    """Puts a group's demonstrations into the queue, and gives the update what it must know of them.

    Args:
        pool: has the demonstrations.
        group_size: responses a prompt, where the data set has no number of its own.
    """

    def __init__(self, settings: Settings, pool: Pool, group_size: int) -> None:
        self._settings, self._pool, self._group_size = settings, pool, group_size
        self._left_out: dict[str, int] = {}  # by uid, sessions that were not asked for
        self._amended: dict[str, int] = {}  # by uid, demonstrations in the group
        self._chosen: dict[str, list[Response]] = {}  # by uid, where sessions were left out for them
        self._wanted = self._found = 0
        self._waited = 0.0
        self._probabilities: list[torch.Tensor] = []

    def plan(self, uids: Sequence[str], keys: Sequence[PromptKey], batch: TensorDict) -> None:
        self._pool.look_up(uids, keys, batch)
        if self._settings.mode == "always":  # verified now: it must be known how many sessions to leave out
            own = [int(n) for n in batch[SESSIONS]] if SESSIONS in set(batch.keys()) else [self._group_size] * len(uids)
            self._chosen |= {uid: self._demonstrations(uid) for uid in uids}
            left_out = [min(len(self._chosen[uid]), sessions - 1) for uid, sessions in zip(uids, own, strict=True)]
            batch[SESSIONS] = torch.tensor(own) - torch.tensor(left_out)
            batch[LEFT_OUT] = torch.tensor(left_out)
            self._left_out |= dict(zip(uids, left_out, strict=True))

    def take_up(self, uids: Sequence[str], keys: Sequence[PromptKey], prompts: TensorDict) -> None:
        self._pool.look_up(uids, keys, prompts)
        if LEFT_OUT in set(prompts.keys()):
            self._left_out |= dict(zip(uids, (int(n) for n in prompts[LEFT_OUT]), strict=True))

    def amend(self, groups: Sequence[Group], rows: Tags) -> dict[str, dict[str, Any] | None]:
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
        return self._put([group for group in groups if group.uid in chosen], chosen, rows) if chosen else {}

    def leave(self, group: Group) -> Group:
        self._pool.forget(group.uid)
        self._chosen.pop(group.uid, None)
        self._left_out.pop(group.uid, None)
        return replace(group, demonstrations=self._amended.pop(group.uid, 0))

    def columns(self, batch: Any, advantages: torch.Tensor) -> dict[str, torch.Tensor]:
        shown = [number for number, tag in enumerate(batch.tags) if DEMONSTRATED_BY in tag]
        column = torch.zeros(len(batch.keys), dtype=torch.bool)
        column[shown] = True
        if shown:
            keys = [batch.keys[number] for number in shown]
            data = tq.kv_batch_get(keys=keys, partition_id=PARTITION, select_fields=["loss_mask", "old_log_probs"])
            masks, log_probs = list(data["loss_mask"]), list(data["old_log_probs"])
            self._probabilities += [of[mask.bool()].double().exp() for of, mask in zip(log_probs, masks, strict=True)]
            fields = [
                {"response_mask": mask, "advantages": mask * advantages[number], "returns": mask * advantages[number]}
                for number, mask in zip(shown, masks, strict=True)
            ]
            tq.kv_batch_put(keys=keys, partition_id=PARTITION, fields=list_of_dict_to_tensordict(fields))
        return {DEMONSTRATION: column}

    def remember(
        self, keys: Sequence[str], tags: Sequence[Mapping[str, Any]], key_of: Mapping[str, PromptKey], step: int
    ) -> dict[str, float]:
        """``dagrpo/demonstrations/``: ``share`` of the batch's rows; ``wanted`` and ``found``, groups that called for
        one and that have one; ``token_probability``, its mean under the policy before the update; of the policy's own
        ``known``, prompts that have one, and ``age`` of those used, in steps; ``rejected/<reason>``, candidates of
        groups that called for one."""
        real = [(key, tag) for key, tag in zip(keys, tags, strict=True) if not tag.get("is_padding")]
        shown = [tag for _, tag in real if DEMONSTRATED_BY in tag]
        metrics = {
            "share": len(shown) / max(1, len(real)),
            "wanted": float(self._wanted),
            "found": float(self._found),
            **{f"rejected/{reason}": float(self._pool.rejected[reason]) for reason in REASONS},
            **self._pool.remember([key for key, tag in real if is_own(tag)], key_of, step),
        }
        if self._probabilities:
            metrics["token_probability"] = float(torch.cat(self._probabilities).mean())
        if ages := [step - tag[DEMONSTRATED_IN] for tag in shown if tag[DEMONSTRATED_IN]]:
            metrics["age"] = float(np.mean(ages))
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

    def _put(
        self, groups: Sequence[Group], chosen: Mapping[str, Sequence[Response]], rows: Tags
    ) -> dict[str, dict[str, Any] | None]:
        # Output 0 of a session answers the prompt itself: a later output's prompt is the context of a later turn.
        templates = [f"{session_of(min(group.keys, key=session_number))}_0" for group in groups]
        data = tq.kv_batch_get(keys=templates, partition_id=PARTITION)
        changes: dict[str, dict[str, Any] | None] = {}
        keys, fields, tags = [], [], []
        for at, group in enumerate(groups):
            added = bool(self._left_out.get(group.uid))
            places = sorted(group.keys, key=session_number)
            for number, response in enumerate(chosen[group.uid]):
                made = {DEMONSTRATED_BY: "self" if response.step else "expert", DEMONSTRATED_IN: response.step}
                tag = tag_of(rows[templates[at]], response) | made
                if added:
                    session = session_number(places[-1]) + 1 + number
                else:
                    place = places[-1 - number]
                    session, replaced = session_number(place), group.keys.index(place)
                    tag[REPLACED] = [float(of[replaced]) for of in (group.rewards, group.accuracies, group.tokens)]
                    changes |= {key: None for key in rows if session_of(key) == session_of(place)}
                keys.append(f"{group.uid}_{session}_0")
                fields.append(_masked(data[at], response, session))
                tags.append(tag)
            self._amended[group.uid] = len(chosen[group.uid])
        gone = [key for key in changes if key not in keys]
        if gone:
            tq.kv_clear(keys=gone, partition_id=PARTITION)
        tq.kv_batch_put(keys=keys, partition_id=PARTITION, fields=list_of_dict_to_tensordict(fields), tags=tags)
        return changes | dict(zip(keys, tags, strict=True))


def _masked(template: Any, response: Response, session: int) -> dict[str, Any]:
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
