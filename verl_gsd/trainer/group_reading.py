"""Reads the groups whose sessions have all ended from their rows, in verl's queue or in the laboratory's store."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from verl_gsd.answer_counts import pack_answers
from verl_gsd.extension import RowStore
from verl_gsd.groups import Group
from verl_gsd.prompts import PromptKey
from verl_gsd.scalars import without_rounding
from verl_gsd.trainer.reward_failures import MARK, Failure, failure_of_score
from verl_gsd.trainer.reward_monitor import LostReward, Rewards
from verl_gsd.trainer.rows import (
    DEMONSTRATED_BY,
    GENERATED_IN,
    PARTITION,
    REPLACED,
    REPLACED_REPORT,
    as_number,
    output_number,
    reported,
    session_number,
    session_of,
    uid_of,
)

#: verl's ``num_turns`` of a question and its answer.
_ONE_TURN = 2


def read_groups(
    uids: list[str], rows: RowStore, prompt_of: Callable[[str], PromptKey]
) -> tuple[list[Group], Rewards, list[str]]:
    """Read the groups ``uids``, whose sessions have all ended, with one read of ``rows`` if responses have one turn.

    The last output of a session represents the session; the tokens of all its outputs count. A response of an earlier
    visit has a reward, but neither accuracy nor tokens, because the earlier visit counted them. A demonstration has
    none of these; its tags have those of the response that it replaced, and what the verifier reported about it. A
    response with a failed reward is not in its group. Tokens are those that the policy wrote: what tools and users said
    in between does not count.

    Args:
        prompt_of: the prompt of each visit.

    Returns:
        The groups, what was read of their rewards, and the sessions whose rewards failed.
    """
    wanted = set(uids)
    last: defaultdict[str, dict[int, str]] = defaultdict(dict)  # uid -> session -> row key
    tokens: dict[str, int] = defaultdict(int)  # by uid_session
    outputs: list[str] = []  # row keys of what was generated in this visit
    one_turn: set[str] = set()  # row keys of responses that the policy alone wrote
    demonstrations: dict[str, int] = defaultdict(int)
    for key, tag in rows.tags.items():
        uid, session = uid_of(key), session_number(key)
        if uid not in wanted:
            continue
        if DEMONSTRATED_BY in tag:
            demonstrations[uid] += 1
            if REPLACED not in tag:
                continue
        other = last[uid].get(session)
        if other is None or output_number(other) < output_number(key):
            last[uid][session] = key
        if GENERATED_IN not in tag and DEMONSTRATED_BY not in tag:
            outputs.append(key)
            tokens[session_of(key)] += tag["response_len"]
    representatives = [key for uid in uids for key in last[uid].values()]
    rewards: dict[str, float] = {}
    accuracies: dict[str, float] = {}
    reports: dict[str, Mapping[str, float | str]] = {}  # what the verifier reported in addition
    lost: dict[str, LostReward] = {}
    seconds: list[float] = []
    for key in representatives:
        if REPLACED in rows.tags[key]:
            rewards[key], accuracies[key], tokens[session_of(key)] = rows.tags[key][REPLACED]
            reports[key] = rows.tags[key].get(REPLACED_REPORT, {})  # rows of older checkpoints lack it
    read = [key for key in representatives if key not in rewards]
    if read:
        columns = ["rm_scores", "extra_fields", "metrics", "num_turns"]
        for key, row in zip(read, rows.read(read, columns), strict=True):
            if int(row["num_turns"]) == _ONE_TURN:
                one_turn.add(key)
            rewards[key] = float(row["rm_scores"].double().sum())
            info = row["extra_fields"].get("reward_extra_info") or {}
            if GENERATED_IN in rows.tags[key]:
                accuracies[key] = math.nan
                continue
            accuracies[key] = without_rounding(as_number(info.get("acc")))
            reports[key] = reported(info)
            waited = row["metrics"].get("compute_score")
            seconds += [] if waited is None else [float(waited)]  # None: the agent loop returned the reward
            if failure := failure_of_row(rewards[key], info):
                lost[key] = LostReward(*prompt_of(uid_of(key)), failure, by_agent_loop=MARK not in info)
    if several := [key for key in outputs if key not in one_turn]:
        # verl's tag counts what tools and users wrote. The mask of the loss leaves it out.
        for key, row in zip(several, rows.read(several, ["response_mask"]), strict=True):
            tokens[session_of(key)] += int(row["response_mask"].sum()) - rows.tags[key]["response_len"]
    groups = []
    for uid in uids:
        keys = [key for key in last[uid].values() if key not in lost]
        of_group = [reports[key] for key in keys if key in reports]
        given = [str(report["answer"]) for report in of_group if "answer" in report]
        source, index = prompt_of(uid)
        groups.append(
            Group(
                uid,
                source,
                index,
                rewards=np.array([rewards[key] for key in keys], dtype=np.float64),
                accuracies=np.array([accuracies[key] for key in keys], dtype=np.float64),
                tokens=np.array([tokens[session_of(key)] for key in keys], dtype=np.int64),
                keys=tuple(keys),
                demonstrations=demonstrations[uid],
                unverified=_flagged("unverified", of_group),
                doubtful=_flagged("doubtful", of_group),
                failed_rewards=sum(key in lost for key in last[uid].values()),
                distinct_answers=len({answer for answer in given if answer}) if given else None,
                answers=pack_answers(given) if given else None,
                earlier=sum(GENERATED_IN in rows.tags[key] for key in keys),
            )
        )
    rewarded = sum(GENERATED_IN not in rows.tags[key] for key in read)
    all_rewards = Rewards(PARTITION, len(groups), rewarded, tuple(lost.values()), tuple(seconds))
    return groups, all_rewards, [session_of(key) for key in lost]


def _flagged(name: str, reports: Sequence[Mapping[str, float | str]]) -> int | None:
    """How many of the responses have the flag ``name`` above 0; None if none of them has the flag."""
    values = [float(report[name]) for report in reports if name in report]
    return sum(value > 0 for value in values) if values else None


def failure_of_row(reward: float, info: Mapping[str, Any]) -> Failure | None:
    """How a reward failed; None if it did not. Only rewards of a reward function carry a mark."""
    return Failure.from_extra_info(info) or failure_of_score(reward)
