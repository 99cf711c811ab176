"""Sentences, table rows, charts and the page of ``verl-gsd lab bias``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import altair as alt

from verl_gsd.algorithms.hadw.policy_bias import CheckedMean, PolicyBias, RateBin
from verl_gsd.charts import COLOURS, Section, Table

TITLE = "The bias of group-relative advantages on a real policy"
BASELINE_HEADER = ("solve rate", "prompts", "mixed groups", "mean p", "bias", "Lemma 2", "Theorem 1")
CHANCE_HEADER = ("solve rate", "P(A_hat < A | mixed)", "Theorem 2")
FACTOR_HEADER = (
    "solve rate",
    "bias before",
    "bias, right",
    "closed form",
    "bias, wrong",
    "closed form",
    "scale for right",
    "scale for wrong",
)


@dataclass(frozen=True)
class BiasStudy:
    """What was measured.

    Attributes:
        model: the policy's folder.
        preset: that of ``algorithm.gsd.hadw``.
        is_fixed: whether the preset fixes the anchor. If not, the anchor is ``mean_rate``.
        n_prompts: number of prompts.
        accuracy: share of right responses among all sampled ones.
        mean_rate: mean exact solve rate.
        slack: the largest slack of a prompt's solve rate (``lab/training/exact.py``).
    """

    model: str
    preset: str
    is_fixed: bool
    n_prompts: int
    accuracy: float
    mean_rate: float
    slack: float
    bias: PolicyBias


def setting(study: BiasStudy) -> str:
    """How the figures were made."""
    bias = study.bias
    return (
        f"Policy {study.model}. Nothing was trained. {study.n_prompts} training prompts with exact solve rates, and "
        f"{bias.sampled} sampled groups of {bias.group_size} responses, of which {bias.mixed} are mixed. The mean "
        f"solve rate is {study.mean_rate:.4f}. Of the sampled responses, {study.accuracy:.4f} are right. Solve rates "
        f"are exact up to {study.slack:.2g}."
    )


def factor_setting(study: BiasStudy) -> str:
    """Which factor was used."""
    source = "the value of the preset" if study.is_fixed else "the mean solve rate"
    return (
        f"HA-DW's factor with preset={study.preset}, lambda_scale={study.bias.lambda_scale:g} and the anchor "
        f"C={study.bias.anchor:.3f}, which is {source}."
    )


def legend() -> list[str]:
    """What the columns mean."""
    return [
        "A = r - p is the advantage against the exact solve rate p, and A_hat = r - (group mean). The bias is "
        "E[A_hat | mixed] - A. It is the same for right and for wrong responses until the factor Phi multiplies A_hat.",
        "Margins are half of a 95% interval. About one interval in 20 does not contain its closed form.",
        "Theorem 1: yes if the bias has the sign that the theorem states, open if its interval contains 0.",
        "Scale for right: the lambda_scale that would remove the bias of right responses. Scale for wrong: the same "
        "for wrong responses.",
    ]


def findings(study: BiasStudy) -> list[str]:
    """What the measurement shows."""
    bias, bins = study.bias, study.bias.bins
    signs = [entry.theorem_1 for entry in bins]
    before = [abs(entry.before.value) for entry in bins]
    right = sum(abs(entry.right.value) < size for entry, size in zip(bins, before, strict=True))
    wrong = sum(abs(entry.wrong.value) < size for entry, size in zip(bins, before, strict=True))
    return [
        "Theorem 1: among mixed groups, A_hat is too small for hard prompts and too large for easy ones in "
        f"{signs.count('yes')} of {len(bins)} intervals of solve rates. {signs.count('open')} are open, and "
        f"{signs.count('no')} have the opposite sign.",
        f"Over all groups, mixed or not, the mean of A_hat - A is {_with_margin(bias.all_groups)}. Its expectation is "
        "0.",
        f"Theorem 3: with lambda_scale={bias.lambda_scale:g}, the mean advantage of right responses is closer to A "
        f"than before in {right} of {len(bins)} intervals, and that of wrong responses in {wrong}.",
        "The lambda_scale that would remove the bias differs between right and wrong responses, within one interval by "
        f"up to {_largest_ratio(bins):.1f} times. One lambda_scale therefore serves one of them at a time.",
    ]


def _largest_ratio(bins: Sequence[RateBin]) -> float:
    ratios = [entry.scale_right / entry.scale_wrong for entry in bins]
    return max(max(ratio, 1 / ratio) for ratio in ratios)


CAVEATS = (
    "Each solve rate is computed and not estimated. Only the groups are sampled. The responses to a prompt are "
    "independent, so that the closed forms must agree. The tables check them and our code.",
    "The bias is that of advantages among mixed groups. It does not turn a prompt's gradient. Conditioning on mixed "
    "groups multiplies the expected gradient by a number. So does the factor, because the expected scores of right and "
    "of wrong responses have opposite directions. Both change how much a prompt counts compared with other prompts.",
    "Nothing here shows that a policy learns better with less bias. Compare training runs to find out.",
    "lambda_scale multiplies all factors. Under AdamW without a KL term it has almost no effect except on clipping.",
    "The theorems are about A_hat = r - (group mean). GRPO also divides it by the group's standard deviation.",
    "In a training run, the anchor follows earlier batches. While the policy stays as it is, the anchor varies around "
    "the mean solve rate.",
)


def baseline_rows(bias: PolicyBias) -> list[tuple[str, ...]]:
    """Rows under ``BASELINE_HEADER``."""
    return [
        (
            _interval(entry),
            str(entry.prompts),
            str(entry.groups),
            f"{entry.rate:.3f}",
            _with_margin(entry.before),
            f"{entry.before.expected:+.4f}",
            entry.theorem_1,
        )
        for entry in bias.bins
    ]


def chance_rows(bias: PolicyBias) -> list[tuple[str, ...]]:
    """Rows under ``CHANCE_HEADER``."""
    return [(_interval(entry), _with_margin(entry.below, ""), f"{entry.below.expected:.4f}") for entry in bias.bins]


def factor_rows(bias: PolicyBias) -> list[tuple[str, ...]]:
    """Rows under ``FACTOR_HEADER``."""
    return [
        (
            _interval(entry),
            f"{entry.before.value:+.4f}",
            _with_margin(entry.right),
            f"{entry.right.expected:+.4f}",
            _with_margin(entry.wrong),
            f"{entry.wrong.expected:+.4f}",
            f"{entry.scale_right:.2f}",
            f"{entry.scale_wrong:.2f}",
        )
        for entry in bias.bins
    ]


def _interval(entry: RateBin) -> str:
    return f"{entry.low:g} to {entry.high:g}"


def _with_margin(mean: CheckedMean, sign: str = "+") -> str:
    margin = "" if math.isnan(mean.margin) else f" ± {mean.margin:.4f}"
    return f"{mean.value:{sign}.4f}{margin}"


def charts_of(study: BiasStudy) -> Mapping[str, alt.TopLevelMixin]:
    """Every chart, by the name of its section, which is also its file name."""
    series = {"before the factor": "before", "right, after": "right", "wrong, after": "wrong"}
    return {
        "baseline": _chart(study.bias.bins, {"sampled": "before"}, "E[A_hat | mixed] - A"),
        "factor": _chart(study.bias.bins, series, "E[Phi A_hat | mixed] - A"),
    }


def sections(study: BiasStudy) -> list[Section]:
    """The page from top to bottom."""
    charts, bias = charts_of(study), study.bias
    marks = "Points are sampled, with 95% intervals. Dashes are closed forms."
    return [
        Section("in-short", "In short", [setting(study), *findings(study)]),
        Section("caveats", "What this does not show", CAVEATS),
        Section(
            "baseline",
            "The group mean as a baseline",
            [*legend()[:3], marks],
            charts["baseline"],
            Table(BASELINE_HEADER, baseline_rows(bias)),
        ),
        Section(
            "chance",
            "How often an advantage is too small",
            ["Theorem 2: the probability that A_hat is below A in a mixed group."],
            table=Table(CHANCE_HEADER, chance_rows(bias)),
        ),
        Section(
            "factor",
            "After HA-DW's factor",
            [factor_setting(study), legend()[3], marks],
            charts["factor"],
            Table(FACTOR_HEADER, factor_rows(bias)),
        ),
    ]


def _chart(bins: Sequence[RateBin], series: Mapping[str, str], unit: str) -> alt.TopLevelMixin:
    data = []
    for label, name in series.items():
        for entry in bins:
            mean: CheckedMean = getattr(entry, name)
            margin = 0.0 if math.isnan(mean.margin) else mean.margin
            data.append(
                {
                    "series": label,
                    "rate": round(entry.rate, 4),
                    "sampled": round(mean.value, 5),
                    "low": round(mean.value - margin, 5),
                    "high": round(mean.value + margin, 5),
                    "expected": round(mean.expected, 5),
                }
            )
    base = alt.Chart(alt.Data(values=data)).encode(
        x=alt.X("rate:Q", title="mean exact solve rate of the interval", scale=alt.Scale(domain=[0, 1])),
        color=alt.Color(
            "series:N",
            title=None,
            scale=alt.Scale(domain=list(series), range=list(COLOURS[: len(series)])),
            legend=alt.Legend() if len(series) > 1 else None,
        ),
        tooltip=["series:N", "rate:Q", "sampled:Q", "expected:Q"],
    )
    zero = alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(color="#b0b0b0").encode(y="zero:Q")
    interval = base.mark_rule().encode(y=alt.Y("low:Q", title=unit), y2="high:Q")
    points = base.mark_circle(size=50).encode(y=alt.Y("sampled:Q", title=unit))
    dashes = base.mark_point(shape="stroke", size=350, strokeWidth=2).encode(y=alt.Y("expected:Q", title=unit))
    return alt.layer(zero, interval, points, dashes).properties(height=300)
