"""Places rows so that groups stay within mini-batches, provides the loss's columns, and chooses a route per step."""

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
class _BatchSizes:
    """The batch sizes in a config.

    Attributes:
        group: responses per prompt.
        mini_prompts: prompts per mini-batch over all workers.
        micro_rows: rows of a worker's micro-batch if its size is fixed; otherwise None.
        micro_tokens: maximum number of tokens of a micro-batch if its size is dynamic; otherwise None.
        log_prob_rows: sizes of the fixed micro-batches in which verl computes log-probabilities.
        epochs: passes over a batch's mini-batches.
        virtual_pipeline: whether Megatron's virtual pipeline is on.
    """

    group: int
    mini_prompts: int
    micro_rows: int | None
    micro_tokens: int | None
    log_prob_rows: tuple[int, ...]
    epochs: int
    virtual_pipeline: bool

    @classmethod
    def of(cls, config: DictConfig) -> _BatchSizes:
        actor, group = config.actor_rollout_ref.actor, int(config.actor_rollout_ref.rollout.n)
        dynamic = actor.use_dynamic_bsz
        sections = [config.actor_rollout_ref.rollout]
        if actor.use_kl_loss or config.algorithm.use_kl_in_reward:
            sections.append(config.actor_rollout_ref.ref)
        fixed_sizes = [
            section.log_prob_micro_batch_size_per_gpu for section in sections if not section.log_prob_use_dynamic_bsz
        ]
        return cls(
            group=group,
            mini_prompts=int(actor.ppo_mini_batch_size),
            micro_rows=None if dynamic else int(actor.ppo_micro_batch_size_per_gpu),
            micro_tokens=int(actor.ppo_max_token_len_per_gpu) * sequence_parallel(actor) if dynamic else None,
            log_prob_rows=tuple(int(rows) for rows in fixed_sizes if rows),
            epochs=int(actor.ppo_epochs),
            virtual_pipeline=bool(OmegaConf.select(actor, "megatron.virtual_pipeline_model_parallel_size")),
        )


class Placement:
    """Places the rows of a batch and decides how GVPO's weights are computed. It is used once per step:

    1. ``place`` returns the position of each row.
    2. ``columns`` returns the columns that the loss reads.
    3. ``flags`` returns what the workers need to know before each update.

    Args:
        config: the trainer's config.

    Attributes:
        workers, mini_batches: the numbers of workers and mini-batches of the current batch.
    """

    def __init__(self, config: DictConfig) -> None:
        self._grouping = GvpoSettings.of(config.algorithm.gsd.gvpo).grouping
        self._normalizer: str = config.actor_rollout_ref.actor.policy_loss.normalizer
        self._sizes = _BatchSizes.of(config)
        self._route: Route | None = None
        self._has_warned = False
        self.workers, self.mini_batches = 1, 1

    def place(self, rows: UnplacedRows) -> tuple[list[int], dict[str, float]]:
        """Choose the route of this step and place its rows.

        The size of a mini-batch is a number of groups, not of rows. The number of updates is therefore that of the
        config, whatever the sizes of the groups. Padding rows fill every mini-batch up to the size of the largest.

        Returns:
            The positions from ``batching.layout``, and these metrics:

            - ``gvpo/route_whole``: 1 if micro-batches hold whole groups, otherwise 0
            - ``gvpo/padding_rows``
            - ``gvpo/missing_sessions``: sessions without a response. A group with no response at all is in no batch, so
              its sessions do not count.
            - ``gvpo/missing_updates``: updates that the config requires but for which the batch has too few groups

        Raises:
            ValueError: ``grouping=whole``, but a session has several rows, or a group has more than n rows or does not
                fit into a micro-batch.
        """
        keys, workers = rows.keys, rows.workers
        sizes, self.workers = self._sizes, workers
        group = group_numbers([uid_of(key) for key in keys], len(keys)).tolist()
        expected = math.ceil(rows.prompts / sizes.mini_prompts)
        self.mini_batches = min(expected, 1 + max(group))
        self._warn_of_missing_updates(expected, 1 + max(group))
        obstacle = self._obstacle_to_whole(keys, group, rows.tokens, rows.padding_tokens)
        if self._grouping == "whole" and obstacle:
            raise ValueError(
                f"algorithm.gsd.gvpo.grouping=whole: {obstacle}. Set algorithm.gsd.gvpo.grouping=prepass or auto."
            )
        if self._grouping == "auto" and expected * sizes.epochs == 1:
            self._set_route("prepass", "each step has one update, so its log-probabilities are known without a pass")
        elif self._grouping == "prepass":
            self._set_route("prepass", "algorithm.gsd.gvpo.grouping=prepass")
        elif obstacle:
            self._set_route("prepass", obstacle)
        else:
            self._set_route("whole", "every group fits into a micro-batch")
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
            "gvpo/missing_sessions": float(
                sum(max(0, rows.sessions.get(uid, sizes.group) - count) for uid, count in sessions.items())
            ),
            "gvpo/missing_updates": float(sizes.epochs * (expected - self.mini_batches)),
        }

    def _warn_of_missing_updates(self, expected: int, groups: int) -> None:
        if groups < expected and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "GVPO: a step has responses to only %d prompts, but the config has %d mini-batches per step. Each "
                "mini-batch needs a prompt, so this step has %d mini-batches. The metric gvpo/missing_updates counts "
                "the missing updates. This warning is logged once.",
                *(groups, expected, groups),
            )

    def _slice_multiple(self) -> int:
        """The number that must divide the number of rows of a worker's slice.

        For an update, verl cuts each slice into fixed micro-batches. For log-probabilities, it cuts all slices of a
        worker together. Neither may leave a remainder.
        """
        log_prob_multiples = (rows // math.gcd(rows, self.mini_batches) for rows in self._sizes.log_prob_rows)
        return math.lcm(self._sizes.micro_rows or 1, *log_prob_multiples)

    def _obstacle_to_whole(
        self, keys: Sequence[str], group: Sequence[int], tokens: Sequence[int], padding_tokens: int
    ) -> str:
        """Why micro-batches cannot hold whole groups; an empty string if they can."""
        sizes = self._sizes
        if sizes.virtual_pipeline:
            return "Megatron's virtual pipeline needs a number of micro-batches that whole groups may not allow"
        if len({session_of(key) for key in keys}) < len(keys):
            return "a session has several outputs, but in whole groups every session has one row"
        rows = Counter(group)
        if rows and max(rows.values()) > sizes.group:
            return f"a group has {max(rows.values())} responses, but actor_rollout_ref.rollout.n={sizes.group}"
        if sizes.mini_prompts % self.workers:
            return (
                f"actor_rollout_ref.actor.ppo_mini_batch_size={sizes.mini_prompts} prompts cannot be divided evenly "
                f"among {self.workers} workers"
            )
        if sizes.micro_rows is not None and sizes.micro_rows % sizes.group:
            return (
                f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={sizes.micro_rows} is not a multiple of "
                f"actor_rollout_ref.rollout.n={sizes.group}"
            )
        group_tokens: defaultdict[int, int] = defaultdict(int)
        for number, length in zip(group, tokens, strict=True):
            group_tokens[number] += length
        longest = max((group_tokens[g] + (sizes.group - rows[g]) * padding_tokens for g in group_tokens), default=0)
        if len(group_tokens) % (self.mini_batches * self.workers):  # some groups will consist of padding only
            longest = max(longest, sizes.group * padding_tokens)
        if sizes.micro_tokens is not None and longest > sizes.micro_tokens:
            return (
                f"a group has {longest} tokens, but actor_rollout_ref.actor.ppo_max_token_len_per_gpu limits a "
                f"micro-batch to {sizes.micro_tokens} tokens"
            )
        return ""

    def _set_route(self, route: Route, reason: str) -> None:
        if route != self._route:
            logger.warning("GVPO uses grouping=%s from this step on. Reason: %s.", route, reason)
        self._route = route

    def columns(self, keys: Sequence[str], advantages: torch.Tensor) -> dict[str, torch.Tensor]:
        """The columns that the loss reads (see ``rows.py``), (N,) each.

        Args:
            keys: the keys of the placed batch, including padding rows, whose uid starts with ``pad``.
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
            # (S,) the group of each response.
            response_group = torch.zeros(int(response.max()) + 1, dtype=torch.int64).scatter_(0, response, group)
            columns[RESPONSE][rows] = response
            columns[GROUP][rows] = group
            columns[SIZE][rows] = torch.bincount(response_group)[group]
            coefficient = maths.group_coefficients(response_group, self._normalizer)
            columns[COEFFICIENT][rows] = coefficient[response].float()
        return columns

    def flags(self, *, theta_is_old: bool) -> dict[str, Any]:
        """The flags of the workers' update, which verl passes on as ``extra_info``.

        Args:
            theta_is_old: whether the policy about to be updated computed the batch's old log-probabilities.
        """
        flags: dict[str, Any] = {
            "gvpo_route": self._route,
            "gvpo_theta_is_old": theta_is_old,
            "num_mini_batch": self.mini_batches,  # verl reads this key if there is no mini_batch_size
        }
        if self._route == "whole":
            flags["force_group_size"] = self._sizes.group
            if self._sizes.micro_rows is not None:  # with force_group_size, verl counts groups instead of rows
                flags["micro_batch_size_per_gpu"] = self._sizes.micro_rows // self._sizes.group
        return flags
