"""Batches for DaGRPO's mask, written as their groups, and what is left of them counted by hand."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st

from verl_gsd import chain
from verl_gsd.algorithms.dagrpo.mask import Dagrpo
from verl_gsd.groups import Group, Member

NAN, INF = math.nan, math.inf
UIDS = itertools.count()
R, SCORES = [1, 0, 1, 0], [8, 3, 5, 4]

# A batch is written as its groups; a group's demonstrations stand in the places of its last responses.


@dataclass
class Row:
    """A row of a batch as the references below see it."""

    label: int
    reward: float
    score: float
    demonstration: bool = False
    failed: bool = False
    verdict: float = NAN


def group(rewards, scores=None, demonstrations=0, verdicts=None):
    rewards = np.array(rewards, np.float64)
    verdicts = rewards if verdicts is None else np.array(verdicts, np.float64)
    scores = None if scores is None else np.array(scores, np.float64)
    tokens = np.ones(len(rewards), np.int64)
    return Group(f"uid{next(UIDS)}", "math", 0, rewards, verdicts, tokens, (), scores, demonstrations)


def batch_of(*groups):
    """(members, rows): what each row of the batch is, and the same for a reference."""
    members, rows = [], []
    for label, of in enumerate(groups):
        own = len(of.rewards) - of.demonstrations
        for place in range(own):
            score = NAN if of.scores is None else float(of.scores[place])
            members.append(Member(of, place))
            failed = of.scores is not None and math.isnan(score)
            verdict = float(of.accuracies[place])
            rows.append(Row(label, float(of.rewards[place]), score, failed=failed, verdict=verdict))
        for _ in range(of.demonstrations):
            members.append(Member(of, None))
            rows.append(Row(label, 1.0, NAN, demonstration=True))
    return members, rows


def chained(dagrpo, groups, section, *, alpha=0.0, ddof=1, eps=1e-6, order=None):
    """Advantages of a batch through the chain, as a trainer runs it."""
    members, rows = batch_of(*groups)
    order = range(len(rows)) if order is None else order
    rewards = torch.tensor([rows[row].reward for row in order], dtype=torch.float64)
    gsd = {"alpha": alpha, "ddof": ddof, "eps": eps, "dagrpo": section}
    columns = dagrpo.stage_inputs([members[row] for row in order], groups)
    labels = [rows[row].label for row in order]
    return chain.advantages(rewards, labels, gsd, columns=columns, extensions={"dagrpo": dagrpo})


def through(section, *groups, **settings):
    return chained(Dagrpo(section), groups, section, **settings).tolist()


def gap(a, b, signed=True):
    """The better one's score less the worse one's."""
    found = a.score - b.score if a.reward > b.reward else b.score - a.score
    return found if signed else abs(found)


def others(rows, row):
    """The rows of another reward in a row's group."""
    return [other for other in rows if other.label == row.label and other.reward != row.reward]


def is_kept_pair(a, b, delta, signed, closed):
    if a.demonstration or b.demonstration:
        return True
    if closed and (a.failed or b.failed):
        return False
    return math.isnan(gap(a, b)) or gap(a, b, signed) >= delta


def is_kept_row(rows, row, delta, by, signed, closed):
    if closed and row.failed:
        return False
    gaps = [gap(row, other, signed) for other in others(rows, row) if not math.isnan(gap(row, other))]
    return not gaps or {"min": min, "max": max, "mean": lambda of: sum(of) / len(of)}[by](gaps) >= delta


def alive_by_hand(rows, mask, delta, signed=True, closed=False):
    """One bool a row: whether anything is left that moves it."""
    if mask == "pairs":
        return [any(is_kept_pair(row, other, delta, signed, closed) for other in others(rows, row)) for row in rows]
    kept = [is_kept_row(rows, row, delta, mask, signed, closed) for row in rows]
    left = [
        {of.reward for of, stays in zip(rows, kept, strict=True) if stays and of.label == row.label} for row in rows
    ]
    return [is_kept and len(rewards) > 1 for is_kept, rewards in zip(kept, left, strict=True)]


def mixed_by_hand(rows):
    return [bool(others(rows, row)) for row in rows]


score = st.one_of(st.integers(0, 10).map(float), st.just(NAN))
binary, graded = (st.sampled_from(values) for values in ([0.0, 1.0], [0.0, 0.5, 1.0]))


@st.composite
def groups_of(draw, reward=graded, demonstrated=True):
    size = draw(st.integers(1, 5))
    rewards = draw(st.lists(reward, min_size=size, max_size=size))
    scores = draw(st.one_of(st.none(), st.lists(score, min_size=size, max_size=size)))
    return group(rewards, scores, draw(st.integers(0, size - 1)) if demonstrated else 0)


@st.composite
def shaped_groups(draw):
    """Groups whose rewards are a verdict and a penalty, which can make rewards equal and turn their order around."""
    verdicts = draw(st.lists(binary, min_size=1, max_size=5))
    penalties = draw(st.lists(st.sampled_from([0.0, 0.25, 1.0, 2.0]), min_size=len(verdicts), max_size=len(verdicts)))
    scores = draw(st.lists(score, min_size=len(verdicts), max_size=len(verdicts)))
    return group(np.subtract(verdicts, penalties), scores, verdicts=verdicts)


batches = st.lists(groups_of(), min_size=1, max_size=4)
deltas = st.sampled_from([-INF, -2.0, 0.0, 1.0, 3.0, 5.0, INF])
masks = st.sampled_from(["pairs", "min", "mean", "max"])
