"""Sentences, table rows, charts and the page of ``verl-gsd lab identity``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import altair as alt
import numpy as np

from verl_gsd.charts import COLOURS, Section, Table
from verl_gsd.lab.identity import ALPHAS, IdentityOfGroup, interval_of
from verl_gsd.lab.summary import START_EDGES

TITLE = "The gradient of a group: sigma is its gain, not its norm"
HEADER = (
    "exact solve rate",
    "groups",
    "mean sigma",
    "mean |s+ - s-|",
    *(f"mean |g|, alpha={alpha:g}" for alpha in ALPHAS),
    "largest error",
)


@dataclass(frozen=True)
class IdentityStudy:
    """What was measured.

    Attributes:
        model: the policy's folder.
        group_size: responses per group.
        is_binary: whether all rewards are 0 or 1.
        mixed, sampled: groups with different rewards, and all sampled groups, one per prompt.
        slack: the largest slack of a prompt's solve rate (``training/exact.py``).
    """

    model: str
    group_size: int
    is_binary: bool
    mixed: int
    sampled: int
    slack: float
    groups: Sequence[IdentityOfGroup]


def setting(study: IdentityStudy) -> str:
    """How the figures were made."""
    return (
        f"Policy {study.model}. {study.sampled} prompts with one group of {study.group_size} responses each: "
        f"{study.mixed} groups have different rewards, and {len(study.groups)} of them were measured, spread over the "
        f"solve rates. Solve rates are exact up to {study.slack:.2g}."
    )


def findings(study: IdentityStudy) -> list[str]:
    """What the measurement shows."""
    difference = _difference(study)
    norms = np.array([group.difference for group in study.groups])
    sigmas = np.array([group.sigma for group in study.groups])
    gradients = np.array([group.norms[ALPHAS.index(1.0)] for group in study.groups])
    errors = np.array([group.errors for group in study.groups])
    return [
        f"The identity holds: for alpha = 0, 1 and 2, the gradient equals sigma^(2 - alpha) times {difference} in norm "
        f"and direction. The largest relative error of a group is {errors.max():.1g}.",
        f"Sigma is the gain and not the gradient's norm: |{difference}| is not equal for all groups. It lies between "
        f"{norms.min():.3g} and {norms.max():.3g}, and sigma only between {sigmas.min():.3g} and {sigmas.max():.3g}. "
        f"Under GRPO (alpha = 1), the correlation over groups of log |g| with log sigma is "
        f"{_correlation(gradients, sigmas)}, and with log |{difference}| it is {_correlation(gradients, norms)}.",
    ]


def _difference(study: IdentityStudy) -> str:
    return "s+ - s-" if study.is_binary else "b"


def _correlation(a: np.ndarray, b: np.ndarray) -> str:
    logs = np.log(a), np.log(b)
    if min(values.std() for values in logs) < 1e-9:
        return "undefined"
    return f"{np.corrcoef(*logs)[0, 1]:.2f}"


def legend(study: IdentityStudy) -> str:
    """What the columns of ``HEADER`` mean."""
    text = (
        "g is the gradient of one group with respect to all weights, with advantages (R - mu) / sigma^alpha. s+ and s- "
        "are the mean gradients of the log-probability of right and of wrong responses. |x| is the norm of x. An error "
        "is the norm of the difference of both sides, relative to |g|."
    )
    if not study.is_binary:
        text += (
            " Rewards are graded here. In place of s+ - s- there is b = Cov(R, s) / Var(R), the slope of the "
            "regression of a response's gradient s on its reward R."
        )
    return text


CAVEATS = (
    "The identity is for the first update after sampling, without KL or entropy terms, with log-probabilities summed "
    "over a response's tokens, and with the population standard deviation (ddof = 0, eps = 0). With verl's ddof = 1 "
    "the gradient is multiplied by ((G - 1) / G)^(alpha / 2).",
    "Each group is measured by itself. In a batch, gradients of different groups can add up or cancel. AdamW then "
    "rescales their sum.",
    "All groups are of one policy at one moment. How |s+ - s-| depends on the solve rate is a property of this policy "
    "and this task.",
)


def rows(study: IdentityStudy) -> list[tuple[str, ...]]:
    """Rows under ``HEADER``, for intervals with groups."""
    number = interval_of(np.array([group.rate for group in study.groups]))
    table = []
    for interval, (low, high) in enumerate(itertools.pairwise(START_EDGES)):
        groups = [group for group, own in zip(study.groups, number, strict=True) if own == interval]
        if not groups:
            continue
        norms = np.array([group.norms for group in groups]).mean(axis=0)
        table.append(
            (
                f"{low:g} to {high:g}",
                str(len(groups)),
                f"{np.mean([group.sigma for group in groups]):.3f}",
                f"{np.mean([group.difference for group in groups]):.3g}",
                *(f"{norm:.3g}" for norm in norms),
                f"{max(max(group.errors) for group in groups):.1g}",
            )
        )
    return table


def charts_of(study: IdentityStudy) -> Mapping[str, alt.TopLevelMixin]:
    """Every chart, by the name of its section, which is also its file name."""
    return {
        "score-difference": _by_rate([(group.rate, group.difference) for group in study.groups], _difference(study)),
        "gradient-norm": _both_sides(study),
    }


def sections(study: IdentityStudy) -> list[Section]:
    """The page from top to bottom."""
    charts = charts_of(study)
    return [
        Section(
            "in-short",
            "In short",
            [setting(study), *findings(study), legend(study)],
            table=Table(HEADER, rows(study)),
        ),
        Section("caveats", "What this does not show", CAVEATS),
        Section(
            "score-difference",
            "The score difference by solve rate",
            ["One point per group. If sigma were the gradient's norm, all points would have the same height."],
            charts["score-difference"],
        ),
        Section(
            "gradient-norm",
            "Both sides of the identity",
            ["One point per group and alpha. On the grey line, both sides are equal. Both axes are logarithmic."],
            charts["gradient-norm"],
        ),
    ]


def _by_rate(points: Sequence[tuple[float, float]], name: str) -> alt.TopLevelMixin:
    data = [{"rate": round(rate, 4), "norm": float(f"{norm:.4g}")} for rate, norm in points]
    return (
        alt.Chart(alt.Data(values=data))
        .mark_circle(size=40, opacity=0.7, color=COLOURS[0])
        .encode(
            x=alt.X("rate:Q", title="exact solve rate", scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("norm:Q", title=f"|{name}|", scale=alt.Scale(zero=True)),
            tooltip=["rate:Q", "norm:Q"],
        )
    )


def _both_sides(study: IdentityStudy) -> alt.TopLevelMixin:
    sides = [
        (alpha, float(f"{group.sigma ** (2 - alpha) * group.difference:.4g}"), float(f"{norm:.4g}"))
        for group in study.groups
        for alpha, norm in zip(ALPHAS, group.norms, strict=True)
    ]
    data = [{"alpha": f"alpha={alpha:g}", "expected": expected, "norm": norm} for alpha, expected, norm in sides]
    values = [value for _, expected, norm in sides for value in (expected, norm)]
    scale = alt.Scale(type="log", domain=[min(values), max(values)])
    names = [f"alpha={alpha:g}" for alpha in ALPHAS]
    line = (
        alt.Chart(alt.Data(values=[{"end": min(values)}, {"end": max(values)}]))
        .mark_line(color="#b0b0b0")
        .encode(x=alt.X("end:Q", scale=scale), y=alt.Y("end:Q", scale=scale))
    )
    points = (
        alt.Chart(alt.Data(values=data))
        .mark_circle(size=36, opacity=0.7)
        .encode(
            x=alt.X("expected:Q", title=f"sigma^(2 - alpha) |{_difference(study)}|", scale=scale),
            y=alt.Y("norm:Q", title="norm of the group's gradient", scale=scale),
            color=alt.Color("alpha:N", title=None, scale=alt.Scale(domain=names, range=list(COLOURS[: len(names)]))),
            tooltip=["alpha:N", "expected:Q", "norm:Q"],
        )
    )
    return alt.layer(line, points).properties(height=340)
