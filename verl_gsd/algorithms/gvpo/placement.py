"""What GVPO asks of a trainer: rows in an order that keeps groups together, columns for the loss, a route a step."""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from verl_gsd.algorithms.gvpo import maths
from verl_gsd.algorithms.gvpo.rows import ADVANTAGE, COEFFICIENT, GROUP, RESPONSE, SIZE
from verl_gsd.algorithms.gvpo.settings import GvpoSettings
from verl_gsd.extension import UnplacedRows
from verl_gsd.groups import group_numbers
from verl_gsd.run.checks.parallelism import sequence_parallel
from verl_gsd.trainer.batching import PADDING, layout, mini_batch_of
from verl_gsd.trainer.rows import is_padding, session_of, uid_of

logger = logging.getLogger(__name__)

Route = Literal["whole", "prepass"]


@dataclass(frozen=True)
class _Sizes:
    """What a config says of batches.

    Attributes:
        group: responses per prompt.
        mini_prompts: prompts per mini-batch over all workers.
        micro_rows, micro_tokens: of a worker's micro-batch, the first where its size is fixed, the second elsewhere.
        log_prob_rows: sizes of fixed micro-batches in which log-probabilities are computed.
        epochs: over a batch's mini-batches.
        virtual_pipeline: whether Megatron's is on.
    """

    group: int
    mini_prompts: int
    micro_rows: int | None
    micro_tokens: int | None
    log_prob_rows: tuple[int, ...]
    epochs: int
    virtual_pipeline: bool

    @classmethod
    def of(cls, config: DictConfig) -> _Sizes:
        actor, group = config.actor_rollout_ref.actor, int(config.actor_rollout_ref.rollout.n)
        dynamic = actor.use_dynamic_bsz
        log_prob = [config.actor_rollout_ref.rollout]
        if actor.use_kl_loss or config.algorithm.use_kl_in_reward:
            log_prob.append(config.actor_rollout_ref.ref)
        fixed = [of.log_prob_micro_batch_size_per_gpu for of in log_prob if not of.log_prob_use_dynamic_bsz]
        return cls(
            group=group,
            mini_prompts=int(actor.ppo_mini_batch_size),
            micro_rows=None if dynamic else int(actor.ppo_micro_batch_size_per_gpu),
            micro_tokens=int(actor.ppo_max_token_len_per_gpu) * sequence_parallel(actor) if dynamic else None,
            log_prob_rows=tuple(int(rows) for rows in fixed if rows),
            epochs=int(actor.ppo_epochs),
            virtual_pipeline=bool(OmegaConf.select(actor, "megatron.virtual_pipeline_model_parallel_size")),
        )


class Placement:
    """One step after another: ``place`` the rows, give their ``columns``, tell the workers the route in ``flags``.

    Args:
        config: the trainer's.

    Attributes:
        workers, mini_batches: among which the batch at hand is spread.
    """

    def __init__(self, config: DictConfig) -> None:
        self._grouping = GvpoSettings.of(config.algorithm.gsd.gvpo).grouping
        self._normalizer: str = config.actor_rollout_ref.actor.policy_loss.normalizer
        self._sizes = _Sizes.of(config)
        self._route: Route | None = None
        self._warned_of_updates = False
        self.workers, self.mini_batches = 1, 1

    def place(self, rows: UnplacedRows) -> tuple[list[int], dict[str, float]]:
        """Choose the route of this step and place its rows.

        A mini-batch is counted in groups, not in rows: its number of updates is the config's whatever the groups'
        sizes are. Rows of padding fill its mini-batches up to the one with the most rows.

        Returns:
            ``batching.layout``'s places, and metrics ``gvpo/{route_whole,padding_rows,missing_sessions,
            missing_updates}``: sessions of groups that have some (one without any is in no batch), and updates that the
            config states and that the batch has too few groups for.

        Raises:
            ValueError: ``grouping=whole`` and a group is not a session a row, at most n of them, or does not fit a
                micro-batch.
        """
        keys, workers = rows.keys, rows.workers
        sizes, self.workers = self._sizes, workers
        group = group_numbers([uid_of(key) for key in keys], len(keys)).tolist()
        stated = math.ceil(rows.prompts / sizes.mini_prompts)
        self.mini_batches = min(stated, 1 + max(group))
        self._warn_of_updates(stated, 1 + max(group))
        obstacle = self._obstacle_to_whole(keys, group, rows.tokens, rows.padding_tokens)
        if self._grouping == "whole" and obstacle:
            raise ValueError(
                f"algorithm.gsd.gvpo.grouping=whole: {obstacle}. Write algorithm.gsd.gvpo.grouping=prepass, or auto."
            )
        if self._grouping == "auto" and stated * sizes.epochs == 1:
            self._take("prepass", "with one update a step the log-probabilities are known, and no pass is made")
        elif self._grouping == "prepass":
            self._take("prepass", "algorithm.gsd.gvpo.grouping says so")
        elif obstacle:
            self._take("prepass", obstacle)
        else:
            self._take("whole", "every group fits a micro-batch")
        places = layout(
            group,
            group_numbers([session_of(key) for key in keys], len(keys)).tolist(),
            rows.workload,
            mini_batches=self.mini_batches,
            workers=workers,
            group_size=sizes.group if self._route == "whole" else None,
            slice_multiple=self._slice_multiple(),
        )
        sessions = Counter(uid_of(f"{session}_0") for session in {session_of(key) for key in keys})
        return places, {
            "gvpo/route_whole": float(self._route == "whole"),
            "gvpo/padding_rows": float(places.count(PADDING)),
            "gvpo/missing_sessions": float(sum(max(0, sizes.group - found) for found in sessions.values())),
            "gvpo/missing_updates": float(sizes.epochs * (stated - self.mini_batches)),
        }

    def _warn_of_updates(self, stated: int, groups: int) -> None:
        if groups < stated and not self._warned_of_updates:
            self._warned_of_updates = True
            logger.warning(
                "GVPO: a step has responses to %d prompts and its config states %d mini-batches. Each mini-batch needs "
                "a prompt, so the step has %d. The metric gvpo/missing_updates counts them; this is logged once.",
                *(groups, stated, groups),
            )

    def _slice_multiple(self) -> int:
        """Of how many rows a worker's slice must be. verl cuts a slice into fixed micro-batches for an update, and all
        of a worker's slices together for log-probabilities; both must leave no rest."""
        of_log_prob = (rows // math.gcd(rows, self.mini_batches) for rows in self._sizes.log_prob_rows)
        return math.lcm(self._sizes.micro_rows or 1, *of_log_prob)

    def _obstacle_to_whole(
        self, keys: Sequence[str], group: Sequence[int], tokens: Sequence[int], padding_tokens: int
    ) -> str:
        """Why groups cannot be kept whole in micro-batches; empty where they can."""
        sizes = self._sizes
        if sizes.virtual_pipeline:
            return "Megatron's virtual pipeline needs numbers of micro-batches that groups may not allow"
        if len({session_of(key) for key in keys}) < len(keys):
            return "a session has several outputs, and a micro-batch holds groups of one row a session"
        rows = Counter(group)
        if rows and max(rows.values()) > sizes.group:
            return f"a group has {max(rows.values())} responses and actor_rollout_ref.rollout.n={sizes.group}"
        if sizes.mini_prompts % self.workers:
            return (
                f"actor_rollout_ref.actor.ppo_mini_batch_size={sizes.mini_prompts} prompts cannot be dealt to "
                f"{self.workers} workers evenly"
            )
        if sizes.micro_rows is not None and sizes.micro_rows % sizes.group:
            return (
                f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={sizes.micro_rows} is no multiple of "
                f"actor_rollout_ref.rollout.n={sizes.group}"
            )
        of_group: defaultdict[int, int] = defaultdict(int)
        for number, length in zip(group, tokens, strict=True):
            of_group[number] += length
        longest = max((of_group[g] + (sizes.group - rows[g]) * padding_tokens for g in of_group), default=0)
        if len(of_group) % (self.mini_batches * self.workers):  # then there will be groups of padding alone
            longest = max(longest, sizes.group * padding_tokens)
        if sizes.micro_tokens is not None and longest > sizes.micro_tokens:
            return (
                f"a group has {longest} tokens, and actor_rollout_ref.actor.ppo_max_token_len_per_gpu allows a "
                f"micro-batch {sizes.micro_tokens}"
            )
        return ""

    def _take(self, route: Route, reason: str) -> None:
        if route != self._route:
            logger.warning("GVPO: grouping %s from this step on: %s", route, reason)
        self._route = route

    def columns(self, keys: Sequence[str], advantages: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the loss has to know of each row, ``rows.py``: (N,) each.

        Args:
            keys: of the batch as it is placed, padding included (its uid starts with ``pad``).
            advantages: (N,) A_i.
        """
        mini_batch = mini_batch_of(len(keys), mini_batches=self.mini_batches, workers=self.workers)
        columns = {
            RESPONSE: torch.full((len(keys),), -1),
            GROUP: torch.full((len(keys),), -1),
            SIZE: torch.zeros(len(keys), dtype=torch.int64),
            COEFFICIENT: torch.zeros(len(keys)),
            ADVANTAGE: advantages.float(),
        }
        for j in np.unique(mini_batch):
            rows = [row for row in np.flatnonzero(mini_batch == j) if not is_padding(keys[row])]
            if not rows:
                continue
            response = group_numbers([session_of(keys[row]) for row in rows], len(rows))
            group = group_numbers([uid_of(keys[row]) for row in rows], len(rows))
            # The group of each response, once.
            of_response = torch.zeros(int(response.max()) + 1, dtype=torch.int64).scatter_(0, response, group)
            columns[RESPONSE][rows] = response
            columns[GROUP][rows] = group
            columns[SIZE][rows] = torch.bincount(of_response)[group]
            coefficient = maths.group_coefficients(of_response, self._normalizer)
            columns[COEFFICIENT][rows] = coefficient[response].float()
        return columns

    def flags(self, *, theta_is_old: bool) -> dict[str, Any]:
        """For the workers' update: verl's ``extra_info``.

        Args:
            theta_is_old: the batch's old log-probabilities are those of the policy about to be updated.
        """
        flags: dict[str, Any] = {
            "gvpo_route": self._route,
            "gvpo_theta_is_old": theta_is_old,
            "num_mini_batch": self.mini_batches,  # verl's own key, which it reads where there is no mini_batch_size
        }
        if self._route == "whole":
            flags["force_group_size"] = self._sizes.group
            if self._sizes.micro_rows is not None:  # verl counts groups then, not rows
                flags["micro_batch_size_per_gpu"] = self._sizes.micro_rows // self._sizes.group
        return flags
