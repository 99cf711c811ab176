"""What a lab says in words and rows, on a terminal and on a page alike."""

from __future__ import annotations

from collections.abc import Sequence

from verl_gsd.lab.algorithms import algorithm
from verl_gsd.lab.experiment import Results
from verl_gsd.lab.published import Figure
from verl_gsd.lab.summary import LEARNED, MEAN, line_of

FIGURES_HEADER = ("figure", "published", "recomputed", "difference", "remark")
RUNS_HEADER = (
    "algorithm",
    "hardest, end",
    "easiest, end",
    f"steps to {LEARNED:g}",
    f"rollouts to {LEARNED:g}",
    "rollouts, end",
    f"hardest at mean {MEAN:g}",
)
ALGORITHMS_HEADER = ("algorithm", "rate", "what it does here")
_NOTHING = "-"


def setting(results: Results) -> str:
    """Where the runs started and how long they were."""
    return (
        f"{results.n_prompts} prompts, each a Bernoulli logit of its own that starts at a solve rate from "
        f"{results.prompts.origin} (rates of 0 and 1 left out, the others clipped to .02 and .98); groups of "
        f"{results.group_size}, {results.steps} steps, seed {results.seed}."
    )


def legend() -> str:
    """What stands under ``RUNS_HEADER``."""
    return (
        "Hardest and easiest: mean solve rate of that quarter of the prompts, by their rate at the start. Steps and "
        f"rollouts a prompt until the hardest quarter is at {LEARNED:g}. Hardest at mean {MEAN:g}: where the hardest "
        f"quarter was when all prompts together were at {MEAN:g}, which hardly depends on pace."
    )


def caveats(results: Results) -> list[str]:
    """What the runs cannot show."""
    return [
        "No model, no tokens and no clip: a response is right or wrong, and every batch is used once. Nothing "
        "generalises from one prompt to another and nothing is forgotten, so that solve rates rise under any of them. "
        "What differs is who rises first, and at what cost in rollouts.",
        "Learning rates are the paper's 0.5 (GVPO's divided by its beta) and not tuned, and there is no AdamW, which "
        "would hide a factor common to all prompts: compare paces with care. The shares of the first update do not "
        "depend on pace, and the hardest quarter's rate at a given mean hardly does.",
        "sigma has divisor G and eps is 0, as in the paper; verl's G - 1 multiplies GRPO's update by "
        "sqrt((G - 1)/G). GSPO is GRPO here: a sequence of one token has the token's ratio, and that is 1.",
    ]


def data_remark(results: Results) -> str:
    """Whether figures that depend on the data should agree."""
    if results.prompts.invented:
        return (
            f"Solve rates are those of {results.prompts.origin}, fitted to Big-Math's published histogram, and not "
            "Big-Math's own: figures of the data set and of the controlled run need not agree. Give --solve-rates for "
            "your own."
        )
    return (
        f"Solve rates are those of {results.prompts.origin}. Where that is not Big-Math as its authors measured it, "
        "figures of the data set and of the controlled run need not agree."
    )


def figure_rows(figures: Sequence[Figure]) -> list[tuple[str, ...]]:
    """Rows under ``FIGURES_HEADER``."""
    rows: list[tuple[str, ...]] = []
    for figure in figures:
        digits = figure.decimals
        found = _NOTHING if figure.recomputed is None else f"{figure.recomputed:.{digits}f}"
        apart = (
            _NOTHING if figure.difference is None else f"{figure.difference:+.{digits}f}" if figure.difference else "0"
        )
        remark = figure.note if figure.comparable else f"published for other settings; {figure.note}"
        rows.append((figure.quantity, f"{figure.published:.{digits}f}", found, apart, remark))
    return rows


def run_rows(results: Results) -> list[tuple[str, ...]]:
    """Rows under ``RUNS_HEADER``."""
    rows: list[tuple[str, ...]] = []
    for name, run in results.runs.items():
        line = line_of(run)
        rows.append(
            (
                name,
                f"{line.final_hardest:.3f}",
                f"{line.final_easiest:.3f}",
                _NOTHING if line.steps is None else str(line.steps),
                _NOTHING if line.rollouts is None else f"{line.rollouts:.0f}",
                f"{line.all_rollouts:.0f}",
                _NOTHING if line.at_mean is None else f"{line.at_mean:.3f}",
            )
        )
    return rows


def algorithm_rows(results: Results) -> list[tuple[str, ...]]:
    """Rows under ``ALGORITHMS_HEADER``."""
    chosen = {name: algorithm(name) for name in results.runs}
    return [(name, f"{one.rate:g}", one.about) for name, one in chosen.items()]
