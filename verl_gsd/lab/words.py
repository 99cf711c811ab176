"""Sentences and table rows of the lab, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Sequence

from verl_gsd.lab.algorithms import algorithm
from verl_gsd.lab.experiment import Results
from verl_gsd.lab.published import Figure
from verl_gsd.lab.summary import LEARNED, MEAN, summarize

FIGURES_HEADER = ("figure", "published", "recomputed", "difference", "remark")
RUNS_HEADER = (
    "algorithm",
    "hardest quarter, at the end",
    "easiest quarter, at the end",
    f"steps until the hardest quarter reaches {LEARNED:g}",
    "rollouts per prompt until then",
    "rollouts per prompt in the run",
    f"hardest quarter when the mean of all is {MEAN:g}",
)
ALGORITHMS_HEADER = ("algorithm", "learning rate", "what it does here")
_NOTHING = "-"


def setting(results: Results) -> str:
    """How the runs started and how long they were."""
    return (
        f"{results.n_prompts} prompts, each with its own Bernoulli logit. They start at solve rates from "
        f"{results.prompts.origin}, without rates of 0 and 1 and clipped to 0.02 and 0.98. Groups of "
        f"{results.group_size}, {results.steps} steps, seed {results.seed}."
    )


def legend() -> str:
    """What the columns of ``RUNS_HEADER`` mean."""
    return (
        "The hardest and the easiest quarter are of the prompts by their solve rate at the start, and the table has "
        f"their mean solve rates. The rate of the hardest quarter when the mean of all prompts is {MEAN:g} hardly "
        "depends on the pace of an algorithm."
    )


def caveats(results: Results) -> list[str]:
    """What the runs do not show."""
    return [
        "There is no model, no token and no clip: a response is right or wrong, and every batch is used once. Nothing "
        "that is learned on one prompt helps another, and nothing is forgotten, so that solve rates rise under every "
        "algorithm. Algorithms differ in which prompts rise first, and in how many rollouts that takes.",
        "Learning rates are not tuned: the paper's 0.5, divided by the beta of a loss that has one. There is no AdamW, "
        "which would hide a factor common to all prompts. Compare paces with care. The shares of the first update do "
        "not depend on pace, and the hardest quarter's rate at a given mean hardly does.",
        "sigma has divisor G and eps is 0, as in the paper. verl's divisor G - 1 multiplies GRPO's update by "
        "sqrt((G - 1)/G). GSPO is GRPO here: a sequence of one token has the token's ratio, which is 1.",
    ]


def data_remark(results: Results) -> str:
    """Whether figures that depend on the data should agree with the published ones."""
    if results.prompts.invented:
        return (
            f"Solve rates are those of {results.prompts.origin}, which is fitted to Big-Math's published histogram. "
            "They are not Big-Math's own, so that figures of the data set and of the controlled run need not agree. "
            "Use --solve-rates for your own rates."
        )
    return (
        f"Solve rates are those of {results.prompts.origin}. Unless these are Big-Math's rates as the paper's authors "
        "measured them, figures of the data set and of the controlled run need not agree."
    )


def figure_rows(figures: Sequence[Figure]) -> list[tuple[str, ...]]:
    """Rows under ``FIGURES_HEADER``."""
    rows: list[tuple[str, ...]] = []
    for figure in figures:
        digits = figure.decimals
        recomputed = _NOTHING if figure.recomputed is None else f"{figure.recomputed:.{digits}f}"
        difference = (
            _NOTHING if figure.difference is None else f"{figure.difference:+.{digits}f}" if figure.difference else "0"
        )
        remark = figure.note if figure.comparable else f"published for other settings; {figure.note}"
        rows.append((figure.quantity, f"{figure.published:.{digits}f}", recomputed, difference, remark))
    return rows


def run_rows(results: Results) -> list[tuple[str, ...]]:
    """Rows under ``RUNS_HEADER``."""
    rows: list[tuple[str, ...]] = []
    for name, run in results.runs.items():
        summary = summarize(run)
        rows.append(
            (
                name,
                f"{summary.final_hardest:.3f}",
                f"{summary.final_easiest:.3f}",
                _NOTHING if summary.steps is None else str(summary.steps),
                _NOTHING if summary.rollouts is None else f"{summary.rollouts:.0f}",
                f"{summary.all_rollouts:.0f}",
                _NOTHING if summary.at_mean is None else f"{summary.at_mean:.3f}",
            )
        )
    return rows


def algorithm_rows(results: Results) -> list[tuple[str, ...]]:
    """Rows under ``ALGORITHMS_HEADER``."""
    chosen = {name: algorithm(name) for name in results.runs}
    return [(name, f"{row.rate:g}", row.about) for name, row in chosen.items()]
