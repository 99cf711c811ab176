"""DaGRPO's judge in the trainer's process: whole groups are judged while others are still generated.

A group is judged as soon as it is complete, if its rewards differ; only such groups have pairs. A group that dynamic
sampling is about to evict is not judged, because nothing reads its scores. A group in which a session failed is judged:
verl's synchronous trainer does not evict it. A group counts as running until its scores
have arrived or its time budget is over. The trainer looks for complete groups only while it samples.
Groups that end during an update of an asynchronous trainer are therefore judged after the update.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from verl_gsd.dynamic_sampling import filter_metric, is_evicted
from verl_gsd.extension import Extension, Services, Visits
from verl_gsd.groups import Group
from verl_gsd.judge.build import build_scorer
from verl_gsd.judge.cache import ScoreCache
from verl_gsd.judge.judge import Judge
from verl_gsd.judge.problem import problem_text
from verl_gsd.judge.scorer import Question, Scorer
from verl_gsd.judge.settings import JudgeSettings
from verl_gsd.records import Fate


class JudgeExtension(Extension):
    """Requests scores, holds groups back until they arrive, and attaches them to the groups that leave.

    Args:
        settings: settings or config section of ``algorithm.gsd.dagrpo.judge``.
    """

    def __init__(self, settings: JudgeSettings | Mapping[str, Any], services: Services | None = None) -> None:
        self._settings = JudgeSettings.of(settings)
        super().__init__(self._settings, services)
        self._judge: Judge | None = None
        self._cache: ScoreCache | None = None
        self._waiting: set[str] = set()  # uids of groups that wait for scores
        self._asked: set[str] = set()  # uids of groups that have been sent to the judge
        self._ended_at = self._ready_at = 0.0  # when the last group ended, and got its scores, by time.monotonic
        self._seconds = 0.0
        self._tokens = self._shared = 0

    def before_rollout(self, visits: Visits) -> None:
        self._get_judge()  # so that a wrong scorer raises before anything is generated

    def on_groups_complete(self, groups: Sequence[Group]) -> None:
        start = self._ended_at = time.monotonic()
        asked = [group for group in groups if _has_pairs(group) and not self._is_about_to_be_evicted(group)]
        keys = [key for group in asked for key in group.keys]
        if not keys:
            return
        rows = self.services.rows.read(keys, ["responses", "raw_prompt", "reward_model"])
        by_key = dict(zip(keys, rows, strict=True))
        for group in asked:
            first_row = by_key[group.keys[0]]
            responses = [by_key[key]["responses"] for key in group.keys]
            self._ask(group.uid, responses, first_row["raw_prompt"], first_row["reward_model"])
        self._ended_at = time.monotonic()
        self._seconds += self._ended_at - start

    def poll(self, now: float) -> None:
        for uid in [uid for uid in self._waiting if self._get_judge().is_done(uid)]:
            self._waiting.discard(uid)
            self._ready_at = max(self._ready_at, self._get_judge().answered_at(uid) or now)

    def is_ready(self, group: Group) -> bool:
        return group.uid not in self._waiting

    def on_group_left(self, group: Group, fate: Fate) -> Group:
        if group.uid not in self._asked:
            return group
        if self._ready_at:  # the first group of a batch leaves: the waiting time of the batch is known
            self._seconds += max(0.0, self._ready_at - self._ended_at)
            self._ready_at = 0.0
        self._asked.discard(group.uid)
        self._waiting.discard(group.uid)
        return replace(group, scores=self._get_judge().take(group.uid))

    def end_step(self, left: Sequence[Group]) -> dict[str, float]:
        """``judge/*`` (see ``Judge.metrics``), and ``dagrpo/shared_prefix``.

        The latter is the share of the tokens of mixed groups that lie in the common prefix of a group's responses.
        """
        shared = {"dagrpo/shared_prefix": self._shared / self._tokens} if self._tokens else {}
        self._tokens = self._shared = 0
        return shared | (self._judge.metrics() if self._judge else {})

    def seconds(self) -> dict[str, float]:
        """``judge``: seconds spent on requests, and, per batch, from the end of its last session to its last score."""
        seconds, self._seconds = self._seconds, 0.0
        return {"judge": seconds}

    def close(self) -> None:
        try:
            if self._judge:
                self._judge.close()
        finally:
            if self._cache:
                self._cache.close()

    def _get_judge(self) -> Judge:
        """The judge. It is started on the first call."""
        if self._judge is None:
            settings = self._settings
            self._cache = ScoreCache(Path(settings.cache).expanduser(), settings.cache_mb) if settings.cache else None
            self._judge = Judge(
                self.make_scorer(), self._cache, concurrency=settings.concurrency, budget_s=settings.budget_s
            )
        return self._judge

    def make_scorer(self) -> Scorer:
        """Build the scorer. It is called when the first prompts are submitted."""
        settings = self._settings
        if settings.scorer != "reward_model":
            return build_scorer(settings)
        from verl_gsd.algorithms.dagrpo.reward_model import RewardModelScorer  # imports Ray

        model = str(self.services.config.reward.reward_model.model_path)
        workers, tokenizer = self.services.verifier.workers, self.services.tokenizer
        return RewardModelScorer(workers, tokenizer, model, timeout_s=settings.timeout_s)

    def _is_about_to_be_evicted(self, group: Group) -> bool:
        """Whether dynamic sampling evicts a complete group for certain.

        A demonstration can later be added to a group, which then stays. verl evicts no group in which a session failed.
        """
        config = self.services.config
        if OmegaConf.select(config, "algorithm.gsd.dagrpo.demonstrations") is not None:
            return False
        if not is_evicted(group, filter_metric(config)):
            return False
        sessions = len(group.rewards) - group.earlier + group.failed_rewards
        return sessions >= (group.rollouts_requested or config.actor_rollout_ref.rollout.n)

    def _ask(self, uid: str, responses: Sequence[Any], prompt: Any, truth: Any) -> None:
        answer = (truth or {}).get("ground_truth")
        problem, reference = problem_text(prompt), "" if answer is None else str(answer)
        tokenizer = self.services.tokenizer
        tokens = [np.asarray(response) for response in responses]
        texts = [tokenizer.decode(row, skip_special_tokens=True) for row in tokens]
        self._get_judge().ask(uid, [Question(problem, reference, text) for text in texts])
        self._asked.add(uid)
        self._waiting.add(uid)
        self._tokens += sum(len(row) for row in tokens)
        self._shared += shared_prefix(tokens) * len(tokens)


def _has_pairs(group: Group) -> bool:
    return len(group.rewards) > 0 and group.rewards.min() != group.rewards.max()


def shared_prefix(rows: Sequence[np.ndarray]) -> int:
    """The number of tokens in the common prefix of ``rows``."""
    length = min(len(row) for row in rows)
    is_common = np.all(np.stack([row[:length] for row in rows]) == rows[0][:length], axis=0)
    return int(length if is_common.all() else is_common.argmin())
